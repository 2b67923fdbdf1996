//! The seams: what one room asks of another, tied to the concrete types that answer it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::agent::desired::DesiredTargets;
use crate::agent::engine::Engine;
use crate::agent::memory::ReclaimOrder;
use crate::agent::observe::hypervisor::Hypervisor;
use crate::agent::pools::Pools;
use crate::agent::proof::ProvesIo;
use crate::agent::target::{LooksAfterNode, TellsHealth};
use crate::api::fallback::{self, Fallback};
use crate::api::zstack::host::AsksVersions;
use crate::config::Settings;
use crate::docker::client::DockerClient;
use crate::health::deep::DeepProbe;
use crate::health::watch::Watchers;
use crate::host::spawn::Processes;
use crate::host::{Root, facts};
use crate::model::deep::DeepHealth;
use crate::model::engine::Init;
use crate::model::observation::Observation;
use crate::model::path::CleanPath;
use crate::model::target::{TargetHealth, TargetName};
use crate::model::units::PageSize;

/// What the owners of targets need of the others.
pub(super) struct AfterTargets {
    /// Where nobody else starts an engine that ended.
    engine: Option<Engine>,
    watchers: Arc<Watchers<DockerClient>>,
    pools: Pools,
    desired: DesiredTargets,
    keep: u64,
    /// How long the node stays without volumes until their pages are given back.
    after: Duration,
    /// One at a time.
    gives_back: Arc<Semaphore>,
}

impl AfterTargets {
    /// How long its start is waited for; it goes on by itself.
    const RAISE_TIME: Duration = Duration::from_secs(30);

    pub(super) fn new(
        settings: &Settings,
        root: &Root,
        engine: Engine,
        watchers: &Arc<Watchers<DockerClient>>,
        pools: &Pools,
        desired: &DesiredTargets,
    ) -> AfterTargets {
        let policy = settings.engine_policy();
        let alone = policy.manage && facts::init(root) != Init::Systemd;
        AfterTargets {
            engine: alone.then_some(engine),
            watchers: watchers.clone(),
            pools: pools.clone(),
            desired: desired.clone(),
            keep: settings.volume.keep_pages,
            after: settings.volume.give_back_after.0,
            gives_back: Arc::new(Semaphore::new(1)),
        }
    }
}

impl LooksAfterNode for AfterTargets {
    fn engine_runs(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(self.watchers.engine_runs())
    }

    fn raise_engine(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async {
            let Some(engine) = &self.engine else { return false };
            let raise = async {
                // Started, but never installed: one that was taken away was not wanted any more.
                let plan = engine.prepare(true).await;
                if plan.steps.iter().any(|step| step.step == "install") {
                    tracing::warn!("the engine is not installed any more: prepare the node again");
                    return None;
                }
                Some(engine.prepare(false).await)
            };
            // An installation may be at work there: it goes on by itself.
            let Ok(Some(report)) = timeout(AfterTargets::RAISE_TIME, raise).await else {
                return false;
            };
            if let Some(fault) = report.errors.first() {
                tracing::warn!(code = %fault.code, "the engine could not be started again: {fault}");
            }
            report.errors.is_empty()
        })
    }

    fn no_volumes_left(&self) {
        let Ok(place) = self.gives_back.clone().try_acquire_owned() else { return };
        let (pools, desired) = (self.pools.clone(), self.desired.clone());
        let (keep, after) = (self.keep, self.after);
        tokio::spawn(async move {
            let _place = place;
            sleep(after).await;
            if desired.volume_count() > 0 {
                return;
            }
            let order =
                ReclaimOrder { size: Some(PageSize::MIB_2), keep, ..ReclaimOrder::default() };
            let given = pools.reclaim(order).await;
            let errors = given.map_or_else(|fault| vec![fault], |report| report.errors);
            for fault in errors {
                tracing::warn!(code = %fault.code, "pages were not given back after the last volume: {fault}");
            }
        });
    }
}

/// The watchers as owners and handlers ask them.
pub(super) struct Healths(pub(super) Arc<Watchers<DockerClient>>);

impl TellsHealth for Healths {
    fn health<'a>(
        &'a self,
        name: &'a TargetName,
        control: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>> {
        Box::pin(self.0.health(name, control))
    }

    fn last_answers(&self) -> Vec<(TargetName, Duration)> {
        self.0.last_answers()
    }

    fn watch(&self, name: &TargetName, control: &CleanPath) -> watch::Receiver<Arc<Observation>> {
        self.0.watch(name, control)
    }

    fn look_again<'a>(
        &'a self,
        name: &'a TargetName,
        control: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>> {
        Box::pin(self.0.look_again(name, control))
    }
}

/// The deep probe as the handlers ask it.
pub(super) struct Proofs(pub(super) DeepProbe);

impl ProvesIo for Proofs {
    fn prove<'a>(
        &'a self,
        control: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = DeepHealth> + Send + 'a>> {
        Box::pin(self.0.prove(control))
    }
}

/// The hypervisor's versions as the compatible routes ask for them.
pub(super) struct Versions(pub(super) Hypervisor<Processes>);

impl AsksVersions for Versions {
    fn versions(&self) -> Pin<Box<dyn Future<Output = (String, String)> + Send + '_>> {
        Box::pin(async {
            let versions = self.0.versions().await;
            (versions.libvirt, versions.qemu)
        })
    }
}

/// The way to the legacy agent, where the settings name one.
pub(super) fn fallback(settings: &Settings, connections: usize) -> Option<Fallback> {
    let address = settings.fallback()?;
    let limits = fallback::Limits {
        // The other connections are left to the agent's own routes.
        requests: (connections / 2).max(1),
        idle: settings.http.body_timeout.0,
    };
    tracing::info!(%address, "what this agent does not serve goes to {address} (fallback_url)");
    Some(Fallback::new(address, settings.listen, limits))
}
