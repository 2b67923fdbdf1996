//! The task of one target: takes requests and observations, decides by the lifecycle, and begins the work.
//!
//! ```text
//! observation, request, timer, end of work ──▶ lifecycle::step ──▶ start, kill, or wait ──▶ work
//! ```
//!
//! One piece of work is done at a time, by a [`Worker`] that is moved into it and comes back from it; the task goes
//! on evaluating meanwhile. Images are brought in beside that: they may take minutes.

mod next;
mod phases;
mod work;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::work::{WorkResults, WorkerState};
use super::deploy::{IncomingImage, Underway, arrival, refuse};
use super::observer::Observations;
use super::status::SharedStatus;
use super::worker::Worker;
use super::{PLACES_OF_DESTROYS, Parts, QUEUE, Requested, TaskRequest, too_many_requests};
use crate::docker::Containers;
use crate::model::observation::Observation;
use crate::model::path::CleanPath;
use crate::model::target::{TargetName, TargetSpec};
use crate::plan::lifecycle::{LifecycleRecord, State};
use crate::wait;
use crate::watchdog::Heartbeat;

/// Shortest pause between two rounds, unless something changes.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// Future of something under way.
pub(super) type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Changes that the task of a target may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mandate {
    /// No change: nothing was requested yet. A read-only command, or an agent that is not ready yet, changes nothing.
    Look,
    /// Changes that a request or the policy asks for.
    Act,
    /// Changes as with `Act`, while the agent is starting: a target that is down is brought up whatever the policy
    /// says.
    Start,
}

pub(super) struct Task<C> {
    parts: Arc<Parts<C>>,
    status: SharedStatus,
    /// Control socket at which callers last asked for the target; used if the target is not desired.
    asked_at: Arc<watch::Sender<Option<CleanPath>>>,
    observed: Option<(CleanPath, Observations)>,
    /// Phase of the target, and its backoff.
    state: State,
    /// Part of the state that is on disk.
    written: LifecycleRecord,
    /// Time of the next attempt to write the state, after a failed one.
    remember_at: Option<Instant>,
    /// Time at which the lifecycle takes the next step.
    requeue_at: Option<Instant>,
    news: WorkResults,
    /// Reason of the last exit, if that is a crash loop whose evidence is yet to be collected.
    crashed: Option<String>,
    mandate: Mandate,
    /// Pending requests.
    requests: VecDeque<Requested>,
    deploy: Underway,
    /// Image that a start of the task's own waits for, and the target that is to be started.
    start_image: Option<(TargetSpec, IncomingImage)>,
    /// Time from which the trial of the target counts: its begin, or a later time after an evaluation without a result.
    trial_since: Option<Instant>,
    worker: WorkerState<C>,
    /// Reason to cancel work that waits for the target.
    stuck: watch::Sender<Option<String>>,
    reconciled: Instant,
}

impl<C: Containers> Task<C> {
    pub(super) fn new(
        name: TargetName,
        parts: Arc<Parts<C>>,
        asked_at: Arc<watch::Sender<Option<CleanPath>>>,
    ) -> Task<C> {
        // Keeps targets of one node from coming back in step.
        let seed = name.as_str().bytes().fold(u64::from(std::process::id()), |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let written = parts.exits.of(&name);
        let state = State::new(&parts.policy.heal, seed).recall(written, Instant::now().into_std());
        let status = SharedStatus::new(name, parts.statuses.clone(), parts.desired.clone());
        let stuck = watch::Sender::new(None);
        let worker =
            Worker::new(parts.clone(), status.clone(), &state, &written, stuck.subscribe());
        Task {
            parts,
            status,
            asked_at,
            observed: None,
            state,
            written,
            remember_at: None,
            requeue_at: None,
            news: WorkResults::default(),
            crashed: None,
            mandate: Mandate::Look,
            requests: VecDeque::new(),
            deploy: Underway::Nothing,
            start_image: None,
            trial_since: None,
            worker: WorkerState::Idle(Box::new(worker)),
            stuck,
            reconciled: Instant::now(),
        }
    }

    /// Reconciles the target until no handle is left.
    pub(super) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Requested>,
        mut heartbeat: Heartbeat,
    ) {
        let mut desired = self.parts.desired.watch();
        let mut asked_at = self.asked_at.subscribe();
        let mut guests = self.parts.guests.clone();
        let mut closed = false;
        loop {
            self.reconcile();
            if closed && self.is_idle() {
                break;
            }
            // What is due and cannot be done now must not become a busy loop.
            let due = self.next_due().map(|due| due.max(self.reconciled + LEAST_PAUSE));
            tokio::select! {
                // Cancel-safe, all of them: a request stays queued, a change stays new, a heartbeat stays due, and
                // what goes on is kept.
                done = self.worker.finished() => self.finished(done),
                image = arrival(self.deploy.image()) => self.deploy_image_ended(image),
                image = arrival(self.start_image.as_mut().map(|(_, image)| image)) => self.start_image_ended(image),
                () = changed(&mut self.observed) => {}
                changed = desired.changed() => closed |= changed.is_err(),
                changed = asked_at.changed() => closed |= changed.is_err(),
                requested = queue.recv(), if !closed => match requested {
                    Some(requested) => self.requested(requested),
                    None => closed = true,
                },
                () = wait::change(&mut guests) => {
                    let guests = guests.borrow().clone();
                    self.status.see_guests(&guests);
                }
                () = wait::until(due) => {}
                () = heartbeat.due() => {}
            }
        }
        if !self.is_desired() {
            self.status.forget();
        }
        heartbeat.retire();
    }

    /// `true` if nothing is being done, and nothing waits.
    fn is_idle(&self) -> bool {
        self.worker.is_idle()
            && self.requests.is_empty()
            && self.deploy.is_nothing()
            && self.start_image.is_none()
    }

    fn name(&self) -> &TargetName {
        self.status.name()
    }

    /// `true` if the mandate allows changes.
    fn acts(&self) -> bool {
        self.mandate != Mandate::Look
    }

    fn is_desired(&self) -> bool {
        self.parts.desired.get(self.name()).is_some()
    }

    fn requested(&mut self, requested: Requested) {
        match requested.request {
            TaskRequest::Start => {
                self.mandate = Mandate::Start;
                // Nothing was done before for a target on trial, so its time begins now.
                self.trial_since = self.trial_since.map(|_| Instant::now());
            }
            _ => {
                if self.mandate == Mandate::Look && !requested.request.only_looks() {
                    self.mandate = Mandate::Act;
                }
                let is_destroy = requested.request.is_destroy();
                let places = if is_destroy { QUEUE + PLACES_OF_DESTROYS } else { QUEUE };
                match self.requests.len() < places {
                    true => self.requests.push_back(requested),
                    false => refuse(requested, too_many_requests()),
                }
            }
        }
    }

    /// Takes in the observation, and begins the work that is due.
    pub(super) fn reconcile(&mut self) {
        self.reconciled = Instant::now();
        self.see();
        let trial = self.parts.desired.trial(self.name());
        self.trial_since = trial.map(|_| self.trial_since.unwrap_or(self.reconciled));
        let desired = self.parts.desired.get(self.name());
        if self.start_image.as_ref().is_some_and(|(of, _)| Some(of) != desired.as_ref()) {
            self.give_up_start_image();
        }
        match desired {
            Some(spec) => self.advance(&spec),
            None if self.worker.is_idle() => self.release(),
            None => {}
        }
        if self.worker.is_idle()
            && let Some(work) = self.next_work()
        {
            self.begin(work);
        }
    }

    /// Takes in the observation at the desired control socket, or else at the one that was asked for.
    fn see(&mut self) {
        let desired = self.parts.desired.get(self.name()).map(|spec| spec.control_sock);
        if self.observed.as_ref().is_some_and(|(_, seen)| seen.has_changed().is_err()) {
            // A target that is neither desired nor asked for is observed no more.
            self.observed = None;
            if desired.is_none() && self.is_idle() {
                self.asked_at.send_replace(None);
                self.status.forget();
            }
        }
        let observed = self.observed.as_ref().map(|(control, _)| control.clone());
        let control = desired.or_else(|| self.asked_at.borrow().clone()).or(observed);
        let Some(control) = control else { return };
        if self.observed.as_ref().is_none_or(|(of, _)| *of != control) {
            let seen = self.parts.observers.observe(self.name(), &control);
            self.observed = Some((control, seen));
        }
        if let Some((control, seen)) = &mut self.observed {
            let seen = (control.clone(), seen.borrow_and_update().clone());
            self.status.change(|known| known.seen = Some(seen));
        }
    }

    fn seen(&self) -> Option<Arc<Observation>> {
        self.status.read(|known| known.seen.as_ref().map(|(_, seen)| seen.clone()))
    }
}

/// Waits for the next observation, or the end of its observer; never returns if there is none.
async fn changed(observed: &mut Option<(CleanPath, Observations)>) {
    match observed {
        Some((_, seen)) => drop(seen.changed().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod image_tests;
#[cfg(test)]
mod task_tests;
