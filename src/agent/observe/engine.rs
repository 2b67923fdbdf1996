//! The engine: whether it answers, its process, its files, its unit.

use std::sync::{Arc, Mutex};

use super::blocking;
pub use crate::docker::Engine as Answers;
use crate::docker::EngineError;
use crate::host::systemd::Systemd;
use crate::host::{Root, daemon_json, facts, packages, process};
use crate::model::engine::{
    EngineApi, EngineProcess, EngineSeen, EngineVersion, Init, PackageManager,
};
use crate::model::fault::{Fault, chain};
use crate::model::policy::EnginePolicy;

/// Looks at the engine of one machine.
#[derive(Debug)]
pub struct EngineObserver<E> {
    root: Root,
    policy: EnginePolicy,
    engine: Arc<E>,
    systemd: Arc<Systemd>,
    init: Init,
    /// The version that a process told: asking it is dear, and it cannot change while it lives.
    told: Mutex<Option<(EngineProcess, EngineVersion)>>,
}

impl<E: Answers> EngineObserver<E> {
    /// An observer of the engine that `policy` describes.
    pub fn new(
        root: &Root,
        policy: EnginePolicy,
        engine: Arc<E>,
        systemd: Arc<Systemd>,
    ) -> EngineObserver<E> {
        let init = facts::init(root);
        EngineObserver { root: root.clone(), policy, engine, systemd, init, told: Mutex::new(None) }
    }

    /// Everything the engine planner looks at. A hung engine costs the ping deadline and is told as
    /// [`EngineApi::Broken`].
    ///
    /// # Errors
    /// Only when the agent itself breaks.
    pub async fn look(&self) -> Result<EngineSeen, Fault> {
        if self.init == Init::Systemd {
            return self.look_through_systemd().await;
        }
        let (api, files) = tokio::join!(self.engine.ping(self.policy.ping_timeout), self.files());
        let mut seen = files?;
        seen.api = self.answer(api, seen.process.as_ref()).await;
        self.doubt_installation(seen).await
    }

    /// Where systemd listens on the engine's socket in its stead, connecting would start an engine
    /// that is not configured yet; so it is asked only when it runs.
    async fn look_through_systemd(&self) -> Result<EngineSeen, Fault> {
        let (unit, files) = tokio::join!(self.systemd.unit(&self.policy.unit), self.files());
        let mut seen = files?;
        match unit {
            Ok(unit) => seen.unit = Some(unit),
            Err(e) => seen.unit_error = Some(chain(&e)),
        }
        let active = seen.unit.as_ref().is_some_and(|unit| unit.active == "active");
        if seen.process.is_some() || active {
            let api = self.engine.ping(self.policy.ping_timeout).await;
            seen.api = self.answer(api, seen.process.as_ref()).await;
        }
        self.doubt_installation(seen).await
    }

    /// An engine that does not run and whose packages were left half-way is not installed, though
    /// its executable is there.
    async fn doubt_installation(&self, mut seen: EngineSeen) -> Result<EngineSeen, Fault> {
        let stopped = seen.api == EngineApi::Absent && seen.process.is_none();
        if stopped && seen.installed.is_some() && seen.package_manager == Some(PackageManager::Apt)
        {
            let (root, sets) = (self.root.clone(), self.policy.packages.clone());
            let half = move || {
                let sets = sets.get(&PackageManager::Apt).map(Vec::as_slice).unwrap_or_default();
                packages::half_installed(&root, sets)
            };
            if blocking(half).await? {
                seen.installed = None;
            }
        }
        Ok(seen)
    }

    async fn files(&self) -> Result<EngineSeen, Fault> {
        let (root, policy, init) = (self.root.clone(), self.policy.clone(), self.init.clone());
        blocking(move || EngineSeen {
            api: EngineApi::Absent,
            process: process::engine_process(&root, &policy.pid_file, &policy.binary),
            installed: process::find_executable(&root, &policy.binary),
            daemon_json: daemon_json::read(&root, &policy.daemon_json),
            init,
            unit: None,
            unit_error: None,
            package_manager: packages::find(&root),
        })
        .await
    }

    async fn answer(
        &self,
        ping: Result<(), EngineError>,
        process: Option<&EngineProcess>,
    ) -> EngineApi {
        match ping {
            Ok(()) => self.version(process).await,
            Err(error) => unanswered(&error),
        }
    }

    async fn version(&self, process: Option<&EngineProcess>) -> EngineApi {
        if let Some(process) = process
            && let Some((told_by, version)) = &*self.told()
            && told_by == process
        {
            return EngineApi::Answers(version.clone());
        }
        match self.engine.version(self.policy.ping_timeout).await {
            Ok(version) => {
                *self.told() = process.map(|process| (process.clone(), version.clone()));
                EngineApi::Answers(version)
            }
            Err(error) => unanswered(&error),
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Option<(EngineProcess, EngineVersion)>> {
        self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn unanswered(error: &EngineError) -> EngineApi {
    match error {
        EngineError::Absent { .. } => EngineApi::Absent,
        other => EngineApi::Broken(chain(other)),
    }
}
