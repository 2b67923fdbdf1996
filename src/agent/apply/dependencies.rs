//! Installation of the packages of the storage's client, by the same rules as that of the engine's: nothing is removed for
//! them, and the package manager is never killed.

use std::time::Duration;

use super::install::{InstallSubject, Installation};
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

    /// `true` if the operator lets the agent install packages.
    pub fn may_install(&self) -> bool {
        self.policy.install
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
        // The arguments in the settings are for the engine's packages and their repositories.
        let install_args =
            packages::only_from(step.manager, &step.repositories).unwrap_or_default();
        let policy = EnginePolicy { install_args, ..self.policy.clone() };
        let subject = (step.manager, InstallSubject::StorageClient);
        let installation = Installation::new(&self.root, &self.spawner, &policy, subject, line);
        installation.run(std::slice::from_ref(&step.packages)).await.map(drop)
    }
}
