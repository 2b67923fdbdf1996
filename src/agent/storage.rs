//! The storage as the controller has this node check it and prepare for it, where no legacy agent does that.
//!
//! Both are slow, and a storage that hangs makes them hang: each is a run beside everything else, of which there are few at
//! a time, shared by equal requests.

use std::sync::Arc;
use std::time::Duration;

use super::apply::dependencies::DependencyApplier;
use super::apply::engine::Spawns;
use super::observe::storage::{StorageObserver, late};
use super::shared_runs::{NoOutcome, SharedRuns};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::StoragePolicy;
use crate::model::prepare::Outcome;
use crate::model::storage::{Dependencies, HeartbeatVolume};
use crate::plan::storage::install;

/// Maximum of volumes that are read at the same time. A node has one heartbeat volume for each storage.
const MOST_READS: usize = 4;
/// Maximum of installations at the same time: package managers lock each other out.
const MOST_INSTALLATIONS: usize = 1;
/// Time for a killed process to be reaped, and for observations beside the work.
const SLACK: Duration = Duration::from_secs(2);
/// Time for observations beside an installation.
const INSTALLATION_SLACK: Duration = Duration::from_secs(120);

/// Client of the storage, with its runs under way.
#[derive(Debug)]
pub struct StorageClient<S> {
    parts: Arc<StorageParts<S>>,
    reads: SharedRuns<HeartbeatVolume, ()>,
    installations: SharedRuns<Dependencies, Outcome>,
}

#[derive(Debug)]
struct StorageParts<S> {
    observer: StorageObserver<S>,
    applier: DependencyApplier<S>,
    policy: StoragePolicy,
}

impl<S: Spawns> StorageClient<S> {
    pub fn new(
        observer: StorageObserver<S>,
        applier: DependencyApplier<S>,
        policy: StoragePolicy,
    ) -> StorageClient<S> {
        StorageClient {
            parts: Arc::new(StorageParts { observer, applier, policy }),
            reads: SharedRuns::new(MOST_READS),
            installations: SharedRuns::new(MOST_INSTALLATIONS),
        }
    }

    /// Reads the heartbeat volume, or joins a read of it that is under way.
    ///
    /// # Errors
    /// `storage-client-missing`, `storage-unreachable`, and `storage-busy` if too many other volumes are being read.
    pub async fn read_heartbeat(&self, volume: HeartbeatVolume) -> Result<(), Fault> {
        let within = self.parts.policy.heartbeat_timeout;
        let (parts, read) = (self.parts.clone(), volume.clone());
        let work = async move { parts.observer.read_heartbeat(&read, within).await };
        match self.reads.share(volume.clone(), within + SLACK, work).await {
            Ok(outcome) => outcome,
            Err(NoOutcome::Late) => {
                let text = format!("{}; its process has not ended yet", late(&volume, within));
                Err(Fault::new(Code::StorageUnreachable, text))
            }
            Err(NoOutcome::Full) => {
                let text = format!(
                    "{volume} is not read now: {MOST_READS} other volumes are, and hang perhaps; call again later"
                );
                Err(Fault::new(Code::StorageBusy, text))
            }
        }
    }

    /// Sees to it that packages are installed, or joins the run of an equal request.
    ///
    /// # Errors
    /// `dependency-not-installed` if the settings do not list what is missing, `storage-busy` during another installation,
    /// and the faults of an installation.
    pub async fn provide(&self, wanted: Dependencies) -> Result<Outcome, Fault> {
        let within = self.parts.applier.within() + INSTALLATION_SLACK;
        let (parts, asked) = (self.parts.clone(), wanted.clone());
        let work = async move { parts.provide(&asked).await };
        match self.installations.share(wanted.clone(), within, work).await {
            Ok(outcome) => outcome,
            Err(NoOutcome::Late) => {
                let text = format!(
                    "{} was not installed within {within:?}: see the log of the package manager, then call again",
                    wanted.packages().join(" ")
                );
                Err(Fault::new(Code::PackageManagerTimeout, text))
            }
            Err(NoOutcome::Full) => {
                let text = "other packages are being installed for the storage: call again later";
                Err(Fault::new(Code::StorageBusy, text))
            }
        }
    }
}

impl<S: Spawns> StorageParts<S> {
    async fn provide(&self, wanted: &Dependencies) -> Result<Outcome, Fault> {
        let packages = wanted.packages();
        let seen = self.observer.dependencies(packages).await?;
        let Some(step) = install(wanted, &seen, &self.policy)? else { return Ok(Outcome::Holds) };
        let names = packages.join(" ");
        tracing::info!(manager = %step.manager, "{names} is installed or updated, for the controller requires it");
        let line = |text: String| tracing::debug!("{}: {text}", step.manager);
        self.applier.install(&step, line).await?;
        match self.observer.dependencies(packages).await?.installed {
            true => Ok(Outcome::Changed),
            false => {
                let text = format!(
                    "{} reported success, and {names} is not installed all the same: see its log",
                    step.manager
                );
                Err(Fault::new(Code::PackageManagerFailed, text))
            }
        }
    }
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
