//! The task of one target: it takes requests and observations, decides by the lifecycle, and begins the work.
//!
//! ```text
//! observation, request, timer, end of work ──▶ lifecycle::step ──▶ start, kill, or wait ──▶ work
//! ```
//!
//! One piece of work is done at a time, by a [`Worker`] that goes into it and comes back from it; the task goes
//! on judging meanwhile. Images are brought in beside that: they may take minutes.

mod next;
mod phases;
mod work;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::work::{News, WorkerState};
use super::deploy::{Incoming, Underway, arrival, refuse};
use super::observer::Observations;
use super::status::Status;
use super::worker::Worker;
use super::{PLACES_OF_DESTROYS, Parts, QUEUE, Request, Requested, too_many_requests};
use crate::docker::Containers;
use crate::model::observation::Observation;
use crate::model::path::CleanPath;
use crate::model::target::{TargetName, TargetSpec};
use crate::plan::lifecycle::{Remembered, State};
use crate::wait;
use crate::watchdog::Heartbeat;

/// Between two looks at what is due, unless something changes.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// Something that goes on.
pub(super) type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Changes that the task of a target may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mandate {
    /// No change: nothing was asked for yet. A command that looks, or an agent that has yet to become ready, changes
    /// nothing.
    Look,
    /// Whatever a request or the policy asks for.
    Act,
    /// The same; and the agent has only started: a target that is down is brought up whatever the policy says.
    Start,
}

/// The task of one target.
pub(super) struct Task<C> {
    parts: Arc<Parts<C>>,
    status: Status,
    /// Control socket that callers named, should the target not be desired.
    asked_at: Arc<watch::Sender<Option<CleanPath>>>,
    observed: Option<(CleanPath, Observations)>,
    /// Phase of the target, and its backoff.
    state: State,
    /// Part of the state that is on the disk.
    written: Remembered,
    /// Time of the next try to write the state, after one that failed.
    remember_at: Option<Instant>,
    /// Time at which the lifecycle takes the next step.
    requeue_at: Option<Instant>,
    news: News,
    /// Reason of the last exit, where that is a crash loop whose evidence is to be looked for.
    crashed: Option<String>,
    mandate: Mandate,
    /// Requests that wait.
    requests: VecDeque<Requested>,
    /// The deploy that is under way.
    deploy: Underway,
    /// The image that a start of the task's own waits for, and the target that is to be started.
    start_image: Option<(TargetSpec, Incoming)>,
    /// Since when the target is on trial, or not to be judged before.
    trial_since: Option<Instant>,
    worker: WorkerState<C>,
    /// Reason to give up work that waits for the target.
    stuck: watch::Sender<Option<String>>,
    reconciled: Instant,
}

impl<C: Containers> Task<C> {
    pub(super) fn new(
        name: TargetName,
        parts: Arc<Parts<C>>,
        asked_at: Arc<watch::Sender<Option<CleanPath>>>,
    ) -> Task<C> {
        // Targets of one node do not come back in step.
        let seed = name.as_str().bytes().fold(u64::from(std::process::id()), |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let written = parts.exits.of(&name);
        let state = State::new(&parts.policy.heal, seed).recall(written, Instant::now().into_std());
        let status = Status::new(name, parts.statuses.clone(), parts.desired.clone());
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
            news: News::default(),
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

    /// Reconciles the target until nobody can ask any more.
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

    /// Whether nothing is done, and nothing waits.
    fn is_idle(&self) -> bool {
        self.worker.is_idle()
            && self.requests.is_empty()
            && self.deploy.is_nothing()
            && self.start_image.is_none()
    }

    fn name(&self) -> &TargetName {
        self.status.name()
    }

    /// Whether anything may be changed.
    fn acts(&self) -> bool {
        self.mandate != Mandate::Look
    }

    fn is_desired(&self) -> bool {
        self.parts.desired.get(self.name()).is_some()
    }

    fn requested(&mut self, requested: Requested) {
        match requested.request {
            Request::Start => {
                self.mandate = Mandate::Start;
                // Nothing was done for one on trial before.
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

    /// Takes in what is seen, and begins what is due.
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

    /// Takes in what is seen at the control socket that is desired, or else at the one that was asked for.
    fn see(&mut self) {
        let desired = self.parts.desired.get(self.name()).map(|spec| spec.control_sock);
        if self.observed.as_ref().is_some_and(|(_, seen)| seen.has_changed().is_err()) {
            // One that nobody desires or asks for is observed no more.
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

/// The next observation, or the end of its observer; never where there is none.
async fn changed(observed: &mut Option<(CleanPath, Observations)>) {
    match observed {
        Some((_, seen)) => drop(seen.changed().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "../task_tests.rs"]
mod task_tests;
