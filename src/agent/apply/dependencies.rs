//! Installation of the packages of the storage's client, by the same rules as that of the engine's: nothing is removed for
//! them, and the package manager is never killed.

use std::time::Duration;

use super::install::Installation;
use crate::host::spawn::Spawner;
use crate::host::{Root, packages};
use crate::model::fault::Fault;
use crate::model::policy::EnginePolicy;
use crate::model::storage::InstallDependencies;

/// Applier for the packages of the storage's client.
#[derive(Debug, Clone)]
pub struct DependencyApplier<S> {
    root: Root,
    spawner: S,
    /// Settings for the package manager.
    policy: EnginePolicy,
}

impl<S: Spawner> DependencyApplier<S> {
    pub fn new(root: &Root, spawner: S, policy: EnginePolicy) -> DependencyApplier<S> {
        DependencyApplier { root: root.clone(), spawner, policy }
    }

    /// Time limit of an installation.
    pub fn within(&self) -> Duration {
        self.policy.install_timeout
    }

    /// Installs or updates the packages; lines of output go to `line`.
    ///
    /// # Errors
    /// Fault with the package manager's reason and a remedy.
    pub async fn install(
        &self,
        step: &InstallDependencies,
        line: impl Fn(String) + Send + Sync,
    ) -> Result<(), Fault> {
        let mut policy = self.policy.clone();
        policy.install_args.extend(packages::only_from(step.manager, &step.repositories));
        let installation =
            Installation::new(&self.root, &self.spawner, &policy, step.manager, line);
        installation.run(std::slice::from_ref(&step.packages)).await.map(drop)
    }
}
