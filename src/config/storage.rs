//! Validation of the settings of the storage's client.

use crate::model::policy::StoragePolicy;
use crate::model::storage::name_problem;

impl StoragePolicy {
    /// Finds the first invalid setting: its key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let lists =
            [("storage.packages", &self.packages), ("storage.repositories", &self.repositories)];
        lists.into_iter().find_map(|(key, names)| {
            let problem = names.iter().find_map(|name| name_problem(name))?;
            Some((key, problem))
        })
    }
}
