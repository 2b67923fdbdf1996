//! Files of desired targets and volumes: their folders, content, and access to them.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::fault::{Fault, chain};
use crate::model::target::{Desired, TargetName, TargetSpec, Trial};
use crate::model::volume::{VolumeName, VolumeSpec, VolumeSpecs};
use crate::store::{Durability, Store, StoreError};

/// Folder of the targets' files.
pub(crate) const FOLDER: &str = "targets";
/// Folder with a folder for the volumes of each target.
pub(crate) const VOLUMES: &str = "volumes";

/// Content of a target's file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TargetFile {
    pub(crate) spec: TargetSpec,
    /// Trial, while one is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trial: Option<Trial>,
}

/// Content of a volume's file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VolumeEntry {
    pub(crate) target: TargetName,
    pub(crate) spec: VolumeSpec,
}

/// Reads the desired targets and volumes. A file that cannot be read, or that a newer agent wrote, is set aside and
/// logged.
///
/// # Errors
/// When the disk fails.
pub(super) fn read_all(store: &Store) -> Result<Desired, Fault> {
    let mut desired = Desired::default();
    for name in store.list(FOLDER, Durability::Disk)? {
        let path = format!("{FOLDER}/{name}");
        let Some(entry) = read::<TargetFile>(store, &path) else { continue };
        if path == target_file(&entry.spec.name) {
            let name = entry.spec.name.clone();
            desired.trials.extend(entry.trial.map(|trial| (name.clone(), trial.into())));
            desired.targets.insert(name, entry.spec);
        } else {
            store.set_aside(&path, Durability::Disk, "it is the file of another target");
        }
    }
    for target in store.folders(VOLUMES, Durability::Disk)? {
        read_volumes(store, &target, &mut desired)?;
    }
    Ok(desired)
}

/// Writes the files of those volumes in `names` that are in `desired`, and removes the files of the others.
pub(super) fn write_volumes(
    store: &Store,
    target: &TargetName,
    names: &[VolumeName],
    desired: &VolumeSpecs,
) -> Result<(), StoreError> {
    let file = |name: &VolumeName| volume_file(target, name);
    let entry = |spec: &VolumeSpec| {
        let entry = VolumeEntry { target: target.clone(), spec: spec.clone() };
        (file(&spec.name), entry)
    };
    let entries = names.iter().filter_map(|name| desired.get(name)).map(entry).collect::<Vec<_>>();
    let gone = names.iter().filter(|name| !desired.contains_key(*name)).map(file);
    store.write_all(&entries)?;
    store.remove_all(&gone.collect::<Vec<_>>())
}

/// Reads one file. A file that the disk does not give affects no other, and stays where it is: it may be readable the
/// next time.
fn read<T: DeserializeOwned>(store: &Store, path: &str) -> Option<T> {
    store.read(path, Durability::Disk).unwrap_or_else(|error| {
        let why = chain(&error);
        tracing::error!(
            path,
            why,
            "the state file {path} cannot be read, so the agent does not know the target or volume in it: {why}"
        );
        None
    })
}

/// Reads the volumes of one target.
fn read_volumes(store: &Store, target: &str, desired: &mut Desired) -> Result<(), Fault> {
    for name in store.list(&format!("{VOLUMES}/{target}"), Durability::Disk)? {
        let path = format!("{VOLUMES}/{target}/{name}");
        let Some(entry) = read::<VolumeEntry>(store, &path) else { continue };
        if path == volume_file(&entry.target, &entry.spec.name) {
            let volumes = desired.volumes.entry(entry.target).or_default();
            Arc::make_mut(volumes).insert(entry.spec.name.clone(), entry.spec);
        } else {
            store.set_aside(&path, Durability::Disk, "it is the file of another volume");
        }
    }
    Ok(())
}

fn volume_file(target: &TargetName, volume: &VolumeName) -> String {
    format!("{VOLUMES}/{target}/{volume}.json")
}

pub(super) fn target_file(name: &TargetName) -> String {
    format!("{FOLDER}/{name}.json")
}
