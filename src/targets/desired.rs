//! Desired targets and volumes of this node: on disk before a request for one is carried out, one file each, and
//! published to the rest of the agent.

use std::sync::Arc;

use tokio::sync::watch;

use super::desired_files::{TargetFile, read_all, target_file, write_volumes};
use super::writes::Writes;
use crate::model::fault::{Fault, chain};
use crate::model::policy::TargetSettings;
use crate::model::target::{Desired, TargetName, TargetSpec, Trial};
use crate::model::volume::{VolumeName, VolumeSpec, VolumeSpecs};
use crate::plan::admission::{has_own_name, has_own_sockets, has_room, has_room_for};
use crate::plan::volumes::one_writer_each;
use crate::store::{Durability, Store, StoreError};

/// Desired targets and volumes; clones share them.
#[derive(Debug, Clone)]
pub struct DesiredTargets {
    store: Store,
    published: Arc<watch::Sender<Desired>>,
    writes: Writes,
    most_targets: usize,
    most_volumes: usize,
}

impl DesiredTargets {
    /// Reads the desired state from disk, even if it exceeds the current limits. A file that cannot be read, or that a
    /// newer agent wrote, is set aside and logged.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(store: Store, settings: &TargetSettings) -> Result<DesiredTargets, Fault> {
        let published = Arc::new(watch::Sender::new(read_all(&store)?));
        let (most_targets, most_volumes) = (settings.max_targets, settings.max_volumes);
        Ok(DesiredTargets {
            store,
            published,
            writes: Writes::default(),
            most_targets,
            most_volumes,
        })
    }

    /// Subscription to the desired state, which begins with the current one.
    pub fn watch(&self) -> watch::Receiver<Desired> {
        self.published.subscribe()
    }

    /// Volumes that are desired in a target.
    pub fn volumes(&self, target: &TargetName) -> Arc<VolumeSpecs> {
        self.published.borrow().volumes_of(target)
    }

    /// Number of desired volumes in all targets.
    pub fn volume_count(&self) -> usize {
        self.published.borrow().volumes.values().map(|volumes| volumes.len()).sum()
    }

    /// Makes the volumes in `specs` desired, except those that are already desired with the same spec.
    ///
    /// # Errors
    /// When they cannot be written in time; then none of them is desired otherwise than before.
    pub async fn want_volumes(
        &self,
        target: &TargetName,
        specs: &[VolumeSpec],
    ) -> Result<(), Fault> {
        let known = self.volumes(target);
        let new = specs.iter().filter(|spec| known.get(&spec.name) != Some(spec));
        let new: Vec<VolumeSpec> = new.cloned().collect();
        let names = new.iter().map(|spec| spec.name.clone()).collect();
        // Checked in the turn of this write, in which nobody else changes the desired state.
        let judge = |desired: &Desired| {
            has_room_for(target, &new, self.most_volumes, desired)?;
            one_writer_each(target, &new, desired, |one, other| one == other)?;
            let spec = desired.targets.get(target);
            spec.map_or(Ok(()), |spec| has_own_sockets(spec, &new, desired))
        };
        self.change_volumes(target, names, judge, |volumes| {
            volumes.extend(new.iter().map(|spec| (spec.name.clone(), spec.clone())));
        })
        .await
    }

    /// Makes volumes no longer desired.
    ///
    /// # Errors
    /// When that cannot be written in time; then all of them still are.
    pub async fn forget_volumes(
        &self,
        target: &TargetName,
        names: &[VolumeName],
    ) -> Result<(), Fault> {
        let known = self.volumes(target);
        let names = names.iter().filter(|name| known.contains_key(*name)).cloned();
        let names: Vec<VolumeName> = names.collect();
        let gone = names.clone();
        let gone = |volumes: &mut VolumeSpecs| volumes.retain(|name, _| !gone.contains(name));
        self.change_volumes(target, names, |_| Ok(()), gone).await
    }

    async fn change_volumes(
        &self,
        target: &TargetName,
        names: Vec<VolumeName>,
        judge: impl FnOnce(&Desired) -> Result<(), Fault>,
        alter: impl FnOnce(&mut VolumeSpecs),
    ) -> Result<(), Fault> {
        if names.is_empty() {
            return Ok(());
        }
        let of = target.clone();
        let write = move |store: &Store, desired: &Desired| {
            write_volumes(store, &of, &names, &desired.volumes_of(&of))
        };
        self.change(write, |desired| {
            judge(desired)?;
            let volumes = desired.volumes.entry(target.clone()).or_default();
            alter(Arc::make_mut(volumes));
            if volumes.is_empty() {
                desired.volumes.remove(target);
            }
            Ok(())
        })
        .await
    }

    /// Desired spec of a target.
    pub fn get(&self, name: &TargetName) -> Option<TargetSpec> {
        self.published.borrow().targets.get(name).cloned()
    }

    /// Trial of a target that replaces another one.
    pub fn trial(&self, name: &TargetName) -> Option<Arc<Trial>> {
        self.published.borrow().trials.get(name).cloned()
    }

    /// Refuses a target that could not be made desired, before anything is done for it.
    ///
    /// # Errors
    /// When its name or its sockets would be another target's too, or it would be one too many.
    pub fn judge(&self, spec: &TargetSpec) -> Result<(), Fault> {
        has_own_name(&spec.name)?;
        let desired = self.published.borrow();
        has_room(&spec.name, self.most_targets, &desired)?;
        has_own_sockets(spec, &[], &desired)
    }

    /// Makes a target desired with `spec`; `trial` is set while it replaces another one.
    ///
    /// # Errors
    /// When it cannot be written in time; then it is not desired.
    pub async fn want(&self, spec: &TargetSpec, trial: Option<Arc<Trial>>) -> Result<(), Fault> {
        self.change_target(&spec.name, Some(spec), trial).await
    }

    /// Makes a target no longer desired, nor its volumes, which are gone with it.
    ///
    /// # Errors
    /// When that cannot be written in time; then it still is.
    pub async fn forget(&self, name: &TargetName) -> Result<(), Fault> {
        self.change_target(name, None, None).await
    }

    async fn change_target(
        &self,
        name: &TargetName,
        spec: Option<&TargetSpec>,
        trial: Option<Arc<Trial>>,
    ) -> Result<(), Fault> {
        let volumes: Vec<VolumeName> = self.volumes(name).keys().cloned().collect();
        let is_left = spec.is_none() && !volumes.is_empty();
        let is_so = |desired: &Desired| {
            desired.targets.get(name) == spec && desired.trials.get(name) == trial.as_ref()
        };
        if !is_left && is_so(&self.published.borrow()) {
            return Ok(());
        }
        let of = name.clone();
        let write = move |store: &Store, desired: &Desired| match desired.targets.get(&of) {
            Some(spec) => {
                let trial = desired.trials.get(&of).map(|trial| Trial::clone(trial));
                store.write(
                    &target_file(&of),
                    &TargetFile { spec: spec.clone(), trial },
                    Durability::Disk,
                )
            }
            None => {
                store.remove(&target_file(&of), Durability::Disk)?;
                write_volumes(store, &of, &volumes, &desired.volumes_of(&of))
            }
        };
        self.change(write, |desired| {
            desired.trials.remove(name);
            desired.trials.extend(trial.map(|trial| (name.clone(), trial)));
            match spec {
                Some(spec) => {
                    has_room(name, self.most_targets, desired)?;
                    has_own_sockets(spec, &[], desired)?;
                    desired.targets.insert(name.clone(), spec.clone());
                }
                None => {
                    desired.targets.remove(name);
                    desired.volumes.remove(name);
                }
            }
            Ok(())
        })
        .await
    }

    /// Writes a change of the desired state after all earlier ones, and publishes it once it is on disk. If the disk
    /// takes longer than the caller waits, the change is undone as soon as the disk goes on. If the agent dies before
    /// that, the next agent may find the change on the disk.
    async fn change(
        &self,
        write: impl Fn(&Store, &Desired) -> Result<(), StoreError> + Send + Sync + 'static,
        alter: impl FnOnce(&mut Desired) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let turn = self.writes.turn().await?;
        let before = self.published.borrow().clone();
        let mut after = before.clone();
        alter(&mut after)?;
        let (store, next) = (self.store.clone(), after.clone());
        let write = Arc::new(move |desired: &Desired| write(&store, desired));
        let undo = write.clone();
        // A write that failed may also have changed some of the files.
        let late = move |_| match undo(&before) {
            Ok(()) => tracing::warn!(
                "writing a change of the desired state took longer than its deadline; the change is undone"
            ),
            Err(e) => tracing::error!(
                error = chain(&e),
                "a change of the desired state passed its deadline, and undoing it on disk failed: {}; after a restart \
                 the agent may apply the change, so repeat the call, or call the reverse (destroy for deploy, \
                 deactivate for activate)",
                chain(&e)
            ),
        };
        let (_turn, done) = turn.write(move || write(&next), late).await?;
        done?;
        self.published.send_replace(after);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
#[path = "desired_tests.rs"]
mod tests;
