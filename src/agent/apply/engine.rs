//! Steps on the engine: its configuration, its packages, its start, its first answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::super::observe::blocking;
use super::install::{InstallSubject, Installation};
use crate::docker::{Engine, EngineError};
use crate::host::spawn::{Daemon, Invocation, Spawner};
use crate::host::systemd::{Systemd, SystemdError};
use crate::host::watch::PathWatch;
use crate::host::{HostError, Root, daemon_json};
use crate::model::code::Code;
use crate::model::engine::{
    ApiVersion, DaemonJson, EngineApi, EngineSeen, EngineVersion, version_in,
};
use crate::model::fault::{Fault, chain};
use crate::model::policy::EnginePolicy;
use crate::model::step::Step;

/// Time limit of the daemon's executable when it is asked for its version.
const VERSION_WITHIN: Duration = Duration::from_secs(5);

/// [`Spawner`] under a name that the engine's owner may use, as it does not use `host` itself.
pub trait Spawns: Spawner {}

impl<S: Spawner> Spawns for S {}

/// Applier of steps on the engine of one machine.
#[derive(Debug)]
pub struct EngineApplier<E, S> {
    root: Root,
    policy: EnginePolicy,
    engine: Arc<E>,
    systemd: Arc<Systemd>,
    spawner: S,
    /// Daemon that the agent started and whose first answer is awaited.
    daemon: Option<Daemon>,
}

impl<E: Engine, S: Spawns> EngineApplier<E, S> {
    /// Makes an applier for the engine that `policy` describes.
    pub fn new(
        root: &Root,
        policy: EnginePolicy,
        engine: Arc<E>,
        systemd: Arc<Systemd>,
        spawner: S,
    ) -> EngineApplier<E, S> {
        EngineApplier { root: root.clone(), policy, engine, systemd, spawner, daemon: None }
    }

    /// Applies one step that was planned on `seen` and returns the state read back; output goes to `line`.
    ///
    /// # Errors
    /// Fault with the operation, the path or address, and a remedy.
    pub async fn apply(
        &mut self,
        step: &Step,
        seen: &EngineSeen,
        line: impl Fn(String) + Send + Sync,
    ) -> Result<String, Fault> {
        match step {
            Step::WriteDaemonJson { path, text, adds, .. } => {
                self.write_daemon_json(path, text, &seen.daemon_json).await?;
                Ok(adds.clone())
            }
            Step::Install { manager, sets } => {
                let subject = (*manager, InstallSubject::Engine);
                Installation::new(&self.root, &self.spawner, &self.policy, subject, line)
                    .run(sets)
                    .await
            }
            Step::EnableUnit(unit) => {
                self.systemd.enable(unit).await.map_err(|e| systemd_fault(&e))?;
                let after = self.systemd.unit(unit).await.map_err(|e| systemd_fault(&e))?;
                Ok(after.file)
            }
            Step::StartUnit(unit) => {
                let started = self.systemd.start(unit, self.policy.ready_timeout).await;
                started.map_err(|e| systemd_fault(&e))?;
                let after = self.systemd.unit(unit).await.map_err(|e| systemd_fault(&e))?;
                Ok(after.active)
            }
            Step::StartDaemon { binary, args } => self.start_daemon(binary, args).await,
            Step::AwaitEngine { min_api, within, .. } => {
                self.await_engine(*min_api, *within, seen).await
            }
            other => Err(Fault::new(
                Code::Internal,
                format!("the step {} is not the engine's; this is a bug, report it", other.name()),
            )),
        }
    }

    async fn write_daemon_json(
        &self,
        path: &str,
        text: &str,
        planned_on: &DaemonJson,
    ) -> Result<(), Fault> {
        let (root, at, new) = (self.root.clone(), path.to_string(), text.to_string());
        let planned_on = planned_on.clone();
        let write = move || daemon_json::replace(&root, &at, &new, &planned_on);
        let after =
            blocking(write).await?.map_err(|e| host_fault(Code::DaemonJsonUnwritable, &e))?;
        match after {
            DaemonJson::Object { text: there, .. } if there == text => Ok(()),
            _ => Err(Fault::new(
                Code::DaemonJsonChanged,
                format!(
                    "something else writes {path} too, at the same time: see what it holds now, then \
                     prepare again"
                ),
            )),
        }
    }

    /// Asks the executable of a stopped daemon for its version, such as 20.10.24: no other place has it. `None` if the daemon
    /// runs, or its executable prints none.
    pub async fn installed_version(&self, seen: &EngineSeen) -> Option<String> {
        let stopped = seen.api == EngineApi::Absent && seen.process.is_none();
        let binary = seen.executable.as_deref().filter(|_| stopped)?;
        let program = self.root.path(binary).display().to_string();
        let call = Invocation { program, args: vec!["--version".to_string()], env: Vec::new() };
        let end = self.spawner.query(call, VERSION_WITHIN).await.ok()?;
        version_in(&end.output)
    }

    /// Restores the engine's settings file to `before` if `step` wrote it and `fault` names it as the reason that the
    /// engine did not start. Adds the outcome to the fault's text.
    pub async fn take_back(&self, step: &Step, before: &DaemonJson, mut fault: Fault) -> Fault {
        let Step::WriteDaemonJson { path, text, .. } = step else { return fault };
        // After any other fault the file stays: its cause may pass, and the engine must not start later with the host's
        // packet filter.
        if fault.code != Code::EngineStartFailed || !fault.text.contains(path.as_str()) {
            return fault;
        }
        let (root, at) = (self.root.clone(), path.clone());
        let (text, before) = (text.clone(), before.clone());
        let taken = blocking(move || daemon_json::take_back(&root, &at, &text, &before)).await;
        fault.text += &match taken.map(|taken| taken.map_err(|e| chain(&e))) {
            Ok(Ok(true)) => format!("; {path} is as it was before that"),
            Ok(Ok(false)) => {
                format!("; {path} has been changed by somebody else since, and is left so")
            }
            Ok(Err(why)) => format!("; {path} could not be put back as it was: {why}"),
            Err(broken) => format!("; {path} could not be put back as it was: {broken}"),
        };
        fault
    }

    async fn start_daemon(&mut self, binary: &str, args: &[String]) -> Result<String, Fault> {
        let call = Invocation { program: binary.to_string(), args: args.to_vec(), env: Vec::new() };
        let daemon = self.spawner.daemon(call, "dockerd.log").await;
        self.daemon = Some(daemon.map_err(|e| host_fault(Code::EngineStartFailed, &e))?);
        Ok("started".to_string())
    }

    /// Waits, for at most `within`, for the engine's first answer or for the exit of the daemon that the agent started.
    async fn await_engine(
        &mut self,
        min_api: ApiVersion,
        within: Duration,
        seen: &EngineSeen,
    ) -> Result<String, Fault> {
        let deadline = Instant::now() + within;
        let socket = self.root.path(&self.policy.socket);
        let mut daemon = self.daemon.take();
        let mut refused = None;
        let ended = async {
            match &mut daemon {
                Some(daemon) => daemon.ended().await,
                None => std::future::pending().await,
            }
        };
        let answered = timeout_at(deadline, answer(&*self.engine, &socket, deadline, &mut refused));
        let answered = tokio::select! {
            // Neither future is used again once the other is done.
            answered = answered => answered.ok(),
            (code, output) = ended => {
                // The daemon also exits if another one was started first; an answer of that one will do.
                let other = self.engine.version(self.policy.ping_timeout).await;
                Some(other.map_err(|_| died(code, &output, &self.where_its_log_is(&daemon, seen)))?)
            }
        };
        match answered {
            Some(version) if version.api >= min_api => {
                Ok(format!("{} (API {})", version.version, version.api))
            }
            Some(version) => Err(Fault::new(
                Code::EngineTooOld,
                format!(
                    "the engine {} at {} speaks API {}, older than {min_api}: upgrade it, or lower \
                     engine.min_api",
                    version.version, self.policy.socket, version.api
                ),
            )),
            None => Err(Fault::new(
                Code::EngineNotReady,
                format!(
                    "the engine did not answer at {} within {within:?} (engine.ready_timeout){}: see its log, {}",
                    self.policy.socket,
                    refused.map_or(String::new(), |e| format!("; its last answer: {}", chain(&e))),
                    self.where_its_log_is(&daemon, seen)
                ),
            )),
        }
    }

    fn where_its_log_is(&self, daemon: &Option<Daemon>, seen: &EngineSeen) -> String {
        match daemon {
            Some(daemon) => daemon.log().display().to_string(),
            None => format!("journalctl -u {}", seen.unit_name().unwrap_or(&self.policy.unit)),
        }
    }
}

/// Waits for the socket, then for an answer on it. `refused` gets the last error of a socket that was there.
async fn answer(
    engine: &impl Engine,
    socket: &Path,
    deadline: Instant,
    refused: &mut Option<EngineError>,
) -> EngineVersion {
    // A daemon listens a moment before it serves, and answers later what it accepted. Its socket's folder is watched,
    // where that is possible, so that a new socket is noticed at once.
    let watch = socket.parent().and_then(|folder| PathWatch::new(folder).ok());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match engine.version(left).await {
            Ok(version) => return version,
            Err(EngineError::Absent { .. }) => {}
            // A daemon that exits while it starts resets the connection; another daemon may follow it.
            Err(other) => *refused = Some(other),
        }
        let look_again = sleep(Duration::from_millis(200));
        match &watch {
            Some(watch) => tokio::select! {
                // Cancel-safe: an unread event stays in the kernel's queue.
                _ = watch.changed() => {}
                // The socket can be there before anybody listens on it, and the kernel sends no event
                // for that.
                () = look_again => {}
            },
            None => look_again.await,
        }
    }
}

fn died(code: Option<i32>, output: &str, log: &str) -> Fault {
    let how = code.map_or("was ended by a signal".to_string(), |code| format!("ended with {code}"));
    // dockerd prints its reason as a line of its own (cmd/dockerd of moby), mostly the last.
    let fatal = |line: &&str| {
        ["failed to start daemon", "unable to configure the Docker daemon"]
            .iter()
            .any(|begin| line.starts_with(begin))
    };
    let plain = |line: &&str| !line.trim().is_empty() && !line.contains("level=info");
    let reason = output.lines().rev().find(fatal).or(output.lines().rev().find(plain));
    let reason = reason.unwrap_or("it printed nothing");
    Fault::new(
        Code::EngineStartFailed,
        format!("the engine {how} before it answered: {reason} (all of it: {log})"),
    )
}

fn host_fault(code: Code, error: &HostError) -> Fault {
    Fault::new(code, chain(error))
}

fn systemd_fault(error: &SystemdError) -> Fault {
    Fault::new(Code::EngineStartFailed, chain(error))
}
