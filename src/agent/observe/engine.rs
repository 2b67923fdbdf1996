//! Observation of the engine: its answer, its process, its files, its unit.
//!
//! Files are read on a blocking thread, and again only after the kernel reports a change: observing an
//! engine in place waits for nothing but the engine.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::{blocking, blocking_within};
use crate::docker::{Engine, EngineError};
use crate::host::engine_process::{
    SNAP_BINARY, SNAP_UNIT, config_path, engine_process, is_daemon, is_unit_of, next_command_line,
};
use crate::host::engine_socket::link_target;
use crate::host::systemd::{Systemd, SystemdError};
use crate::host::unchanged::Unchanged;
use crate::host::{Root, client_conf, daemon_json, dpkg, facts, packages, process, routes};
use crate::model::engine::{
    CommandLine, DaemonJson, EngineApi, EngineProcess, EngineSeen, EngineVersion, Init,
    PackageManager, UnitState,
};
use crate::model::engine_options::EngineOptions;
use crate::model::fault::{Fault, chain};
use crate::model::identity::HostIdentity;
use crate::model::network::NodeNetwork;
use crate::model::path::CleanPath;
use crate::model::policy::EnginePolicy;
use crate::model::url::HttpUrl;

/// [`Engine`] under a name that the engine's owner may use, as it does not use `docker` itself.
pub trait QueryEngine: Engine {}

impl<E: Engine> QueryEngine for E {}

/// Data root of the engine, if no other is configured.
const DATA_ROOT: &str = "/var/lib/docker";
/// Folder that every engine makes in its data root (daemon/daemon.go of moby). `image` is missing with containerd's image
/// store.
const CONTAINERS: &str = "containers";

/// Timeout of reading the configuration of the storage's client, which lies wherever the settings say.
const CONF_TIME: Duration = Duration::from_secs(1);

/// Observer of the engine of one machine.
#[derive(Debug)]
pub struct EngineObserver<E> {
    root: Root,
    policy: EnginePolicy,
    engine: Arc<E>,
    systemd: Arc<Systemd>,
    init: Init,
    needed: Option<Needed>,
    last_answer: Mutex<Option<LastAnswer>>,
    /// Facts read from the files of a running engine, valid while the files are unchanged.
    read: Mutex<Option<(EngineSeen, Unchanged)>>,
}

/// Sources of the addresses that no network of the engine may hide.
#[derive(Debug)]
pub struct Needed {
    /// Addresses in the settings, each with its use.
    of_settings: Vec<(String, IpAddr)>,
    /// Identity of this host, with the controller's address.
    identity: watch::Receiver<HostIdentity>,
    /// Configuration file of the storage's client, with the storage's addresses.
    client_conf: CleanPath,
    /// Addresses that were last read from that file.
    of_storage: Mutex<Vec<IpAddr>>,
    /// Place of the only read of that file, which may hang.
    place: Arc<Semaphore>,
}

impl Needed {
    /// Names the sources: addresses in the settings, this host's identity, and the configuration file of the storage's
    /// client.
    pub fn new(
        of_settings: Vec<(String, IpAddr)>,
        identity: watch::Receiver<HostIdentity>,
        client_conf: CleanPath,
    ) -> Needed {
        let (of_storage, place) = (Mutex::default(), Arc::new(Semaphore::new(1)));
        Needed { of_settings, identity, client_conf, of_storage, place }
    }

    /// Addresses that are known without reading a file.
    fn known(&self) -> impl Iterator<Item = (String, IpAddr)> {
        let url = self.identity.borrow().send_command_url.parse::<HttpUrl>();
        let controller = url.ok().and_then(|url| url.address());
        let controller = controller.map(|address| ("the controller".to_string(), address));
        controller.into_iter().chain(self.of_settings.iter().cloned())
    }
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
            needed: None,
            last_answer: known,
            read,
        }
    }

    /// Names sources of addresses that no network of the engine may hide.
    pub fn with_needed(self, needed: Needed) -> EngineObserver<E> {
        EngineObserver { needed: Some(needed), ..self }
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
                Init::Systemd => Some(self.unit(seen.process.as_ref()).await),
                Init::Other(_) => None,
            }
        };
        let (unit, api) = tokio::join!(unit, self.ask(seen.process.as_ref()));
        seen.api = api;
        seen.network.needed.splice(0..0, self.needed.iter().flat_map(Needed::known));
        match unit.transpose() {
            Ok(unit) => seen.unit = unit,
            Err(e) => seen.unit_error = Some(chain(&e)),
        }
        if seen.process.is_none() {
            self.look_at_next_start(&mut seen).await?;
        }
        self.doubt_installation(seen).await
    }

    /// Asks systemd for the engine's unit: that of its process, else that of the settings, else that of Docker's snap.
    async fn unit(&self, process: Option<&EngineProcess>) -> Result<UnitState, SystemdError> {
        let of_process = process.and_then(|process| process.unit.as_deref());
        let own = of_process.filter(|unit| *unit != self.policy.unit);
        if let Some(name) = own {
            // The process may have been started within a unit of something else.
            let unit = self.systemd.unit(name).await?;
            if is_unit_of(&unit, &self.policy) {
                return Ok(unit);
            }
        }
        let unit = self.systemd.unit(&self.policy.unit).await?;
        if unit.load != "not-found" {
            return Ok(unit);
        }
        let snap = self.systemd.unit(SNAP_UNIT).await?;
        Ok(if snap.load == "not-found" { unit } else { snap })
    }

    /// Observes with which options an engine without a process will start.
    async fn look_at_next_start(&self, seen: &mut EngineSeen) -> Result<(), Fault> {
        if let EngineApi::Answers(_) = seen.api {
            let why = format!(
                "it answers at {}, and no process {} of this node was found (engine.pid_file, engine.binary)",
                self.policy.socket, self.policy.binary
            );
            seen.command_line = CommandLine::Unknown(why);
            return Ok(());
        }
        let of_unit = seen.unit.as_ref().and_then(|unit| match unit.name.as_str() {
            SNAP_UNIT => Some(SNAP_BINARY.to_string()),
            _ => unit.args.first().filter(|program| is_daemon(program, &self.policy)).cloned(),
        });
        let (root, policy, unit) = (self.root.clone(), self.policy.clone(), seen.unit.clone());
        let look = move || {
            let mut line = next_command_line(&root, unit.as_ref(), &policy);
            let file = config_path(&line, &policy);
            let text = daemon_json::read(&root, &file);
            if unit.is_none() && EngineOptions::new(&[], &text).key("hosts").is_some() {
                line.drop_own_host();
            }
            let of_unit = of_unit.filter(|program| root.path(program).is_file());
            let has_run = has_run(&root, &EngineOptions::new(line.args(), &text));
            (line, file, text, of_unit, has_run)
        };
        let (line, file, text, of_unit, has_run) = blocking(look).await?;
        (seen.command_line, seen.config_file, seen.daemon_json) = (line, file, text);
        seen.installed = seen.installed.take().or(of_unit);
        seen.executable.clone_from(&seen.installed);
        let has_unit = seen.unit.as_ref().is_some_and(|unit| unit.load != "not-found");
        seen.is_new = seen.installed.is_none() && !has_unit && !has_run;
        Ok(())
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
        let (read, of_storage) = tokio::join!(blocking(look), self.of_storage());
        let (mut seen, unchanged) = read?;
        seen.network.needed = of_storage;
        let read = unchanged.map(|unchanged| (seen.clone(), unchanged));
        // A concurrent observation may have come first.
        let other = std::mem::replace(&mut *lock(&self.read), read);
        if other.is_some() {
            blocking(move || drop(other)).await?;
        }
        Ok(seen)
    }

    /// Reads the storage's addresses; those of the last time if its client's configuration file hangs with its disk, or
    /// another observation reads it.
    async fn of_storage(&self) -> Vec<(String, IpAddr)> {
        let Some(needed) = &self.needed else { return Vec::new() };
        let (root, conf) = (self.root.clone(), needed.client_conf.clone());
        let read = move || client_conf::addresses(&root, conf.as_str());
        let read = blocking_within(&needed.place, CONF_TIME, read).await;
        let mut known = lock(&needed.of_storage);
        if let Some(Ok(addresses)) = read {
            *known = addresses;
        }
        let use_of = |address: &IpAddr| ("the storage (target.client_conf)".to_string(), *address);
        known.iter().map(use_of).collect()
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
    let line = |process: Option<&EngineProcess>| {
        CommandLine::Known(process.map(|process| process.args.clone()).unwrap_or_default())
    };
    let unchanged = engine_process(root, policy).and_then(|process| {
        let paths = paths(policy, config_path(&line(Some(&process)), policy));
        Unchanged::since_now(root, &paths, Some(process.pid))
    });
    let process = engine_process(root, policy);
    let command_line = line(process.as_ref());
    let config_file = config_path(&command_line, policy);
    let seen = EngineSeen {
        api: EngineApi::Absent,
        installed: process::find_executable(root, &policy.binary),
        socket_target: link_target(root, &policy.socket),
        executable: None,
        is_new: false,
        installed_version: None,
        // Without a process, these are read once systemd has been asked for the unit.
        daemon_json: match process {
            Some(_) => daemon_json::read(root, &config_file),
            None => DaemonJson::Absent,
        },
        process,
        command_line,
        config_file,
        init,
        unit: None,
        unit_error: None,
        package_manager: packages::find(root),
        network: NodeNetwork {
            routes: routes::routes(root),
            name_servers: routes::name_servers(root),
            needed: Vec::new(),
        },
    };
    (seen, unchanged)
}

/// `true` if an engine has run here with the data root that `options` choose.
fn has_run(root: &Root, options: &EngineOptions<'_>) -> bool {
    let data_root = options.text("data-root").or(options.text("graph")).unwrap_or(DATA_ROOT);
    root.path(data_root).join(CONTAINERS).exists()
}

/// Paths to watch: possible executables of the engine and of package managers, the pid file and the engine's
/// configuration file.
fn paths(policy: &EnginePolicy, config_file: String) -> Vec<String> {
    let mut paths = process::candidates(&policy.binary);
    for manager in PackageManager::ALL {
        paths.extend(process::candidates(manager.command()));
    }
    paths.extend([policy.pid_file.clone(), config_file]);
    paths
}

fn unanswered(error: &EngineError) -> EngineApi {
    match error {
        EngineError::Absent { .. } => EngineApi::Absent,
        EngineError::NotDocker { .. } => EngineApi::NotDocker(chain(error)),
        other => EngineApi::Broken(chain(other)),
    }
}
