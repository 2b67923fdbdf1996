//! Observation of the engine: its answer, its process, its files, its unit.
//!
//! Files are read on a blocking thread, and again only after the kernel reports a change: observing an
//! engine in place waits for nothing but the engine.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::blocking;
use crate::docker::{Engine, EngineError};
use crate::host::systemd::Systemd;
use crate::host::unchanged::Unchanged;
use crate::host::{Root, daemon_json, dpkg, facts, packages, process};
use crate::model::engine::{
    EngineApi, EngineProcess, EngineSeen, EngineVersion, Init, PackageManager,
};
use crate::model::fault::{Fault, chain};
use crate::model::policy::EnginePolicy;

/// [`Engine`] under a name that the engine's owner may use, as it does not use `docker` itself.
pub trait QueryEngine: Engine {}

impl<E: Engine> QueryEngine for E {}

/// Observer of the engine of one machine.
#[derive(Debug)]
pub struct EngineObserver<E> {
    root: Root,
    policy: EnginePolicy,
    engine: Arc<E>,
    systemd: Arc<Systemd>,
    init: Init,
    last_answer: Mutex<Option<LastAnswer>>,
    /// Facts read from the files of a running engine, valid while the files are unchanged.
    read: Mutex<Option<(EngineSeen, Unchanged)>>,
}

/// Last answer of an engine process.
#[derive(Debug, Clone)]
struct LastAnswer {
    by: EngineProcess,
    /// Kept because the query is expensive and the version cannot change while the process lives.
    version: EngineVersion,
    /// Time of the last ping that was answered.
    at: Instant,
}

impl<E: QueryEngine> EngineObserver<E> {
    /// Makes an observer of the engine that `policy` describes.
    pub fn new(
        root: &Root,
        policy: EnginePolicy,
        engine: Arc<E>,
        systemd: Arc<Systemd>,
    ) -> EngineObserver<E> {
        let init = facts::init(root);
        let (known, read) = (Mutex::new(None), Mutex::new(None));
        EngineObserver {
            root: root.clone(),
            policy,
            engine,
            systemd,
            init,
            last_answer: known,
            read,
        }
    }

    /// Observes the whole input of the engine planner. A hung engine costs the ping timeout and is reported
    /// as [`EngineApi::Broken`].
    ///
    /// # Errors
    /// Only when the agent itself fails.
    pub async fn look(&self) -> Result<EngineSeen, Fault> {
        let mut seen = self.files().await?;
        let unit = async {
            match seen.init {
                Init::Systemd => Some(self.systemd.unit(&self.policy.unit).await),
                Init::Other(_) => None,
            }
        };
        let (unit, api) = tokio::join!(unit, self.ask(seen.process.as_ref()));
        seen.api = api;
        match unit.transpose() {
            Ok(unit) => seen.unit = unit,
            Err(e) => seen.unit_error = Some(chain(&e)),
        }
        self.doubt_installation(seen).await
    }

    /// Treats a stopped engine with half-installed packages as not installed, even if its executable exists.
    async fn doubt_installation(&self, mut seen: EngineSeen) -> Result<EngineSeen, Fault> {
        let stopped = seen.api == EngineApi::Absent && seen.process.is_none();
        if stopped && seen.installed.is_some() && seen.package_manager == Some(PackageManager::Apt)
        {
            let (root, sets) = (self.root.clone(), self.policy.packages.clone());
            let half = move || {
                let sets = sets.get(&PackageManager::Apt).map(Vec::as_slice).unwrap_or_default();
                dpkg::half_installed(&root, sets)
            };
            if blocking(half).await? {
                seen.installed = None;
            }
        }
        Ok(seen)
    }

    async fn files(&self) -> Result<EngineSeen, Fault> {
        if let Some(seen) = self.read_before() {
            return Ok(seen);
        }
        let (root, policy, init) = (self.root.clone(), self.policy.clone(), self.init.clone());
        let old = lock(&self.read).take();
        let look = move || {
            drop(old);
            read(&root, &policy, init)
        };
        let (seen, unchanged) = blocking(look).await?;
        let read = unchanged.map(|unchanged| (seen.clone(), unchanged));
        // A concurrent observation may have come first.
        let other = std::mem::replace(&mut *lock(&self.read), read);
        if other.is_some() {
            blocking(move || drop(other)).await?;
        }
        Ok(seen)
    }

    /// Returns the files as read before, if unchanged since.
    fn read_before(&self) -> Option<EngineSeen> {
        let read = lock(&self.read);
        let (seen, _) = read.as_ref().filter(|(_, unchanged)| unchanged.still_holds())?;
        Some(seen.clone())
    }

    /// `true` if the next observation reads no file.
    #[cfg(test)]
    pub fn keeps_files(&self) -> bool {
        self.read_before().is_some()
    }

    /// Asks the engine whether it answers. A recent answer is reused, but only if this same `process` gave it.
    async fn ask(&self, process: Option<&EngineProcess>) -> EngineApi {
        let known = lock(&self.last_answer).clone().filter(|known| Some(&known.by) == process);
        if let Some(known) = &known
            && known.at.elapsed() < self.policy.ping_max_age
        {
            return EngineApi::Answers(known.version.clone());
        }
        let answer = async {
            let at = Instant::now();
            self.engine.ping(self.policy.ping_timeout).await?;
            let version = match known {
                Some(known) => known.version,
                None => self.engine.version(self.policy.ping_timeout).await?,
            };
            Ok((version, at))
        };
        match answer.await {
            Ok((version, at)) => {
                let by = process.cloned();
                *lock(&self.last_answer) =
                    by.map(|by| LastAnswer { by, version: version.clone(), at });
                EngineApi::Answers(version)
            }
            Err(error) => {
                *lock(&self.last_answer) = None;
                unanswered(&error)
            }
        }
    }
}

fn lock<T>(kept: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Reads files and procfs. Watches them only if an engine runs: those of a stopped engine are about to change.
fn read(root: &Root, policy: &EnginePolicy, init: Init) -> (EngineSeen, Option<Unchanged>) {
    let engine_process = || process::engine_process(root, &policy.pid_file, &policy.binary);
    let unchanged = engine_process()
        .and_then(|process| Unchanged::since_now(root, &paths(policy), Some(process.pid)));
    let seen = EngineSeen {
        api: EngineApi::Absent,
        process: engine_process(),
        installed: process::find_executable(root, &policy.binary),
        daemon_json: daemon_json::read(root, &policy.daemon_json),
        init,
        unit: None,
        unit_error: None,
        package_manager: packages::find(root),
    };
    (seen, unchanged)
}

/// Paths to watch: possible executables of the engine and of package managers, the pid file and `daemon.json`.
fn paths(policy: &EnginePolicy) -> Vec<String> {
    let mut paths = process::candidates(&policy.binary);
    for manager in PackageManager::ALL {
        paths.extend(process::candidates(manager.command()));
    }
    paths.extend([policy.pid_file.clone(), policy.daemon_json.clone()]);
    paths
}

fn unanswered(error: &EngineError) -> EngineApi {
    match error {
        EngineError::Absent { .. } => EngineApi::Absent,
        other => EngineApi::Broken(chain(other)),
    }
}
