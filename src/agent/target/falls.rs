//! What is remembered of targets' falls while no agent runs: who died together with its agent, and fell
//! shortly before, falls again. In the folder that a reboot empties, for with the guests of before it goes
//! what it was remembered for.

use super::super::observe::blocking;
use crate::health::backoff::Failures;
use crate::model::target::TargetName;
use crate::store::{Durability, Store, StoreError};

/// The folder of their files.
const FOLDER: &str = "falls";

/// The falls of all targets.
#[derive(Debug, Clone)]
pub struct Falls(Store);

impl Falls {
    /// Those that this folder holds.
    pub fn new(store: Store) -> Falls {
        Falls(store)
    }

    /// Those of one target. One that cannot be read is a target that never fell: it is healed at once.
    pub(super) fn of(&self, name: &TargetName) -> Failures {
        match self.0.read(&file(name), Durability::Boot) {
            Ok(failures) => failures.unwrap_or_default(),
            Err(e) => {
                tracing::warn!(target_name = %name, error = %e, "the falls of {name} are not known any more");
                Failures::default()
            }
        }
    }

    /// Writes them down; none of them is no file. Returns whether that could be done.
    pub(super) async fn keep(&self, name: &TargetName, failures: Failures) -> bool {
        let (store, file) = (self.0.clone(), file(name));
        let kept = blocking(move || match failures == Failures::default() {
            true => store.remove(&file, Durability::Boot),
            false => store.write(&file, &failures, Durability::Boot),
        });
        let fault = match kept.await {
            Ok(Ok::<(), StoreError>(())) => return true,
            Ok(Err(e)) => e.into(),
            Err(fault) => fault,
        };
        tracing::warn!(
            target_name = %name, error = %fault,
            "how often {name} has fallen cannot be written down: an agent that started now would not know it"
        );
        false
    }

    /// Forgets those of all other targets, which were taken away while that could not be noted.
    pub(super) fn keep_only(&self, names: &[TargetName]) {
        let kept: Vec<String> = names.iter().map(|name| format!("{name}.json")).collect();
        let others = self.0.list(FOLDER, Durability::Boot).unwrap_or_default();
        for other in others.iter().filter(|other| !kept.contains(other)) {
            if let Err(e) = self.0.remove(&format!("{FOLDER}/{other}"), Durability::Boot) {
                tracing::warn!(file = other, error = %e, "the falls of a target that is not wanted stay");
            }
        }
    }
}

fn file(name: &TargetName) -> String {
    format!("{FOLDER}/{name}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn falls_are_known_to_the_next_agent_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            || Falls::new(Store::open(dir.path().join("state"), dir.path().join("run")).unwrap());
        let (name, other): (TargetName, TargetName) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(open().of(&name), Failures::default());
        let twice = Failures { failures: 2, waits: 1 };
        open().keep(&name, twice).await;
        assert_eq!((open().of(&name), open().of(&other)), (twice, Failures::default()));
        open().keep_only(std::slice::from_ref(&name));
        assert_eq!(open().of(&name), twice);
        open().keep_only(std::slice::from_ref(&other));
        assert_eq!(open().of(&name), Failures::default());
        assert!(open().keep(&name, twice).await);
        assert!(open().keep(&name, Failures::default()).await);
        assert!(open().keep(&name, Failures::default()).await);
        assert_eq!(open().of(&name), Failures::default());
        let store = Store::look(dir.path().join("state"), dir.path().join("run"));
        assert_eq!(store.list(FOLDER, Durability::Boot).unwrap(), Vec::<String>::new());
    }
}
