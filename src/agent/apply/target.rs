//! Steps on a target: applied and read back, without policy.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::super::observe::blocking;
use super::super::observe::exits::explained;
use super::super::observe::target::{Containers, engine_fault, printed};
use super::image::Images;
use crate::host::pidfd::{Signal, WatchedProcess};
use crate::host::{Root, leftovers, vitals};
use crate::model::code::Code;
use crate::model::container::{ContainerSeen, ContainerSpec, SPEC_LABEL};
use crate::model::fault::{Fault, chain};
use crate::model::observation::Activity;
use crate::model::path::CleanPath;
use crate::model::policy::TargetPolicy;
use crate::model::step::Step;
use crate::spdk::Sockets;

/// Interval of requests to a starting target, which polls its socket every 4 ms.
const PAUSE: Duration = Duration::from_millis(10);
/// Interval of checking whether a starting target has exited instead.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Interval of checking whether a container has exited.
const END_PAUSE: Duration = Duration::from_millis(20);
/// Timeout for a killed process to be gone.
const KILL_TIME: Duration = Duration::from_secs(10);
/// Message of every C library and language for a write to a read-only file system (EROFS).
const READ_ONLY: &str = "Read-only file system";
/// Number of lines of a container's output in an error.
const LAST_LINES: usize = 20;
/// Timeout of the engine to return these lines: guests may wait for the next step.
const LINES_TIME: Duration = Duration::from_secs(2);

/// Applier of steps on the targets of one machine.
#[derive(Debug)]
pub struct TargetApplier<C> {
    root: Root,
    containers: Arc<C>,
    images: Images<C>,
    sockets: Sockets,
    policy: TargetPolicy,
}

impl<C: Containers> TargetApplier<C> {
    pub fn new(
        root: &Root,
        containers: Arc<C>,
        sockets: Sockets,
        policy: TargetPolicy,
    ) -> TargetApplier<C> {
        let images = Images::new(root, containers.clone(), &policy);
        TargetApplier { root: root.clone(), containers, images, sockets, policy }
    }

    /// Applies one step and returns the state read back; progress goes to `line`.
    ///
    /// # Errors
    /// Fault with the operation, the path or address, and a remedy.
    pub async fn apply(
        &self,
        step: &Step,
        huge_dir: Option<&str>,
        line: impl Fn(String) + Send + Sync,
    ) -> Result<String, Fault> {
        match step {
            Step::LoadImage { image, from } => self.images.load(image, from, &line).await,
            Step::PrepareSockets { folder, control } => {
                self.prepare_sockets(folder, control, huge_dir).await
            }
            Step::CreateContainer(spec) => self.create(spec).await,
            Step::StartContainer { name } => {
                let started = self.containers.start(name, self.policy.target.call_timeout).await;
                started.map_err(|e| engine_fault(&e))?;
                Ok("started".to_string())
            }
            Step::AwaitTarget { container, socket, within, .. } => {
                self.await_target(container, socket, *within).await
            }
            Step::StopContainer { id, grace, .. } => self.stop(id, *grace).await,
            Step::SetRestarts { id, restarts, .. } => {
                let within = self.policy.target.call_timeout;
                match self.containers.set_restarts(id, restarts.as_ref(), within).await {
                    Ok(()) => Ok("set".to_string()),
                    // Not an error: a container that is stopped next is watched until it stays stopped, and a running
                    // one works without the policy.
                    Err(e) => {
                        let (why, policy) =
                            (chain(&e), restarts.as_ref().map_or("no", |it| &it.policy));
                        tracing::warn!(
                            id,
                            policy,
                            why,
                            "container {id}: its restart policy could not be set to {policy}, set it with `docker update --restart`: {why}"
                        );
                        Ok(format!("as it was: {why}"))
                    }
                }
            }
            Step::RenameContainer { name, id, to } => {
                let name = id.as_deref().unwrap_or(name);
                let within = self.policy.target.call_timeout;
                let renamed = self.containers.rename(name, to, within).await;
                renamed.map(|()| to.clone()).map_err(|e| engine_fault(&e))
            }
            Step::RemoveContainer { id, .. } => self.remove(id).await,
            other => {
                Err(Fault::new(Code::Internal, format!("the step {} is no target's", other.name())))
            }
        }
    }

    /// Makes `folder` and removes what a dead target left there and in `huge_dir`. Refused if another process listens
    /// on `control` or holds its lock.
    async fn prepare_sockets(
        &self,
        folder: &str,
        control: &str,
        huge_dir: Option<&str>,
    ) -> Result<String, Fault> {
        let (root, folder, control) = (self.root.clone(), folder.to_string(), control.to_string());
        let huge_dir = huge_dir.map(str::to_string);
        let owner = (self.policy.target.socket_uid, self.policy.target.socket_gid);
        let mode = self.policy.target.socket_mode;
        let removed = blocking(move || {
            leftovers::make_folder(&root, &folder, owner, mode)?;
            let locked = leftovers::is_locked(&root, &control);
            if locked || leftovers::is_served(&root, &control) {
                let how = if locked { ".lock is held by" } else { " is listened on by" };
                return Err(Fault::new(
                    Code::ControlSocketInUse,
                    format!(
                        "{control}{how} another process: a target serves there that is not this \
                         container; stop it, or choose another control socket"
                    ),
                ));
            }
            let mut removed = leftovers::clear_sockets(&root, &folder)?;
            if let Some(huge_dir) = huge_dir {
                removed.extend(leftovers::clear_memory(&root, &huge_dir)?);
            }
            Ok(removed)
        })
        .await??;
        Ok(match removed.len() {
            0 => "clear".to_string(),
            count => format!("clear, {count} leftovers of a dead target removed"),
        })
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, Fault> {
        let within = self.policy.target.call_timeout;
        let deadline = Instant::now() + within;
        let id = loop {
            match self.containers.create(spec, within).await {
                Ok(id) => break id,
                // The engine may still be making the container of an earlier call that timed out: it has the
                // name already, but is not listed yet.
                Err(e) if e.is_conflict() && Instant::now() < deadline => {
                    let seen = self.containers.container(&spec.name, within).await;
                    match seen.map_err(|e| engine_fault(&e))? {
                        Some(seen) if is_same(spec, &seen) => break seen.id,
                        Some(_) => return Err(engine_fault(&e)),
                        None => sleep(LOOK_PAUSE).await,
                    }
                }
                Err(e) => return Err(engine_fault(&e)),
            }
        };
        let short = id.get(..12).unwrap_or(&id);
        Ok(format!("{short}, CPUs {}", spec.cpus.as_deref().unwrap_or("any")))
    }

    /// Waits, for at most `within`, until the target has started and all its reactors answer, or its process has
    /// exited.
    async fn await_target(
        &self,
        container: &str,
        socket: &str,
        within: Duration,
    ) -> Result<String, Fault> {
        let deadline = Instant::now() + within;
        let path: CleanPath = socket.parse()?;
        let target = self.sockets.at(&self.root.path(path.as_str()));
        let mut look_at = Instant::now() + LOOK_PAUSE;
        let mut stopped_since = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A target stopped by SIGSTOP accepts the connection and never answers, so that its state is checked
            // between short calls.
            let left = left.min(self.policy.health.timeout);
            let answered = async {
                target.wait_init(left).await?;
                target.reactors(left).await?;
                target.version(left).await
            };
            let silence = match answered.await {
                Ok(version) => return Ok(version.version),
                Err(error) => chain(&error),
            };
            if Instant::now() >= deadline {
                let how = format!("it did not serve within {within:?}: {silence}");
                return Err(self.failed(container, &how, None).await);
            }
            if Instant::now() >= look_at {
                look_at = Instant::now() + LOOK_PAUSE;
                let most = deadline.saturating_duration_since(look_at).max(LOOK_PAUSE);
                let within = self.policy.target.call_timeout.min(most);
                let seen = self.containers.container(container, within).await;
                let Ok(Some(seen)) = seen else { continue };
                if !seen.running {
                    return Err(self.failed(container, &seen.how_it_ended(), Some(&seen)).await);
                }
                let root = self.root.clone();
                let is_stopped = move || {
                    let look = seen.pid.and_then(|pid| vitals::look(&root, pid));
                    look.is_some_and(|look| look.activity == Activity::Stopped)
                };
                if !blocking(is_stopped).await.unwrap_or(false) {
                    stopped_since = None;
                } else if stopped_since.get_or_insert_with(Instant::now).elapsed()
                    >= self.policy.heal.unresponsive_after
                {
                    let how = format!("it is stopped (SIGSTOP or a debugger): {silence}");
                    return Err(self.failed(container, &how, None).await);
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Builds the fault of a target that did not come up, with the container that has ended, if it has. It stays for
    /// inspection.
    async fn failed(&self, container: &str, how: &str, ended: Option<&ContainerSeen>) -> Fault {
        let lines = self.containers.last_lines(container, LAST_LINES, LINES_TIME).await;
        let printed = printed(lines.map_err(|e| chain(&e)));
        let advice = match printed.contains(READ_ONLY) && self.policy.target.read_only_root {
            true => {
                "; its root file system is read-only: let it write where it has to (target.tmpfs, target.mounts), or \
                 everywhere (target.read_only_root = false)"
            }
            false => "",
        };
        let explained = explained(&self.root, &self.policy, ended, &printed).await;
        Fault::new(
            Code::TargetNotReady,
            format!("the target in container {container}: {how}; {printed}{explained}{advice}"),
        )
    }

    /// Removes a container. If somebody else is removing it (`docker rm --force`), which may be why the target exited,
    /// waits for that removal.
    async fn remove(&self, id: &str) -> Result<String, Fault> {
        let deadline = Instant::now() + self.policy.target.call_timeout;
        loop {
            match self.containers.remove(id, self.policy.target.call_timeout).await {
                Err(e) if e.is_being_removed() && Instant::now() < deadline => {
                    sleep(END_PAUSE).await;
                }
                Err(e) if !e.is_not_found() => return Err(engine_fault(&e)),
                _ => return Ok("absent".to_string()),
            }
        }
    }

    /// Unpauses the container of a process that was sent SIGKILL, so that the signal takes effect.
    async fn thaw(&self, id: &str, pid: u32) {
        let root = self.root.clone();
        let is_paused =
            move || vitals::look(&root, pid).is_some_and(|look| look.activity == Activity::Paused);
        if !blocking(is_paused).await.unwrap_or(false) {
            return;
        }
        let thawed = self.containers.unpause(id, self.policy.target.call_timeout).await;
        if let Err(error) = thawed {
            tracing::debug!(
                id, error = %chain(&error),
                "container {id}: the engine could not unpause it, so the agent thaws its cgroup: {}", chain(&error)
            );
            let root = self.root.clone();
            let _ = blocking(move || vitals::thaw(&root, pid)).await;
        }
    }

    /// Stops the container with SIGTERM and, after `grace`, SIGKILL; if `grace` is zero, with SIGKILL at once. A slow
    /// end would strand guests that reconnect meanwhile. The signals do not pass through the engine, so that a stalling
    /// engine does not delay them.
    async fn stop(&self, id: &str, grace: Duration) -> Result<String, Fault> {
        let look = || async {
            let seen = self.containers.container(id, self.policy.target.call_timeout).await;
            seen.map_err(|e| engine_fault(&e))
        };
        let Some(seen) = look().await? else { return Ok("gone".to_string()) };
        let process = seen.pid.filter(|_| seen.running);
        if let Some(process) = process.and_then(|pid| WatchedProcess::of(&self.root, pid)) {
            let signals = [(Signal::TERM, grace), (Signal::KILL, KILL_TIME)];
            for (signal, timeout) in signals.into_iter().skip(usize::from(grace.is_zero())) {
                process.signal(signal)?;
                // A frozen process reacts to no signal but SIGKILL, and to that only once it is thawed.
                if signal == Signal::KILL {
                    self.thaw(id, process.pid).await;
                }
                if has_ended(&process, timeout).await {
                    break;
                }
            }
        }
        // The engine notices the exit a little later.
        let deadline = Instant::now() + KILL_TIME;
        while Instant::now() < deadline {
            match look().await? {
                None => return Ok("gone".to_string()),
                Some(seen) if !seen.running => return Ok(seen.how_it_ended()),
                Some(_) => sleep(END_PAUSE).await,
            }
        }
        let text = format!("the container {id} still runs {KILL_TIME:?} after SIGKILL");
        Err(Fault::new(Code::TargetNotStopped, text))
    }
}

/// Waits for the process to exit; `true` if it does so in time.
async fn has_ended(process: &WatchedProcess, within: Duration) -> bool {
    timeout(within, process.ended()).await.is_ok()
}

/// `true` if the container `seen` has the same spec label as `spec`.
fn is_same(spec: &ContainerSpec, seen: &ContainerSeen) -> bool {
    let wanted = spec.labels.get(SPEC_LABEL);
    wanted.is_some() && seen.labels.get(SPEC_LABEL) == wanted
}
