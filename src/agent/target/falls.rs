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

    /// Writes them down; none of them is no file.
    pub(super) async fn keep(&self, name: &TargetName, failures: Failures) {
        let (store, file) = (self.0.clone(), file(name));
        let kept = blocking(move || match failures == Failures::default() {
            true => store.remove_of_boot(&file),
            false => store.write(&file, &failures, Durability::Boot),
        });
        let fault = match kept.await {
            Ok(Ok::<(), StoreError>(())) => return,
            Ok(Err(e)) => e.into(),
            Err(fault) => fault,
        };
        tracing::warn!(
            target_name = %name, error = %fault,
            "the falls of {name} would be forgotten if the agent died now"
        );
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
        open().keep(&name, Failures::default()).await;
        open().keep(&name, Failures::default()).await;
        assert_eq!(open().of(&name), Failures::default());
        let store = Store::look(dir.path().join("state"), dir.path().join("run"));
        assert_eq!(store.list(FOLDER, Durability::Boot).unwrap(), Vec::<String>::new());
    }
}
