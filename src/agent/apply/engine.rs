//! Steps on the engine: its configuration, its packages, its start, its first answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::observe::blocking;
use crate::docker::{Engine, EngineError};
use crate::host::packages::{self, Failure};
pub use crate::host::spawn::Spawner as Spawns;
use crate::host::spawn::{Daemon, Invocation, RunEnd};
use crate::host::systemd::{Systemd, SystemdError};
use crate::host::watch::Watch;
use crate::host::{HostError, Root, daemon_json};
use crate::model::engine::{ApiVersion, DaemonJson, EngineVersion, PackageManager};
use crate::model::fault::{Fault, chain};
use crate::model::policy::EnginePolicy;
use crate::model::prepare::Step;

/// How long to wait before a package manager that was locked is called again.
const LOCK_PAUSE: Duration = Duration::from_secs(2);

/// Changes the engine of one machine.
#[derive(Debug)]
pub struct EngineApplier<E, S> {
    root: Root,
    policy: EnginePolicy,
    engine: Arc<E>,
    systemd: Arc<Systemd>,
    spawner: S,
    /// The daemon that we started ourselves and whose first answer is awaited.
    daemon: Option<Daemon>,
}

impl<E: Engine, S: Spawns> EngineApplier<E, S> {
    /// An applier for the engine that `policy` describes.
    pub fn new(
        root: &Root,
        policy: EnginePolicy,
        engine: Arc<E>,
        systemd: Arc<Systemd>,
        spawner: S,
    ) -> EngineApplier<E, S> {
        EngineApplier { root: root.clone(), policy, engine, systemd, spawner, daemon: None }
    }

    /// Does one step and tells how things stand after it; lines of output go to `line`.
    ///
    /// # Errors
    /// A fault with what, where and what to do.
    pub async fn apply(
        &mut self,
        step: &Step,
        line: impl Fn(String) + Send + Sync,
    ) -> Result<String, Fault> {
        match step {
            Step::WriteDaemonJson { path, text, .. } => self.write_daemon_json(path, text).await,
            Step::Install { manager, sets } => self.install(*manager, sets, line).await,
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
            Step::StartDaemon { binary } => self.start_daemon(binary),
            Step::AwaitEngine { min_api, within, .. } => self.await_engine(*min_api, *within).await,
            other => Err(Fault::new(
                "internal",
                format!("the step {} is not the engine's; this is a bug, report it", other.name()),
            )),
        }
    }

    async fn write_daemon_json(&self, path: &str, text: &str) -> Result<String, Fault> {
        let (root, at, new) = (self.root.clone(), path.to_string(), text.to_string());
        let write = move || {
            daemon_json::write(&root, &at, &new)?;
            Ok::<_, HostError>(daemon_json::read(&root, &at))
        };
        let after = blocking(write).await?.map_err(|e| host_fault("daemon-json-unwritable", &e))?;
        match after {
            DaemonJson::Object { text: there, .. } if there == text => {
                Ok(there.split_whitespace().collect::<Vec<_>>().join(" "))
            }
            _ => Err(Fault::new(
                "daemon-json-changed",
                format!(
                    "{path} was written but reads differently now: something else writes it too"
                ),
            )),
        }
    }

    /// Tries each set of packages; the lists are fetched anew once when they may be the reason.
    async fn install(
        &self,
        manager: PackageManager,
        sets: &[Vec<String>],
        line: impl Fn(String) + Send + Sync,
    ) -> Result<String, Fault> {
        let deadline = Instant::now() + self.policy.install_timeout;
        let lock = self.policy.lock_timeout.as_secs();
        let lock_deadline = Instant::now() + self.policy.lock_timeout;
        let mut refreshed = false;
        let mut unavailable = Vec::new();
        let mut at = 0;
        while let Some(set) = sets.get(at) {
            let call = packages::install(manager, set, &self.policy.install_args, lock);
            let end = self.run(call, deadline, &line).await?;
            match packages::failure(manager, &end) {
                None => return Ok(set.join(" ")),
                // Not every lock is waited for by the package managers themselves.
                Some(Failure::Locked) if Instant::now() + LOCK_PAUSE < lock_deadline => {
                    sleep(LOCK_PAUSE).await;
                }
                Some(Failure::NotAvailable) if at + 1 < sets.len() => {
                    unavailable.push(set.join(" "));
                    at += 1;
                }
                Some(Failure::NotAvailable | Failure::Fetch) if !refreshed => {
                    refreshed = true;
                    let Some(call) = packages::refresh(manager, lock) else {
                        return Err(install_fault(manager, &end, &unavailable));
                    };
                    let end = self.run(call, deadline, &line).await?;
                    if packages::failure(manager, &end) == Some(Failure::Locked) {
                        return Err(install_fault(manager, &end, &unavailable));
                    }
                    unavailable.clear();
                    at = 0;
                }
                Some(_) => {
                    unavailable.push(set.join(" "));
                    return Err(install_fault(manager, &end, &unavailable));
                }
            }
        }
        Err(Fault::new(
            "no-packages-configured",
            format!("no packages are configured for {manager}"),
        ))
    }

    async fn run(
        &self,
        call: Invocation,
        deadline: Instant,
        line: impl Fn(String) + Send + Sync,
    ) -> Result<RunEnd, Fault> {
        let program = call.program.clone();
        let (sender, mut lines) = mpsc::channel(256);
        let within = deadline.saturating_duration_since(Instant::now());
        let run = self.spawner.run(call, within, sender);
        tokio::pin!(run);
        let end = loop {
            tokio::select! {
                // Cancel-safe: a line that was not received stays in the channel.
                Some(text) = lines.recv() => line(text),
                // Not cancelled here: the loop ends with it.
                end = &mut run => break end,
            }
        };
        while let Ok(text) = lines.try_recv() {
            line(text);
        }
        let end = end.map_err(|e| host_fault("package-manager-failed", &e))?;
        if end.timed_out {
            return Err(Fault::new(
                "package-manager-timeout",
                format!(
                    "{program} was not done within {:?} (engine.install_timeout) and was left running, for a \
                     package manager must not be cut off: see {}, then prepare again",
                    self.policy.install_timeout,
                    end.log.display()
                ),
            ));
        }
        Ok(end)
    }

    fn start_daemon(&mut self, binary: &str) -> Result<String, Fault> {
        let call = Invocation { program: binary.to_string(), args: Vec::new(), env: Vec::new() };
        let daemon = self.spawner.daemon(call, "dockerd.log");
        self.daemon = Some(daemon.map_err(|e| host_fault("engine-start-failed", &e))?);
        Ok("started".to_string())
    }

    /// Waits for the first answer: told by the kernel when the socket appears, and by the daemon's
    /// end when it dies instead.
    async fn await_engine(
        &mut self,
        min_api: ApiVersion,
        within: Duration,
    ) -> Result<String, Fault> {
        let deadline = Instant::now() + within;
        let socket = self.root.path(&self.policy.socket);
        let mut daemon = self.daemon.take();
        let ended = async {
            match &mut daemon {
                Some(daemon) => daemon.ended().await,
                None => std::future::pending().await,
            }
        };
        let answered = timeout_at(deadline, answer(&*self.engine, &socket, deadline));
        let answer = tokio::select! {
            // Neither is used again once the other is done.
            answer = answered => answer,
            (code, output) = ended => return Err(died(code, &output)),
        };
        match answer {
            Ok(Ok(version)) if version.api >= min_api => {
                Ok(format!("{} (API {})", version.version, version.api))
            }
            Ok(Ok(version)) => Err(Fault::new(
                "engine-too-old",
                format!(
                    "the engine {} speaks API {}, older than {min_api}",
                    version.version, version.api
                ),
            )),
            Ok(Err(e)) => Err(Fault::new("engine-not-answering", chain(&e))),
            Err(_) => Err(Fault::new(
                "engine-not-ready",
                format!(
                    "the engine did not answer at {} within {within:?} (engine.ready_timeout): see its log \
                     (journalctl -u {}, or dockerd.log in the agent's log folder)",
                    self.policy.socket, self.policy.unit
                ),
            )),
        }
    }
}

/// Waits for the socket, then for an answer on it.
async fn answer(
    engine: &impl Engine,
    socket: &Path,
    deadline: Instant,
) -> Result<EngineVersion, EngineError> {
    // A daemon listens a moment before it serves; what it accepted it will answer. Only where its
    // folder cannot be watched it is asked again and again.
    let watch = socket.parent().and_then(|folder| Watch::new(folder).ok());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match engine.version(left).await {
            Err(EngineError::Absent { .. }) => {}
            other => return other,
        }
        let look_again = sleep(Duration::from_millis(200));
        match &watch {
            Some(watch) => tokio::select! {
                // Cancel-safe: an unread event stays in the kernel's queue.
                _ = watch.changed() => {}
                // The socket can be there before anybody listens on it, and that the kernel does
                // not tell.
                () = look_again => {}
            },
            None => look_again.await,
        }
    }
}

fn died(code: Option<i32>, output: &str) -> Fault {
    let how = code.map_or("was ended by a signal".to_string(), |code| format!("ended with {code}"));
    // dockerd's reason is its last line that is no log line.
    let plain = |line: &&str| !line.trim().is_empty() && !line.contains("level=info");
    let reason = output.lines().rev().find(plain).unwrap_or("it printed nothing");
    Fault::new(
        "engine-start-failed",
        format!(
            "the engine {how} before it answered: {reason} (all of it: dockerd.log in the agent's log folder)"
        ),
    )
}

fn host_fault(code: &'static str, error: &HostError) -> Fault {
    Fault::new(code, chain(error))
}

fn systemd_fault(error: &SystemdError) -> Fault {
    Fault::new("engine-start-failed", chain(error))
}

fn install_fault(manager: PackageManager, end: &RunEnd, tried: &[String]) -> Fault {
    let (code, advice) = match packages::failure(manager, end) {
        Some(Failure::Locked) => (
            "package-manager-locked",
            "wait until the other package manager is done, then prepare again",
        ),
        Some(Failure::Interrupted) => (
            "package-manager-interrupted",
            "finish the interrupted run as the message says, then prepare again",
        ),
        Some(Failure::DiskFull) => ("disk-full", "free space, then prepare again"),
        Some(Failure::NotAvailable) => (
            "packages-not-available",
            "add the repository that has them, or set engine.packages and engine.install_args",
        ),
        Some(Failure::Fetch) => ("packages-not-fetched", "see whether the mirror can be reached"),
        _ => ("package-manager-failed", "see its log"),
    };
    Fault::new(
        code,
        format!(
            "{manager} could not install {} (exit code {}): {}; {advice} (all of it: {})",
            tried.join(", nor "),
            end.code.map_or("none".to_string(), |code| code.to_string()),
            packages::reason_lines(&end.output),
            end.log.display()
        ),
    )
}
