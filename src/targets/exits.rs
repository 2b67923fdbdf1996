//! Exits of targets, kept for the next agent: so the exit of a target counts as a repeated one even if its agent died
//! with it. The records are in the folder that a reboot empties, because a reboot also ends the guests for whose sake
//! they are kept.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::writes::Writes;
use crate::model::fault::{Fault, chain};
use crate::model::target::TargetName;
use crate::plan::lifecycle::LifecycleRecord;
use crate::plan::quarantine;
use crate::store::{Durability, Store, StoreError};

/// Folder with the failures of each target.
const FOLDER: &str = "falls";
/// Folder with the process of each target that has answered.
const PROCESSES: &str = "processes";
/// Folder with the quarantine of each target: the volumes that took it down, or may have.
const QUARANTINE: &str = "quarantine";

/// Stored exits of all targets.
#[derive(Debug, Clone)]
pub struct Exits {
    store: Store,
    writes: Writes,
}

impl Exits {
    /// Opens the exits in `store`.
    pub fn new(store: Store) -> Exits {
        Exits { store, writes: Writes::default() }
    }

    /// Record of one target. One that cannot be read counts as no exits: the target is healed at once.
    pub(super) fn of(&self, name: &TargetName) -> LifecycleRecord {
        LifecycleRecord { failures: self.read(FOLDER, name), process: self.read(PROCESSES, name) }
    }

    fn read<T: DeserializeOwned + Default>(&self, folder: &str, name: &TargetName) -> T {
        match self.store.read(&file(folder, name), Durability::Boot) {
            Ok(known) => known.unwrap_or_default(),
            Err(e) => {
                tracing::warn!(
                    target_name = %name, error = %e,
                    "{name}: the record {} cannot be read, and counts as empty: {}", file(folder, name), chain(&e)
                );
                T::default()
            }
        }
    }

    /// Writes those parts of `known` that differ from `written`; a default part has no file. Returns `false` if that
    /// failed.
    pub(super) async fn keep(
        &self,
        name: &TargetName,
        written: LifecycleRecord,
        known: LifecycleRecord,
    ) -> bool {
        let of = name.clone();
        let write = move |store: &Store| {
            if known.failures != written.failures {
                write(store, &file(FOLDER, &of), known.failures)?;
            }
            if known.process != written.process {
                write(store, &file(PROCESSES, &of), known.process)?;
            }
            Ok(())
        };
        let Err(fault) = self.write(write).await else { return true };
        tracing::warn!(
            target_name = %name, error = %fault,
            "{name}: the record of its exits could not be written: if the agent is restarted now, it does not know them: {fault}"
        );
        false
    }

    async fn write(
        &self,
        write: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), Fault> {
        let store = self.store.clone();
        let turn = self.writes.turn().await?;
        let (_turn, written) = turn.write(move || write(&store), drop).await?;
        Ok(written?)
    }

    /// Quarantine of the volumes of a target; empty if it cannot be read.
    pub(super) fn quarantine(&self, name: &TargetName) -> quarantine::QuarantineRecord {
        self.read(QUARANTINE, name)
    }

    /// Writes the quarantine. Returns `false` if that failed.
    pub(super) async fn keep_quarantine(
        &self,
        name: &TargetName,
        known: quarantine::QuarantineRecord,
    ) -> bool {
        let file = file(QUARANTINE, name);
        let Err(fault) = self.write(move |store| write(store, &file, known)).await else {
            return true;
        };
        tracing::warn!(
            target_name = %name, error = %fault,
            "{name}: the record of its quarantined volumes could not be written: if the agent is restarted \
             now, it makes these volumes together with all others in place of holding them back: {fault}"
        );
        false
    }

    /// Removes the records of all targets that are not in `names`: their removal could not be noted at the time.
    pub(super) fn keep_only(&self, names: &[TargetName]) {
        let kept: Vec<String> = names.iter().map(|name| format!("{name}.json")).collect();
        for folder in [FOLDER, PROCESSES, QUARANTINE] {
            let others = self.store.list(folder, Durability::Boot).unwrap_or_default();
            for other in others.iter().filter(|other| !kept.contains(other)) {
                if let Err(e) = self.store.remove(&format!("{folder}/{other}"), Durability::Boot) {
                    tracing::warn!(
                        file = other, error = %e,
                        "{folder}/{other}: the record of a target that is no longer desired could not be removed: {}",
                        chain(&e)
                    );
                }
            }
        }
    }
}

fn write<T: Serialize + Default + PartialEq>(
    store: &Store,
    file: &str,
    known: T,
) -> Result<(), StoreError> {
    match known == T::default() {
        true => store.remove(file, Durability::Boot),
        false => store.write(file, &known, Durability::Boot),
    }
}

fn file(folder: &str, name: &TargetName) -> String {
    format!("{folder}/{name}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::lifecycle::Answered;
    use crate::plan::retry::Failures;

    #[tokio::test]
    async fn exits_are_known_to_the_next_agent_until_they_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            || Exits::new(Store::open(dir.path().join("state"), dir.path().join("run")).unwrap());
        let (name, other): (TargetName, TargetName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let none = LifecycleRecord::default();
        assert_eq!(open().of(&name), none);
        let twice = LifecycleRecord {
            failures: Failures { failures: 2, waits: 1 },
            process: Answered { pid: Some(7), served: true },
        };
        open().keep(&name, none, twice).await;
        assert_eq!((open().of(&name), open().of(&other)), (twice, none));
        open().keep_only(std::slice::from_ref(&name));
        assert_eq!(open().of(&name), twice);
        open().keep_only(std::slice::from_ref(&other));
        assert_eq!(open().of(&name), none);
        assert!(open().keep(&name, none, twice).await);
        assert!(open().keep(&name, twice, none).await);
        assert!(open().keep(&name, twice, none).await);
        assert_eq!(open().of(&name), none);
        let store = Store::look(dir.path().join("state"), dir.path().join("run"));
        for folder in [FOLDER, PROCESSES] {
            assert_eq!(store.list(folder, Durability::Boot).unwrap(), Vec::<String>::new());
        }
    }
}
