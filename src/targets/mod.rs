//! Targets of this node: one reconciler for each, which alone judges, acts and publishes its status.
//!
//! ```text
//! Targets (handle) ──request──▶ Task ◀── Observation ── observer (pidfd, engine events, RPC)
//!        ◀──reply──             │  lifecycle::step: what is due
//!        ◀──TargetStatus──      ├─▶ Worker: converge (the container), volumes, kill; one thing at a time
//!                               └─▶ jobs beside it: an image is pulled or loaded
//! ```
//!
//! Requests for one target come one after the other, those for different ones at the same time. A call, an exit
//! and the agent's start run the same loop: they differ only in why.

mod book;
mod converge;
pub mod desired;
mod exits;
pub mod observer;
mod status;
mod task;
mod volumes;
mod work;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use self::desired::DesiredTargets;
pub use self::exits::Exits;
use self::observer::{Observers, Probe};
pub use self::status::Statuses;
use self::status::health_of_another;
use self::task::Task;
use crate::agent::apply::target::TargetApplier;
use crate::agent::apply::volumes::VolumeApplier;
use crate::agent::engine::Engine;
use crate::agent::observe::target::TargetObserver;
use crate::agent::observe::volumes::VolumeObserver;
use crate::agent::owner_gone;
use crate::agent::progress::ProgressSink;
use crate::docker::Containers;
use crate::health::deep::DeepProbe;
use crate::model::code::Code;
use crate::model::deep::DeepHealth;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::policy::TargetPolicy;
use crate::model::prepare::PrepareReport;
use crate::model::target::{
    EnsureWish, TargetHealth, TargetName, TargetSeen, TargetSpec, TargetState,
};
use crate::model::volume::{VolumeKey, VolumeSpec, VolumeStatus, VolumeView, Volumes};
use crate::model::work::WorkId;
use crate::plan::target::{self, TargetPlan};
use crate::watchdog::Watchdog;

/// Requests that may wait for one target; more are refused.
const QUEUE: usize = 256;
/// Targets of one node.
const MOST_TARGETS: usize = 64;
/// How long a busy target is waited for by who only wants to know how volumes stand.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries to take away a volume that a virtual machine is about to leave.
const LEAVE_PAUSE: Duration = Duration::from_millis(200);
/// How long its task may take to judge what was seen: it never works on its own time.
const JUDGE_TIME: Duration = Duration::from_secs(1);

/// What is wanted of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetWish {
    /// That it runs like this.
    Ensure(TargetSpec, EnsureWish),
    /// That it does not run; `force` also with virtual machines connected.
    Destroy {
        /// Which, and where its control socket is.
        spec: TargetSpec,
        /// Whether it is insisted on.
        force: bool,
    },
}

impl TargetWish {
    fn spec(&self) -> &TargetSpec {
        match self {
            TargetWish::Ensure(spec, _) | TargetWish::Destroy { spec, .. } => spec,
        }
    }

    fn plan(&self, seen: &TargetSeen, policy: &TargetPolicy) -> Result<TargetPlan, Fault> {
        match self {
            TargetWish::Ensure(spec, wish) => target::ensure(spec, *wish, seen, policy),
            TargetWish::Destroy { spec, force } => target::destroy(spec, *force, seen, policy),
        }
    }
}

/// What a target's task is asked for, and where its answer goes.
enum Request {
    /// The target itself.
    Target {
        work: WorkId,
        wish: Box<TargetWish>,
        dry_run: bool,
        reply: oneshot::Sender<PrepareReport>,
    },
    /// Volumes that are to serve.
    Activate {
        volumes: Vec<VolumeSpec>,
        undo: bool,
        reply: oneshot::Sender<Result<Vec<VolumeView>, Fault>>,
    },
    /// Volumes that are to go, of a target that need not be desired.
    Deactivate {
        target: Box<TargetSpec>,
        volumes: Vec<VolumeKey>,
        reply: oneshot::Sender<Result<(), Fault>>,
    },
    /// A volume that is to have another size.
    Resize {
        target: Box<TargetSpec>,
        volume: VolumeKey,
        size_mib: u64,
        reply: oneshot::Sender<Result<VolumeView, Fault>>,
    },
    /// A look at the volumes.
    Look { reply: oneshot::Sender<()>, _place: OwnedSemaphorePermit },
    /// The agent has started: the target is brought up if it is down.
    Start,
}

/// A request on its way.
struct Requested {
    request: Request,
    /// Shows that its task is needed until it is done.
    _work: Arc<()>,
}

/// The way to one task.
#[derive(Clone)]
struct Way {
    requests: mpsc::Sender<Requested>,
    /// What each of its requests holds a share of.
    work: Arc<()>,
    /// One look at a time: who only wants to know must not fill its queue.
    looks: Arc<Semaphore>,
    /// The control socket at which the target was asked for, for one that is not desired.
    asked_at: Arc<watch::Sender<Option<CleanPath>>>,
}

type Tasks = BTreeMap<TargetName, Way>;

/// What every task needs.
pub struct Parts<C> {
    /// Looks at targets.
    pub observer: TargetObserver<C>,
    /// Changes them.
    pub applier: TargetApplier<C>,
    /// Looks at their volumes.
    pub volume_observer: VolumeObserver,
    /// Changes those.
    pub volume_applier: VolumeApplier,
    /// The operator's choices.
    pub policy: TargetPolicy,
    /// Desired targets and volumes.
    pub desired: DesiredTargets,
    /// What is remembered of their exits.
    pub exits: Exits,
    /// Asks engine and control sockets.
    pub probe: Arc<Probe<C>>,
    /// Observe them all the time.
    pub observers: Observers,
    /// Where their statuses are published.
    pub statuses: Statuses,
    /// Tells how work goes on.
    pub progress: ProgressSink,
    /// The engine's owner, where nobody else starts an engine that ended.
    pub engine: Option<Engine>,
}

/// The handle of all targets of this node.
#[derive(Clone)]
pub struct Targets {
    tasks: Arc<Mutex<Tasks>>,
    start: Arc<dyn Fn(TargetName, Way, mpsc::Receiver<Requested>) + Send + Sync>,
    desired: DesiredTargets,
    exits: Exits,
    observers: Observers,
    statuses: Statuses,
    deep: Arc<DeepProbe>,
}

impl Targets {
    /// A handle; a task is started with the first request for its target.
    pub fn new<C: Containers>(parts: Parts<C>, deep: DeepProbe, watchdog: Watchdog) -> Targets {
        let parts = Arc::new(parts);
        let (desired, exits) = (parts.desired.clone(), parts.exits.clone());
        let (observers, statuses) = (parts.observers.clone(), parts.statuses.clone());
        let start = move |name, way: Way, queue| {
            let task = Task::new(name, parts.clone(), way.asked_at);
            tokio::spawn(task.run(queue, watchdog.register()));
        };
        let start = Arc::new(start);
        let deep = Arc::new(deep);
        Targets { tasks: Arc::default(), start, desired, exits, observers, statuses, deep }
    }

    /// Looks after every target that is desired, from now on: what has exited meanwhile is brought back.
    pub fn start_all(&self) {
        let names: Vec<TargetName> =
            self.desired.watch().borrow().targets.keys().cloned().collect();
        self.exits.keep_only(&names);
        for name in names {
            if let Err(fault) = self.send(&name, Request::Start) {
                tracing::error!(target_name = %name, code = %fault.code, "{name} is not looked after: {fault}");
            }
        }
    }

    /// Observes every target that is desired, from now on; nothing is done yet.
    pub fn observe_all(&self) {
        for name in self.desired.watch().borrow().targets.keys() {
            if let Err(fault) = self.way(name) {
                tracing::error!(target_name = %name, code = %fault.code, "{name} is not observed: {fault}");
            }
        }
    }

    /// The health of a target with that control socket, from what is known when that is young enough.
    pub async fn health(&self, name: &TargetName, control: &CleanPath) -> TargetHealth {
        let seen = self.observers.fresh(name, control).await;
        let known = self.judged(name, control, seen.number).await;
        let health = known.unwrap_or_else(|| health_of_another(name, &seen));
        let answered = seen.answers.answered().filter(|_| health.state == TargetState::Serving);
        let age = answered.map(|at| at.elapsed().as_millis());
        let age_ms = age.map(|age| u64::try_from(age).unwrap_or(u64::MAX));
        TargetHealth { age_ms, ..health }
    }

    /// What its task made of that observation or a later one; none, where the target is desired with another
    /// control socket, or there are too many targets.
    async fn judged(
        &self,
        name: &TargetName,
        control: &CleanPath,
        number: u64,
    ) -> Option<TargetHealth> {
        let desired = self.desired.get(name);
        if desired.as_ref().is_some_and(|spec| spec.control_sock != *control) {
            return None;
        }
        let asked_at = self.way(name).ok()?.asked_at;
        asked_at.send_if_modified(|at| at.replace(control.clone()).as_ref() != Some(control));
        let mut statuses = self.statuses.watch();
        let judged = statuses.wait_for(|all| {
            let known = all.get(name);
            known.is_some_and(|it| it.judged >= number && it.control.as_ref() == Some(control))
        });
        // One that is late is told as it was known last.
        let _ = timeout(JUDGE_TIME, judged).await;
        let all = statuses.borrow();
        let known = all.get(name).filter(|it| it.control.as_ref() == Some(control));
        known?.health.clone()
    }

    /// How old the last answer is of each target that is observed and has answered; nobody is asked for that.
    pub fn last_answers(&self) -> Vec<(TargetName, Duration)> {
        self.observers.last_answers()
    }

    /// What I/O through the target with that control socket came to.
    pub async fn deep_health(&self, control: &CleanPath) -> DeepHealth {
        self.deep.prove(control).await
    }

    /// Brings about what is wanted of a target, as that work; every step has its own deadline.
    ///
    /// # Errors
    /// Only when it could not be taken in; what failed in the work is in the report.
    pub async fn bring_about(
        &self,
        work: WorkId,
        wish: TargetWish,
        dry_run: bool,
    ) -> Result<PrepareReport, Fault> {
        let (name, wish) = (wish.spec().name.clone(), Box::new(wish));
        self.ask(&name, |reply| Request::Target { work, wish, dry_run, reply }).await
    }

    /// Makes volumes serve in a target, all in one pass, and writes down that they are desired before that.
    /// `undo` forgets again, and takes away, what was not desired before and could not be brought about.
    ///
    /// Returns each volume as it stands afterwards: one that does not serve says why.
    ///
    /// # Errors
    /// When nothing of it could be taken in: a conflict with what is desired already, the state, the target;
    /// with `undo`, also when one could not be brought about.
    pub async fn activate(
        &self,
        target: &TargetSpec,
        volumes: Vec<VolumeSpec>,
        undo: bool,
    ) -> Result<Vec<VolumeView>, Fault> {
        self.ask(&target.name, |reply| Request::Activate { volumes, undo, reply }).await?
    }

    /// Takes volumes away; those that are not there are gone already. With a virtual machine connected one
    /// is refused; `wait` waits so long for it to go.
    ///
    /// # Errors
    /// `volume-in-use`, and what the target or the state say.
    pub async fn deactivate(
        &self,
        target: &TargetSpec,
        volumes: Vec<VolumeKey>,
        wait: Option<Duration>,
    ) -> Result<(), Fault> {
        let deadline = Instant::now() + wait.unwrap_or_default();
        loop {
            let (target, volumes) = (Box::new(target.clone()), volumes.clone());
            let name = target.name.clone();
            let done =
                self.ask(&name, |reply| Request::Deactivate { target, volumes, reply }).await?;
            match done {
                // Not in the task, which has other things to do meanwhile.
                Err(fault) if fault.code == Code::VolumeInUse && Instant::now() < deadline => {
                    sleep(LEAVE_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Gives a volume a new size, which a connected guest sees.
    ///
    /// # Errors
    /// `volume-unknown`, `volume-not-resizable`, and what the target says.
    pub async fn resize(
        &self,
        target: &TargetSpec,
        volume: VolumeKey,
        size_mib: u64,
    ) -> Result<VolumeView, Fault> {
        let (target, name) = (Box::new(target.clone()), target.name.clone());
        self.ask(&name, |reply| Request::Resize { target, volume, size_mib, reply }).await?
    }

    /// The volumes that are desired in a target, as they stand: looked at now, unless its task is busy for
    /// longer; then as they were known last.
    pub async fn volumes(&self, target: &TargetName) -> Vec<VolumeView> {
        let specs = self.desired.volumes(target);
        if specs.is_empty() {
            return Vec::new();
        }
        let looked = async {
            let _place = self.way(target).ok()?.looks.acquire_owned().await.ok()?;
            self.ask(target, |reply| Request::Look { reply, _place }).await.ok()
        };
        // One that is busy knows what it did last, and that is told then.
        let _ = timeout(LOOK_PATIENCE, looked).await;
        let known = self.volume_statuses(target);
        let specs = self.desired.volumes(target);
        specs.values().map(|spec| view(target, spec, &known)).collect()
    }

    fn volume_statuses(&self, target: &TargetName) -> Arc<Volumes> {
        let all = self.statuses.watch();
        let known = all.borrow().get(target).map(|status| status.volume_statuses.clone());
        known.unwrap_or_default()
    }

    async fn ask<T>(
        &self,
        name: &TargetName,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        self.send(name, request(reply))?;
        answer.await.map_err(|_| owner_gone())
    }

    fn send(&self, name: &TargetName, request: Request) -> Result<(), Fault> {
        let Way { requests, work, .. } = self.way(name)?;
        requests.try_send(Requested { request, _work: work }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Fault::new(
                Code::TargetBusy,
                format!("{QUEUE} requests for this target wait already: call again later"),
            ),
            mpsc::error::TrySendError::Closed(_) => owner_gone(),
        })
    }

    fn way(&self, name: &TargetName) -> Result<Way, Fault> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = tasks.get(name) {
            return Ok(way.clone());
        }
        if tasks.len() >= MOST_TARGETS {
            // A task without work remembers nothing of a target that is not desired: it ends, and is
            // started again when needed.
            tasks.retain(|name, way| {
                Arc::strong_count(&way.work) > 1 || self.desired.get(name).is_some()
            });
        }
        if tasks.len() >= MOST_TARGETS {
            let text = format!("{MOST_TARGETS} targets are worked on already: call again later");
            return Err(Fault::new(Code::TooManyTargets, text));
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        let looks = Arc::new(Semaphore::new(1));
        let way = Way { requests, work: Arc::new(()), looks, asked_at: Arc::default() };
        (self.start)(name.clone(), way.clone(), queue);
        tasks.insert(name.clone(), way.clone());
        Ok(way)
    }
}

/// A volume with how it stood last.
fn view(target: &TargetName, spec: &VolumeSpec, known: &Volumes) -> VolumeView {
    let status = known.get(&spec.name).cloned().unwrap_or_else(VolumeStatus::unknown);
    VolumeView { target: target.clone(), spec: spec.clone(), status }
}

/// The time, in RFC 3339.
fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

#[cfg(test)]
mod health_tests;
#[cfg(test)]
mod task_tests;
