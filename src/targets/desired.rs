//! The targets and volumes that this node is to have: on the disk before an order for one is carried out,
//! one file each, and published to whoever has to know.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::agent::observe::blocking;
use crate::model::fault::{Fault, chain};
use crate::model::target::{Desired, TargetName, TargetSpec};
use crate::model::volume::{VolumeName, VolumeSpec, VolumeSpecs};
use crate::store::{Durability, Store};

/// The folder of the targets' files.
pub(crate) const FOLDER: &str = "targets";
/// The folder that has one for the volumes of each target.
pub(crate) const VOLUMES: &str = "volumes";

/// A target as its file has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) spec: TargetSpec,
}

/// A volume as its file has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VolumeEntry {
    pub(crate) target: TargetName,
    pub(crate) spec: VolumeSpec,
}

/// What is wanted; clones are one.
#[derive(Debug, Clone)]
pub struct DesiredTargets {
    store: Store,
    told: Arc<watch::Sender<Desired>>,
}

impl DesiredTargets {
    /// Reads what was wanted when the agent ran last. A file that cannot be read, or that a newer agent
    /// wrote, is set aside with a loud word.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(store: Store) -> Result<DesiredTargets, Fault> {
        let mut desired = Desired::default();
        for name in store.list(FOLDER, Durability::Disk)? {
            let path = format!("{FOLDER}/{name}");
            let Some(entry) = read::<Entry>(&store, &path) else { continue };
            if path == file(&entry.spec.name) {
                desired.targets.insert(entry.spec.name.clone(), entry.spec);
            } else {
                store.set_aside(&path, Durability::Disk, "it is the file of another target");
            }
        }
        for target in store.folders(VOLUMES, Durability::Disk)? {
            open_volumes(&store, &target, &mut desired)?;
        }
        Ok(DesiredTargets { store, told: Arc::new(watch::Sender::new(desired)) })
    }

    /// What is wanted, now and from now on.
    pub fn watch(&self) -> watch::Receiver<Desired> {
        self.told.subscribe()
    }

    /// The volumes that are wanted in a target.
    pub fn volumes(&self, target: &TargetName) -> Arc<VolumeSpecs> {
        self.told.borrow().volumes_of(target)
    }

    /// How many volumes are wanted in all targets.
    pub fn volume_count(&self) -> usize {
        self.told.borrow().volumes.values().map(|volumes| volumes.len()).sum()
    }

    /// Writes down that volumes are wanted like this, those that are not already.
    ///
    /// # Errors
    /// When they cannot be written; then none of them is wanted otherwise than before.
    pub async fn want_volumes(
        &self,
        target: &TargetName,
        specs: &[VolumeSpec],
    ) -> Result<(), Fault> {
        let known = self.volumes(target);
        let new = specs.iter().filter(|spec| known.get(&spec.name) != Some(spec));
        let new: Vec<VolumeSpec> = new.cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        let entry = |spec: &VolumeSpec| {
            let entry = VolumeEntry { target: target.clone(), spec: spec.clone() };
            (volume_file(target, &spec.name), entry)
        };
        let (store, entries) = (self.store.clone(), new.iter().map(entry).collect::<Vec<_>>());
        blocking(move || store.write_all(&entries)).await??;
        self.told.send_modify(|desired| {
            let volumes = desired.volumes.entry(target.clone()).or_default();
            let named = new.into_iter().map(|spec| (spec.name.clone(), spec));
            Arc::make_mut(volumes).extend(named);
        });
        Ok(())
    }

    /// Writes down that volumes are not wanted any more.
    ///
    /// # Errors
    /// When that cannot be written; then all of them still are.
    pub async fn forget_volumes(
        &self,
        target: &TargetName,
        names: &[VolumeName],
    ) -> Result<(), Fault> {
        let known = self.volumes(target);
        let names: Vec<&VolumeName> =
            names.iter().filter(|name| known.contains_key(name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let files: Vec<String> = names.iter().map(|name| volume_file(target, name)).collect();
        let store = self.store.clone();
        blocking(move || store.remove_all(&files)).await??;
        self.told.send_modify(|desired| {
            let volumes = desired.volumes.entry(target.clone()).or_default();
            Arc::make_mut(volumes).retain(|name, _| !names.contains(&name));
            if volumes.is_empty() {
                desired.volumes.remove(target);
            }
        });
        Ok(())
    }

    /// The target as it is wanted now.
    pub fn get(&self, name: &TargetName) -> Option<TargetSpec> {
        self.told.borrow().targets.get(name).cloned()
    }

    /// Writes down that a target is wanted like this.
    ///
    /// # Errors
    /// When it cannot be written; then it is not wanted.
    pub async fn want(&self, spec: &TargetSpec) -> Result<(), Fault> {
        if self.told.borrow().targets.get(&spec.name) == Some(spec) {
            return Ok(());
        }
        let (store, entry) = (self.store.clone(), Entry { spec: spec.clone() });
        let path = file(&spec.name);
        blocking(move || store.write(&path, &entry, Durability::Disk)).await??;
        self.told
            .send_modify(|desired| drop(desired.targets.insert(spec.name.clone(), spec.clone())));
        Ok(())
    }

    /// Writes down that a target is not wanted any more.
    ///
    /// # Errors
    /// When it cannot be written; then it still is.
    pub async fn forget(&self, name: &TargetName) -> Result<(), Fault> {
        if !self.told.borrow().targets.contains_key(name) {
            return Ok(());
        }
        let (store, path) = (self.store.clone(), file(name));
        blocking(move || store.remove(&path, Durability::Disk)).await??;
        self.told.send_modify(|desired| drop(desired.targets.remove(name)));
        Ok(())
    }
}

/// Reads one file. One that the disk does not give takes no other with it, and stays where it is: it may be
/// given the next time.
fn read<T: DeserializeOwned>(store: &Store, path: &str) -> Option<T> {
    store.read(path, Durability::Disk).unwrap_or_else(|error| {
        let why = chain(&error);
        tracing::error!(
            path,
            why,
            "a state file cannot be read; what it says is not known to the agent"
        );
        None
    })
}

/// Reads the volumes of one target.
fn open_volumes(store: &Store, target: &str, desired: &mut Desired) -> Result<(), Fault> {
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

fn file(name: &TargetName) -> String {
    format!("{FOLDER}/{name}.json")
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn spec(name: &str) -> TargetSpec {
        TargetSpec::example(name)
    }

    fn open(dir: &tempfile::TempDir) -> DesiredTargets {
        DesiredTargets::open(Store::open(dir.path(), dir.path()).unwrap()).unwrap()
    }

    fn names(desired: &DesiredTargets) -> Vec<String> {
        desired.watch().borrow().targets.keys().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn what_is_wanted_is_known_after_a_restart_and_what_is_not_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let desired = open(&dir);
        desired.want(&spec("a")).await.unwrap();
        desired.want(&spec("b.1")).await.unwrap();
        desired.want(&TargetSpec { memory_mib: 7, ..spec("b.1") }).await.unwrap();
        desired.forget(&"a".parse().unwrap()).await.unwrap();
        desired.forget(&"never".parse().unwrap()).await.unwrap();
        let again = open(&dir);
        assert_eq!(names(&again), ["b.1"]);
        assert_eq!(again.watch().borrow().targets.values().next().unwrap().memory_mib, 7);
    }

    #[tokio::test]
    async fn a_file_that_is_broken_or_of_another_version_takes_no_other_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let desired = open(&dir);
        for name in ["a", "b", "c"] {
            desired.want(&spec(name)).await.unwrap();
        }
        let path = |name: &str| dir.path().join("targets").join(name);
        std::fs::write(path("a.json"), "{\"version\"").unwrap();
        let newer = std::fs::read_to_string(path("b.json")).unwrap().replacen('1', "99", 1);
        std::fs::write(path("b.json"), newer).unwrap();
        assert_eq!(names(&open(&dir)), ["c"]);
        assert!(path("a.json.unusable").exists() && path("b.json.version-99").exists());
        assert_eq!(names(&open(&dir)), ["c"], "what was set aside stays there");
    }

    #[tokio::test]
    async fn volumes_are_known_after_a_restart_one_file_each() {
        let dir = tempfile::tempdir().unwrap();
        let (desired, target) = (open(&dir), "t".parse().unwrap());
        let specs: Vec<_> = ["a", "b", "c", "d"].map(VolumeSpec::example).into();
        desired.want_volumes(&target, &specs).await.unwrap();
        let read_only = VolumeSpec { read_only: true, ..specs[1].clone() };
        desired.want_volumes(&target, &[read_only.clone(), specs[0].clone()]).await.unwrap();
        let gone = [specs[0].name.clone(), "never".parse().unwrap()];
        desired.forget_volumes(&target, &gone).await.unwrap();
        let path = |name: &str| dir.path().join("volumes/t").join(name);
        std::fs::write(path("c.json"), "{\"version\":1,").unwrap();
        std::fs::copy(path("d.json"), path("e.json")).unwrap();
        let again = open(&dir).volumes(&target);
        let names: Vec<_> = again.keys().map(VolumeName::as_str).collect();
        assert_eq!(names, ["b", "d"], "a is not wanted, c is cut, e says that it is d");
        assert_eq!(again[&read_only.name], read_only);
        assert!(path("c.json.unusable").exists() && path("e.json.unusable").exists());
    }
}
