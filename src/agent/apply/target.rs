//! Steps on a target. No policy: what is done, and what is read back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::super::observe::blocking;
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

/// Between two questions to a target that starts; it polls its socket every 4 ms.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks whether one that starts has ended instead.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks whether a container has ended.
const END_PAUSE: Duration = Duration::from_millis(20);
/// How long a killed process may take to be gone.
const KILL_TIME: Duration = Duration::from_secs(10);
/// Words of every C library and language for a write to a file system that takes none (EROFS).
const READ_ONLY: &str = "Read-only file system";
/// Lines of a container's output that an error carries …
const LAST_LINES: usize = 20;
/// … and how long the engine may take to give them: guests may wait for what comes next.
const LINES_TIME: Duration = Duration::from_secs(2);

/// Changes the targets of one machine.
#[derive(Debug)]
pub struct TargetApplier<C> {
    root: Root,
    containers: Arc<C>,
    images: Images<C>,
    sockets: Sockets,
    policy: TargetPolicy,
}

impl<C: Containers> TargetApplier<C> {
    /// An applier for this node's targets.
    pub fn new(
        root: &Root,
        containers: Arc<C>,
        sockets: Sockets,
        policy: TargetPolicy,
    ) -> TargetApplier<C> {
        let images = Images::new(root, containers.clone(), &policy);
        TargetApplier { root: root.clone(), containers, images, sockets, policy }
    }

    /// Does one step and tells how things stand after it; what happens meanwhile goes to `line`.
    ///
    /// # Errors
    /// A fault with what, where and what to do.
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
                    // What is stopped next is looked at until it stays so; what runs goes on without.
                    Err(e) => {
                        let (why, policy) =
                            (chain(&e), restarts.as_ref().map_or("no", |it| &it.policy));
                        tracing::warn!(
                            id,
                            policy,
                            why,
                            "the engine's restart policy of a container is not set: do so with `docker update --restart`"
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

    /// Never while somebody serves there: the control socket and its lock tell.
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
                // The engine may still be making the one of an earlier call that was given up: it has the
                // name already, but is not shown yet.
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

    /// Waits until the start has ended and every reactor answers, or the process has ended instead.
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
            // One that was stopped takes the connection, and never answers: it is looked at now and then.
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
                return Err(self.failed(container, &how).await);
            }
            if Instant::now() >= look_at {
                look_at = Instant::now() + LOOK_PAUSE;
                let most = deadline.saturating_duration_since(look_at).max(LOOK_PAUSE);
                let within = self.policy.target.call_timeout.min(most);
                let seen = self.containers.container(container, within).await;
                let Ok(Some(seen)) = seen else { continue };
                if !seen.running {
                    return Err(self.failed(container, &seen.how_it_ended()).await);
                }
                let root = self.root.clone();
                let is_stopped = move || {
                    let look = seen.pid.and_then(|pid| vitals::look(&root, pid));
                    look.is_some_and(|look| look.activity == Activity::Stopped)
                };
                if !blocking(is_stopped).await.unwrap_or(false) {
                    stopped_since = None;
                } else if stopped_since.get_or_insert_with(Instant::now).elapsed()
                    >= self.policy.heal.frozen_after
                {
                    let how = format!("it is stopped (SIGSTOP or a debugger): {silence}");
                    return Err(self.failed(container, &how).await);
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// A target that did not come up; the container stays, to be looked at.
    async fn failed(&self, container: &str, how: &str) -> Fault {
        let lines = self.containers.last_lines(container, LAST_LINES, LINES_TIME).await;
        let printed = printed(lines.map_err(|e| chain(&e)));
        let advice = match printed.contains(READ_ONLY) && self.policy.target.read_only_root {
            true => {
                "; its root file system is read-only: let it write where it has to (target.tmpfs, target.mounts), or \
                 everywhere (target.read_only_root = false)"
            }
            false => "",
        };
        Fault::new(
            Code::TargetNotReady,
            format!("the target in container {container}: {how}; {printed}{advice}"),
        )
    }

    /// Somebody else may be taking it away at this moment (`docker rm --force`), and its target fell by that:
    /// this is waited for.
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

    /// Thaws the container of a process that was sent SIGKILL, so that it takes effect, and it does nothing else.
    async fn thaw(&self, id: &str, pid: u32) {
        let root = self.root.clone();
        let is_paused =
            move || vitals::look(&root, pid).is_some_and(|look| look.activity == Activity::Paused);
        if !blocking(is_paused).await.unwrap_or(false) {
            return;
        }
        let thawed = self.containers.unpause(id, self.policy.target.call_timeout).await;
        if let Err(error) = thawed {
            tracing::debug!(id, error = %chain(&error), "the engine does not thaw it");
            let root = self.root.clone();
            let _ = blocking(move || vitals::thaw(&root, pid)).await;
        }
    }

    /// SIGTERM, a short grace, SIGKILL: a slow end strands the guests that reconnect meanwhile. By the
    /// kernel alone, for an engine that stalls in between must not make it slow.
    async fn stop(&self, id: &str, grace: Duration) -> Result<String, Fault> {
        let look = || async {
            let seen = self.containers.container(id, self.policy.target.call_timeout).await;
            seen.map_err(|e| engine_fault(&e))
        };
        let Some(seen) = look().await? else { return Ok("gone".to_string()) };
        let process = seen.pid.filter(|_| seen.running);
        if let Some(process) = process.and_then(|pid| WatchedProcess::of(&self.root, pid)) {
            let signals = [(Signal::TERM, grace), (Signal::KILL, KILL_TIME)];
            for (signal, patience) in signals.into_iter().skip(usize::from(grace.is_zero())) {
                process.signal(signal)?;
                // A frozen process takes no signal but the last, and that one only once it is thawed.
                if signal == Signal::KILL {
                    self.thaw(id, process.pid).await;
                }
                if has_ended(&process, patience).await {
                    break;
                }
            }
        }
        // The engine hears of it a little later.
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

/// Whether the process ends within that time.
async fn has_ended(process: &WatchedProcess, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Told by the kernel; asked now and then where the kernel is too old to tell.
        let _ = timeout(left.min(LOOK_PAUSE), process.ended()).await;
        if !process.lives() {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

/// Whether a container was made for the same wish.
fn is_same(spec: &ContainerSpec, seen: &ContainerSeen) -> bool {
    let wish = spec.labels.get(SPEC_LABEL);
    wish.is_some() && seen.labels.get(SPEC_LABEL) == wish
}
