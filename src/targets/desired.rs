//! Desired targets and volumes of this node: on disk before a request for one is carried out, one file each, and
//! published to the rest of the agent.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::writes::Writes;
use crate::model::fault::{Fault, chain};
use crate::model::policy::TargetSettings;
use crate::model::target::{Desired, TargetName, TargetSpec, Trial};
use crate::model::volume::{VolumeName, VolumeSpec, VolumeSpecs};
use crate::plan::admission::{has_own_name, has_own_sockets, has_room, has_room_for};
use crate::plan::volumes::one_writer_each;
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
    /// Reads what was desired when the agent ran last, also where that exceeds the limits by now. A file that cannot
    /// be read, or that a newer agent wrote, is set aside and logged.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(store: Store, settings: &TargetSettings) -> Result<DesiredTargets, Fault> {
        let mut desired = Desired::default();
        for name in store.list(FOLDER, Durability::Disk)? {
            let path = format!("{FOLDER}/{name}");
            let Some(entry) = read::<TargetFile>(&store, &path) else { continue };
            if path == file(&entry.spec.name) {
                let name = entry.spec.name.clone();
                desired.trials.extend(entry.trial.map(|trial| (name.clone(), trial.into())));
                desired.targets.insert(name, entry.spec);
            } else {
                store.set_aside(&path, Durability::Disk, "it is the file of another target");
            }
        }
        for target in store.folders(VOLUMES, Durability::Disk)? {
            open_volumes(&store, &target, &mut desired)?;
        }
        let published = Arc::new(watch::Sender::new(desired));
        let (most_targets, most_volumes) = (settings.max_targets, settings.max_volumes);
        Ok(DesiredTargets {
            store,
            published,
            writes: Writes::default(),
            most_targets,
            most_volumes,
        })
    }

    /// Desired state, now and from now on.
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

    /// Makes volumes desired like this, except those that already are.
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
        // Judged while nobody else changes the desired state.
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

    /// Makes a target desired like this, on `trial` where it replaces another one.
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
                store.write(&file(&of), &TargetFile { spec: spec.clone(), trial }, Durability::Disk)
            }
            None => {
                store.remove(&file(&of), Durability::Disk)?;
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

    /// Writes a change, one after the other, and publishes it once it is on disk. If the disk takes longer than the
    /// caller waits, the change is undone as soon as the disk goes on. An agent that dies before that leaves what the
    /// disk took: the next one may desire it.
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
                "a change of what is desired came too late, and cannot be undone: after a restart the \
                 agent may desire it; see what holds the disk up, then make the change again or its opposite"
            ),
        };
        let (_turn, done) = turn.write(move || write(&next), late).await?;
        done?;
        self.published.send_replace(after);
        Ok(())
    }
}

/// Writes or removes the files of these volumes of a target, as desired.
fn write_volumes(
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
    use std::time::Duration;

    use super::*;
    use crate::model::code::Code;
    use crate::targets::writes::WRITE_TIMEOUT;

    fn spec(name: &str) -> TargetSpec {
        let control_sock = format!("/sockets/{name}.sock").parse().unwrap();
        TargetSpec { control_sock, ..TargetSpec::example(name) }
    }

    fn open(dir: &tempfile::TempDir) -> DesiredTargets {
        let store = Store::open(dir.path(), dir.path()).unwrap();
        DesiredTargets::open(store, &TargetSettings::example()).unwrap()
    }

    fn names(desired: &DesiredTargets) -> Vec<String> {
        desired.watch().borrow().targets.keys().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn what_is_wanted_is_known_after_a_restart_and_what_is_not_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let desired = open(&dir);
        desired.want(&spec("a"), None).await.unwrap();
        desired.want(&spec("b.1"), None).await.unwrap();
        desired.want(&TargetSpec { memory_mib: 7, ..spec("b.1") }, None).await.unwrap();
        desired.forget(&"a".parse().unwrap()).await.unwrap();
        desired.forget(&"never".parse().unwrap()).await.unwrap();
        let again = open(&dir);
        assert_eq!(names(&again), ["b.1"]);
        assert_eq!(again.watch().borrow().targets.values().next().unwrap().memory_mib, 7);
    }

    #[tokio::test]
    async fn no_more_is_desired_than_the_settings_say_but_what_was_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let before = open(&dir);
        for name in ["a", "b"] {
            before.want(&spec(name), None).await.unwrap();
        }
        let (target, volumes) = ("a".parse().unwrap(), ["v", "w"].map(VolumeSpec::example));
        before.want_volumes(&target, &volumes).await.unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        let settings =
            TargetSettings { max_targets: 1, max_volumes: 1, ..TargetSettings::example() };
        let desired = DesiredTargets::open(store, &settings).unwrap();
        assert_eq!(names(&desired), ["a", "b"]);
        let again = TargetSpec { memory_mib: 7, ..spec("b") };
        desired.judge(&again).unwrap();
        desired.want(&again, None).await.unwrap();
        let code = |done: Result<(), Fault>| done.map_err(|fault| fault.code);
        assert_eq!(code(desired.judge(&spec("c"))), Err(Code::TooManyTargets));
        assert_eq!(code(desired.want(&spec("c"), None).await), Err(Code::TooManyTargets));
        let changed = VolumeSpec { read_only: true, ..VolumeSpec::example("v") };
        desired.want_volumes(&target, &[changed]).await.unwrap();
        let more = desired.want_volumes(&target, &[VolumeSpec::example("x")]).await;
        assert_eq!(code(more), Err(Code::TooManyVolumes));
        desired.forget_volumes(&target, &volumes.map(|it| it.name)).await.unwrap();
        desired.want_volumes(&target, &[VolumeSpec::example("x")]).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_broken_or_of_another_version_takes_no_other_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let desired = open(&dir);
        for name in ["a", "b", "c"] {
            desired.want(&spec(name), None).await.unwrap();
        }
        let path = |name: &str| dir.path().join("targets").join(name);
        std::fs::write(path("a.json"), "{\"version\"").unwrap();
        let newer = std::fs::read_to_string(path("b.json")).unwrap().replacen('1', "99", 1);
        std::fs::write(path("b.json"), newer).unwrap();
        assert_eq!(names(&open(&dir)), ["c"]);
        assert!(path("a.json.unusable").exists() && path("b.json.version-99").exists());
        assert_eq!(names(&open(&dir)), ["c"], "what was set aside stays there");
    }

    #[tokio::test(start_paused = true)]
    async fn change_that_the_disk_takes_too_late_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let desired = open(&dir);
        desired.want(&spec("a"), None).await.unwrap();
        let (resume, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = std::sync::Mutex::new(hangs);
        let path = dir.path().join("targets/b.json");
        let file = path.clone();
        let hung = desired.change(
            move |_, desired| {
                let _ = hangs.lock().unwrap().recv();
                match desired.targets.contains_key(&"b".parse().unwrap()) {
                    true => std::fs::write(&file, "{}").unwrap(),
                    false => std::fs::remove_file(&file).unwrap(),
                }
                Ok(())
            },
            |desired| {
                desired.targets.insert("b".parse().unwrap(), spec("b"));
                Ok(())
            },
        );
        let c = spec("c");
        let passes = tokio::time::advance(WRITE_TIMEOUT + Duration::from_millis(1));
        let (fault, behind, ()) = tokio::join!(hung, desired.want(&c, None), passes);
        assert_eq!(fault.unwrap_err().code, Code::StateUnwritable);
        assert_eq!(behind.unwrap_err().code, Code::StateUnwritable, "it waits for its turn");
        assert_eq!(names(&desired), ["a"]);
        resume.send(()).unwrap();
        resume.send(()).unwrap();
        desired.want(&spec("d"), None).await.unwrap();
        assert!(!path.exists());
        assert_eq!(names(&desired), ["a", "d"]);
        assert_eq!(names(&open(&dir)), ["a", "d"]);
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
        desired.forget(&target).await.unwrap();
        assert!(desired.volumes(&target).is_empty() && open(&dir).volumes(&target).is_empty());
    }
}
