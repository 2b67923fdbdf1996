//! Targets of this node: one reconciler for each, which alone evaluates, acts and publishes its status.
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

mod converge;
mod deploy;
pub mod desired;
pub(crate) mod desired_files;
mod exits;
pub mod observer;
mod request;
mod start;
mod status;
mod task;
mod trial;
mod volume_sessions;
mod volume_statuses;
mod volumes;
mod worker;
mod writes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use self::desired::DesiredTargets;
pub use self::exits::Exits;
use self::observer::{Observers, Probe};
pub use self::request::TargetChange;
use self::request::{Requested, TaskRequest};
pub use self::status::Statuses;
use self::status::health_of_another;
use self::task::Task;
use crate::agent::apply::target::TargetApplier;
use crate::agent::apply::volumes::VolumeApplier;
use crate::agent::engine::EngineHandle;
use crate::agent::memory::Published;
use crate::agent::observe::target::TargetObserver;
use crate::agent::observe::volumes::VolumeObserver;
use crate::agent::owner_gone;
use crate::agent::progress_sink::ProgressSink;
use crate::docker::Containers;
use crate::health::deep::DeepProbe;
use crate::model::buffers::BufferWaits;
use crate::model::code::Code;
use crate::model::deep::DeepHealth;
use crate::model::fault::Fault;
use crate::model::guest::Guests;
use crate::model::path::CleanPath;
use crate::model::policy::{MOST_TARGETS, TargetPolicy};
use crate::model::prepare::PrepareReport;
use crate::model::target::{TargetHealth, TargetName};
use crate::model::work::WorkId;
use crate::watchdog::Watchdog;

/// Requests that may wait for one target; more are refused.
const QUEUE: usize = 256;
/// Further places in the queue, for destroys only, which wait for no other request.
const PLACES_OF_DESTROYS: usize = 16;
/// Time for a task to evaluate an observation: work runs beside it.
const EVALUATION_TIME: Duration = Duration::from_secs(1);

/// Handle of one task.
#[derive(Clone)]
struct TaskHandle {
    requests: mpsc::Sender<Requested>,
    /// Token of which each request of the task holds a clone; the number of clones shows whether the task has work.
    work: Arc<()>,
    /// Permit for one look at a time: looks must not fill the queue.
    looks: Arc<Semaphore>,
    /// Control socket at which callers last asked for the target; used if the target is not desired.
    asked_at: Arc<watch::Sender<Option<CleanPath>>>,
}

type Tasks = BTreeMap<TargetName, TaskHandle>;

/// Dependencies of every task.
pub struct Parts<C> {
    pub observer: TargetObserver<C>,
    pub applier: TargetApplier<C>,
    pub volume_observer: VolumeObserver,
    pub volume_applier: VolumeApplier,
    pub policy: TargetPolicy,
    pub desired: DesiredTargets,
    pub exits: Exits,
    /// Probe of the engine and the control sockets.
    pub probe: Arc<Probe<C>>,
    /// Observers that run all the time.
    pub observers: Observers,
    pub statuses: Statuses,
    pub progress: ProgressSink,
    /// Ledger of the pools: pages that are kept for guests are not a new target's.
    pub pages: watch::Receiver<Published>,
    /// Guests of the targets' volumes.
    pub guests: watch::Receiver<Arc<Guests>>,
    /// Owner of the engine, if nobody else starts an engine that ended.
    pub engine: Option<EngineHandle>,
    /// Deep probe by I/O and connections of the agent's own.
    pub deep: DeepProbe,
}

/// Handle of all targets of this node.
#[derive(Clone)]
pub struct Targets {
    tasks: Arc<Mutex<Tasks>>,
    start: Arc<dyn Fn(TargetName, TaskHandle, mpsc::Receiver<Requested>) + Send + Sync>,
    desired: DesiredTargets,
    exits: Exits,
    observers: Observers,
    statuses: Statuses,
    deep: DeepProbe,
}

impl Targets {
    /// Creates a handle; a task is started with the first request for its target.
    pub fn new<C: Containers>(parts: Parts<C>, watchdog: Watchdog) -> Targets {
        let parts = Arc::new(parts);
        let (desired, exits, deep) =
            (parts.desired.clone(), parts.exits.clone(), parts.deep.clone());
        let (observers, statuses) = (parts.observers.clone(), parts.statuses.clone());
        let start = move |name, way: TaskHandle, queue| {
            let task = Task::new(name, parts.clone(), way.asked_at);
            tokio::spawn(task.run(queue, watchdog.register()));
        };
        let start = Arc::new(start);
        Targets { tasks: Arc::default(), start, desired, exits, observers, statuses, deep }
    }

    /// Reconciles every desired target from now on: those that have exited meanwhile are brought back.
    pub fn start_all(&self) {
        let names: Vec<TargetName> =
            self.desired.watch().borrow().targets.keys().cloned().collect();
        self.exits.keep_only(&names);
        for name in names {
            if let Err(fault) = self.send(&name, TaskRequest::Start) {
                tracing::error!(target_name = %name, code = %fault.code, "{name} is desired, but its task could not be started, so exits are not recovered: {fault}");
            }
        }
    }

    /// Observes every desired target from now on; nothing is changed yet.
    pub fn observe_all(&self) {
        for name in self.desired.watch().borrow().targets.keys() {
            if let Err(fault) = self.way(name) {
                tracing::error!(target_name = %name, code = %fault.code, "{name} is desired, but cannot be observed: {fault}");
            }
        }
    }

    /// Health of the target with the control socket `control`, from the last observation if that is fresh enough.
    pub async fn health(&self, name: &TargetName, control: &CleanPath) -> TargetHealth {
        let seen = self.observers.fresh(name, control).await;
        let known = self.evaluated(name, control, seen.number).await;
        let health = known.unwrap_or_else(|| health_of_another(name, &seen));
        let answered = seen.answers.answered().filter(|_| health.is_up());
        let age = answered.map(|at| at.elapsed().as_millis());
        let age_ms = age.map(|age| u64::try_from(age).unwrap_or(u64::MAX));
        TargetHealth { age_ms, ..health }
    }

    /// Waits until one of `targets` answers, each named with its control socket; at least one has to be named.
    ///
    /// # Errors
    /// The health of all of them, if none has answered within `within`.
    pub async fn first_answer(
        &self,
        targets: &[(TargetName, CleanPath)],
        within: Duration,
    ) -> Result<(), Vec<TargetHealth>> {
        let answers = targets.iter().map(|(name, control)| {
            let mut seen = self.observers.observe(name, control);
            Box::pin(async move {
                let answers = seen.wait_for(|seen| seen.version().is_some()).await.is_ok();
                // The observer has ended, and reports nothing any more.
                if !answers {
                    std::future::pending::<()>().await;
                }
            })
        });
        if timeout(within, select_all(answers)).await.is_ok() {
            return Ok(());
        }
        Err(join_all(targets.iter().map(|(name, control)| self.health(name, control))).await)
    }

    /// Health that the target's task evaluated from observation `number` or a later one. `None` if the target is
    /// desired with another control socket, or if there are too many targets.
    async fn evaluated(
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
        let evaluated = statuses.wait_for(|all| {
            let known = all.get(name);
            known.is_some_and(|it| it.observation >= number && it.control.as_ref() == Some(control))
        });
        // After the timeout, the last known health is reported.
        let _ = timeout(EVALUATION_TIME, evaluated).await;
        let all = statuses.borrow();
        let known = all.get(name).filter(|it| it.control.as_ref() == Some(control));
        known?.health.clone()
    }

    /// Age of the last answer of each observed target that has answered. No probe is sent for that.
    pub fn last_answers(&self) -> Vec<(TargetName, Duration)> {
        self.observers.last_answers()
    }

    /// Requests that had to wait for an I/O buffer, of each observed target that counts them. No probe is sent for that.
    pub fn buffer_waits(&self) -> Vec<(TargetName, BufferWaits)> {
        self.observers.buffer_waits()
    }

    /// Probes the target with the control socket `control` by I/O.
    pub async fn deep_health(&self, control: &CleanPath) -> DeepHealth {
        self.deep.prove(control).await
    }

    /// Carries out `change` on its target, as the work with the id `work`; every step has its own deadline.
    ///
    /// # Errors
    /// Only when the request could not be admitted; failures of the work are in the report.
    pub async fn reconcile(
        &self,
        work: WorkId,
        change: TargetChange,
        dry_run: bool,
    ) -> Result<PrepareReport, Fault> {
        let (name, change) = (change.spec().name.clone(), Box::new(change));
        self.ask(&name, |reply| TaskRequest::Target { work, change, dry_run, reply }).await
    }

    async fn ask<T>(
        &self,
        name: &TargetName,
        request: impl FnOnce(oneshot::Sender<T>) -> TaskRequest,
    ) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        self.send(name, request(reply))?;
        answer.await.map_err(|_| owner_gone())
    }

    fn send(&self, name: &TargetName, request: TaskRequest) -> Result<(), Fault> {
        let TaskHandle { requests, work, .. } = self.way(name)?;
        requests.try_send(Requested { request, _work: work }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => too_many_requests(),
            mpsc::error::TrySendError::Closed(_) => owner_gone(),
        })
    }

    fn way(&self, name: &TargetName) -> Result<TaskHandle, Fault> {
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
        let way = TaskHandle { requests, work: Arc::new(()), looks, asked_at: Arc::default() };
        (self.start)(name.clone(), way.clone(), queue);
        tasks.insert(name.clone(), way.clone());
        Ok(way)
    }
}

fn too_many_requests() -> Fault {
    let text = format!("{QUEUE} requests for this target wait already: call again later");
    Fault::new(Code::TargetBusy, text)
}

/// Current time, in RFC 3339.
fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

#[cfg(test)]
mod health_tests;
