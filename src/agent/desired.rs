//! The targets that this node is to have: on the disk before an order for one is carried out, one file
//! each, and published to whoever has to know.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::observe::blocking;
use crate::model::fault::Fault;
use crate::model::target::{Desired, TargetName, TargetSpec, Work};
use crate::store::{Durability, Store};

/// The folder of the files.
const FOLDER: &str = "targets";
/// The form of the files.
const VERSION: u32 = 1;

/// A target as its file has it.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: u32,
    spec: TargetSpec,
}

/// What is wanted; clones are one.
#[derive(Debug, Clone)]
pub struct DesiredTargets {
    store: Store,
    told: Arc<watch::Sender<Desired>>,
}

/// Shows that a target is worked on, as long as it lives.
#[derive(Debug)]
pub struct AtWork<'a> {
    of: &'a DesiredTargets,
    name: TargetName,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.of.told.send_modify(|desired| {
            desired.at_work.remove(&self.name);
        });
    }
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
            let Some(entry) = store.read::<Entry>(&path, Durability::Disk)? else { continue };
            if entry.version != VERSION {
                store.set_aside(&path, Durability::Disk, "it is of another version of the agent");
                continue;
            }
            desired.targets.insert(entry.spec.name.clone(), entry.spec);
        }
        Ok(DesiredTargets { store, told: Arc::new(watch::Sender::new(desired)) })
    }

    /// What is wanted, now and from now on.
    pub fn watch(&self) -> watch::Receiver<Desired> {
        self.told.subscribe()
    }

    /// One that is worked on until the returned value is dropped.
    pub fn at_work(&self, name: &TargetName, work: Work) -> AtWork<'_> {
        self.told.send_modify(|desired| {
            desired.at_work.insert(name.clone(), work);
        });
        AtWork { of: self, name: name.clone() }
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
        let (store, entry) = (self.store.clone(), Entry { version: VERSION, spec: spec.clone() });
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
        assert!(path("a.json.unusable").exists() && path("b.json.unusable").exists());
        assert_eq!(names(&open(&dir)), ["c"], "what was set aside stays there");
    }

    #[tokio::test]
    async fn who_is_at_work_is_seen_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let desired = open(&dir);
        let told = desired.watch();
        let work = desired.at_work(&"a".parse().unwrap(), Work::BringUp);
        assert_eq!(told.borrow().at_work.len(), 1);
        drop(work);
        assert!(told.borrow().at_work.is_empty());
    }
}
