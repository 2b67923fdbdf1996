//! The storage as the controller has this node check it and prepare for it, where no legacy agent does that.
//!
//! Both are slow, and a storage that hangs makes them hang: each is a run beside everything else, of which there are few at
//! a time, shared by equal requests.

use std::sync::Arc;
use std::time::Duration;

use super::apply::dependencies::DependencyApplier;
use super::apply::engine::Spawns;
use super::observe::storage::{RPM_ANSWER, StorageObserver, late};
use super::shared_runs::{NoOutcome, SharedRuns};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::StoragePolicy;
use crate::model::prepare::Outcome;
use crate::model::storage::{Dependencies, DependenciesSeen, HeartbeatVolume, InstallDependencies};
use crate::plan::storage::install;

/// Maximum of volumes that are read at the same time. A node has one heartbeat volume for each storage.
const MOST_READS: usize = 16;
/// Maximum of observations of packages at the same time.
const MOST_LOOKS: usize = 4;
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
    /// Observations of packages: `true` if nothing has to be installed.
    looks: SharedRuns<Dependencies, bool>,
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
            reads: SharedRuns::new(MOST_READS, policy.heartbeat_timeout),
            looks: SharedRuns::new(MOST_LOOKS, RPM_ANSWER),
            installations: SharedRuns::new(MOST_INSTALLATIONS, applier.within()),
            parts: Arc::new(StorageParts { observer, applier, policy }),
        }
    }

    /// Reads the heartbeat volume, or joins a read of it that is under way.
    ///
    /// # Errors
    /// `storage-client-missing`, `storage-unreachable`, and `storage-busy` if too many other volumes are being read for as
    /// long as this read may take.
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
                    "{volume} was not read within {within:?}: {MOST_READS} other volumes are being read, and hang perhaps; call \
                     again later"
                );
                Err(Fault::new(Code::StorageBusy, text))
            }
        }
    }

    /// Sees to it that packages are installed, or joins the run of an equal request. An installation waits for another one
    /// as long as it may take itself.
    ///
    /// # Errors
    /// `dependency-not-installed` if the settings do not let the agent install what is missing, `storage-busy` if other
    /// installations do not end, and the faults of an observation or an installation.
    pub async fn provide(&self, wanted: Dependencies) -> Result<Outcome, Fault> {
        if self.is_provided(&wanted).await? {
            return Ok(Outcome::Holds);
        }
        let within = self.parts.applier.within() + INSTALLATION_SLACK;
        let (parts, asked) = (self.parts.clone(), wanted.clone());
        let work = async move { parts.provide(&asked).await };
        let outcome = self.installations.share(wanted.clone(), within, work).await;
        outcome.unwrap_or_else(|why| Err(not_provided(why, &wanted, "installed", within)))
    }

    /// `true` if nothing has to be installed. Observed beside installations: most calls need none.
    async fn is_provided(&self, wanted: &Dependencies) -> Result<bool, Fault> {
        let within = RPM_ANSWER + SLACK;
        let (parts, asked) = (self.parts.clone(), wanted.clone());
        let work = async move { Ok(parts.planned(&asked).await?.0.is_none()) };
        let outcome = self.looks.share(wanted.clone(), within, work).await;
        outcome.unwrap_or_else(|why| Err(not_provided(why, wanted, "found", within)))
    }
}

/// Fault of packages that were not `done` with because of others, or not in time.
fn not_provided(why: NoOutcome, wanted: &Dependencies, done: &str, within: Duration) -> Fault {
    let packages = wanted.packages().join(" ");
    match why {
        NoOutcome::Late => {
            let text = format!(
                "{packages} was not {done} within {within:?}: see the log of the package manager and whether one hangs, \
                 then call again"
            );
            Fault::new(Code::PackageManagerTimeout, text)
        }
        NoOutcome::Full => {
            let text = format!(
                "{packages} was not {done}: other packages are being {done} for the storage; call again later"
            );
            Fault::new(Code::StorageBusy, text)
        }
    }
}

impl<S: Spawns> StorageParts<S> {
    /// Installation that is needed, if any, and the observation that it was planned on.
    async fn planned(
        &self,
        wanted: &Dependencies,
    ) -> Result<(Option<InstallDependencies>, DependenciesSeen), Fault> {
        let seen = self.observer.dependencies(wanted.packages()).await?;
        let step = install(wanted, &seen, &self.policy, self.applier.may_install())?;
        Ok((step, seen))
    }

    async fn provide(&self, wanted: &Dependencies) -> Result<Outcome, Fault> {
        // An installation before this one may have brought what is wanted.
        let (Some(step), before) = self.planned(wanted).await? else { return Ok(Outcome::Holds) };
        let packages = wanted.packages();
        let names = packages.join(" ");
        tracing::info!(manager = %step.manager, "{names} is installed or updated, for the controller requires it");
        let line = |text: String| tracing::debug!("{}: {text}", step.manager);
        self.applier.install(&step, line).await?;
        match self.observer.dependencies(packages).await?.versions {
            after @ Some(_) if after == before.versions => Ok(Outcome::Holds),
            Some(_) => Ok(Outcome::Changed),
            None => {
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
