//! The task of one target: it takes requests and observations, decides by the lifecycle, and begins the work.
//!
//! ```text
//! observation, request, timer, end of work ──▶ lifecycle::step ──▶ start, kill, or wait ──▶ work
//! ```
//! One piece of work is done at a time, by a [`Worker`] that goes into it and comes back from it; the task goes
//! on judging meanwhile. Images are brought in beside that: they may take minutes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::observer::Observations;
use super::status::Status;
use super::work::{After, Deploy, ENGINE_PAUSE, Finished, Image, Then, Work, Worker, start_failed};
use super::{Parts, QUEUE, Request, Requested};
use crate::docker::Containers;
use crate::model::observation::{Observation, Process};
use crate::model::path::CleanPath;
use crate::model::status::LastExit;
use crate::model::target::{self, TargetName, TargetSpec};
use crate::plan::lifecycle::{Action, Attempt, Phase, Remembered, Situation, State, step};
use crate::wait;
use crate::watchdog::Heartbeat;

/// Between two looks at what is due, unless something changes.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// Steps in a row, each of which leads to another phase.
const MOST_STEPS: usize = 16;

/// Something that goes on.
type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What waits for the worker.
pub(super) enum Job {
    /// A request, as it came.
    Asked(Requested),
    /// A deploy whose image is there now.
    Deploy(Box<Deploy>),
    /// A deploy whose container runs: it is over when the volumes are back.
    Settle(Box<Deploy>),
}

/// The task of one target.
pub(super) struct Task<C> {
    pub(super) name: TargetName,
    pub(super) parts: Arc<Parts<C>>,
    pub(super) status: Status,
    /// Where it was asked for, should it not be desired.
    asked_at: Arc<watch::Sender<Option<CleanPath>>>,
    observed: Option<(CleanPath, Observations)>,
    /// Where the target is in its life.
    pub(super) state: State,
    /// What is written down of that.
    written: Remembered,
    /// What the work that goes on writes down.
    writing: Remembered,
    /// When that is tried again, where it could not be done.
    remember_at: Option<Instant>,
    /// When the state asks to be looked at again.
    requeue_at: Option<Instant>,
    /// What came of the last start, until the next step.
    attempt: Option<Attempt>,
    /// Whether the work that has just ended stopped its process, until the next step.
    stopped: bool,
    /// Whether the agent has only started, and the target was not brought up since.
    at_start: bool,
    /// Why it exited once more, where that is a crash loop whose evidence is to be looked for.
    crashed: Option<String>,
    /// Whether anything was asked for. Until then the target is only looked at: a command that looks, or an agent
    /// that has yet to become ready, changes nothing.
    acts: bool,
    jobs: VecDeque<Job>,
    pub(super) worker: Option<Worker<C>>,
    work: Option<Running<Finished<C>>>,
    /// Whether the work brings the target up.
    brings_up: bool,
    /// How often its process had exited when the work began.
    exits_before: u64,
    /// Why work that waits for the target waits for nothing.
    stuck: watch::Sender<Option<String>>,
    images: FuturesUnordered<Running<Image>>,
    /// Whether a deploy waits for its image …
    deploy_waits: bool,
    /// … and whether a start of the task's own does.
    start_waits: bool,
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
        let status = Status::new(name.clone(), parts.statuses.clone(), parts.desired.clone());
        let stuck = watch::Sender::new(None);
        let worker =
            Worker::new(parts.clone(), status.clone(), &state, &written, stuck.subscribe());
        Task {
            name: name.clone(),
            parts,
            status,
            asked_at,
            observed: None,
            state,
            written,
            writing: written,
            remember_at: None,
            requeue_at: None,
            attempt: None,
            stopped: false,
            at_start: false,
            crashed: None,
            acts: false,
            jobs: VecDeque::new(),
            worker: Some(worker),
            work: None,
            brings_up: false,
            exits_before: 0,
            stuck,
            images: FuturesUnordered::new(),
            deploy_waits: false,
            start_waits: false,
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
        let mut closed = false;
        loop {
            self.reconcile();
            if closed && self.worker.is_some() && self.jobs.is_empty() && self.images.is_empty() {
                break;
            }
            // What is due and cannot be done now must not become a busy loop.
            let due = self.next_due().map(|due| due.max(self.reconciled + LEAST_PAUSE));
            tokio::select! {
                // Cancel-safe, all of them: a request stays queued, a change stays new, a heartbeat stays due, and
                // what goes on is kept.
                done = wait::end(&mut self.work) => self.finished(done),
                Some(image) = self.images.next() => self.image_ended(image),
                () = changed(&mut self.observed) => {}
                changed = desired.changed() => closed |= changed.is_err(),
                changed = asked_at.changed() => closed |= changed.is_err(),
                requested = queue.recv(), if !closed && self.jobs.len() < QUEUE => match requested {
                    Some(requested) => self.requested(requested),
                    None => closed = true,
                },
                () = wait::until(due) => {}
                () = heartbeat.due() => {}
            }
        }
        if !self.is_desired() {
            self.status.forget();
        }
        heartbeat.retire();
    }

    fn is_desired(&self) -> bool {
        self.parts.desired.get(&self.name).is_some()
    }

    fn requested(&mut self, requested: Requested) {
        let looks = matches!(
            requested.request,
            Request::Target { dry_run: true, .. } | Request::Look { .. }
        );
        self.acts |= !looks;
        match requested.request {
            Request::Start => self.at_start = true,
            _ => self.jobs.push_back(Job::Asked(requested)),
        }
    }

    /// Takes in what is seen, and begins what is due.
    pub(super) fn reconcile(&mut self) {
        self.reconciled = Instant::now();
        self.see();
        match self.parts.desired.get(&self.name) {
            Some(spec) => self.advance(&spec),
            None if self.worker.is_some() => self.rest(),
            None => {}
        }
        if self.worker.is_some()
            && let Some(work) = self.next_work()
        {
            self.begin(work);
        }
    }

    /// Takes in what is seen at the control socket that is desired, or else at the one that was asked for.
    fn see(&mut self) {
        let desired = self.parts.desired.get(&self.name).map(|spec| spec.control_sock);
        if self.observed.as_ref().is_some_and(|(_, seen)| seen.has_changed().is_err()) {
            // One that nobody desires or asks for is observed no more.
            self.observed = None;
            if desired.is_none() {
                self.asked_at.send_replace(None);
                self.status.forget();
            }
        }
        let observed = self.observed.as_ref().map(|(control, _)| control.clone());
        let control = desired.or_else(|| self.asked_at.borrow().clone()).or(observed);
        let Some(control) = control else { return };
        if self.observed.as_ref().is_none_or(|(of, _)| *of != control) {
            let seen = self.parts.observers.observe(&self.name, &control);
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

    /// Steps of the lifecycle, as many as there are now, and what they ask for.
    fn advance(&mut self, spec: &TargetSpec) {
        for _ in 0..MOST_STEPS {
            let Some(seen) = self.seen() else { return };
            let is_free =
                self.acts && self.worker.is_some() && self.crashed.is_none() && !self.start_waits;
            let (now, situation) = (Instant::now().into_std(), self.situation(is_free));
            let done = step(&self.state, &seen, &situation, now, &self.parts.policy.heal);
            let before = std::mem::replace(&mut self.state, done.state);
            self.requeue_at = done.requeue_at.map(Instant::from_std);
            (self.attempt, self.stopped) = (None, false);
            let changed = before.phase != self.state.phase;
            if changed {
                self.enter(before.phase, &seen);
            }
            match done.action {
                Action::Start if is_free => {
                    let failures = self.state.retry.failures();
                    // What it left in its container may be what it exits upon.
                    let anew = self.state.retry.is_crash_loop();
                    self.begin(Work::Start { spec: spec.clone(), failures, anew });
                }
                Action::Kill if is_free => self.begin(Work::Kill(spec.clone())),
                Action::Kill => {
                    let silence = seen.answers.silence();
                    self.stuck.send_replace(Some(format!("{silence}: it is brought back")));
                    return;
                }
                Action::Start | Action::Wait if changed => {}
                Action::Start | Action::Wait => break,
            }
        }
        if matches!(self.state.phase, Phase::Paused { .. }) && self.work.is_some() {
            let why = "its container is paused: unpause it".to_string();
            self.stuck.send_replace(Some(why));
        }
    }

    fn situation(&self, is_free: bool) -> Situation {
        let made = self.status.read(|known| known.controllers_made);
        let settle = self.parts.policy.heal.settle;
        Situation {
            wanted: true,
            has_users: !self.parts.desired.volumes(&self.name).is_empty(),
            bringing_up: self.brings_up || self.start_waits,
            stopping: self.stopped || self.status.read(|known| known.stopping),
            is_free,
            at_start: self.at_start,
            attempt: self.attempt,
            settles_until: made.map(|made| (made + settle).into_std()),
        }
    }

    /// It is in another phase.
    fn enter(&mut self, before: Phase, seen: &Observation) {
        let name = &self.name;
        tracing::debug!(target_name = %name, from = before.name(), to = self.state.phase.name(), "{name} goes on");
        match self.state.phase {
            Phase::Down { .. } if before.pid().is_some() => self.exited(seen),
            Phase::Probation { .. } => self.at_start = false,
            Phase::Serving { pid, .. } => {
                self.at_start = false;
                self.status.change(|known| {
                    if known.in_place != Some(pid) {
                        known.next_pass = Some(Instant::now());
                    }
                });
            }
            // One that was paused is given the time to answer.
            Phase::Unresponsive { .. }
                if seen.answers.is_silent() && before.name() != self.state.phase.name() =>
            {
                let silence = seen.answers.silence();
                tracing::warn!(target_name = %name, "{name} is unresponsive: {silence}");
            }
            Phase::Paused { .. } => {
                tracing::warn!(target_name = %name, "{name} is paused: its cgroup is frozen, and nothing is done to it");
            }
            _ => {}
        }
    }

    fn exited(&mut self, seen: &Observation) {
        let how = match &seen.process {
            Process::Ended(how) => how.clone(),
            Process::NoContainer => "there is no container of that name".to_string(),
            _ => "another process answers in its place".to_string(),
        };
        // What is told of one that exits again and again is no news of its next exit.
        let again = self.status.read(|known| known.trouble.is_some());
        let why = if again { "its process has exited once more".to_string() } else { how.clone() };
        self.status.change(|known| {
            if !std::mem::take(&mut known.killed) {
                // Until more is known of it.
                known.last_exit = Some(LastExit { at: super::now(), cause: how });
            }
            known.exits += 1;
            known.book.exited(&super::now());
            (known.in_place, known.next_pass) = (None, None);
        });
        let volumes = self.parts.desired.volumes(&self.name).len();
        let failures = self.state.retry.failures();
        let heals = self.parts.policy.heal.enabled || self.at_start;
        tracing::warn!(
            target_name = %self.name, volumes, failures, heals,
            "{} with {volumes} volumes is down: {why}", self.name
        );
        self.crashed = Some(why).filter(|_| self.state.retry.is_crash_loop());
    }

    /// Nobody desires it: there is nothing to remember.
    fn rest(&mut self) {
        if self.state.phase == Phase::Unwanted && self.written == Remembered::default() {
            return;
        }
        let now = Instant::now().into_std();
        let nobody = Situation::default();
        let unseen = Observation::unseen(now);
        self.state = step(&self.state, &unseen, &nobody, now, &self.parts.policy.heal).state;
        (self.requeue_at, self.crashed) = (None, None);
        if let Some(worker) = &mut self.worker {
            worker.forget();
        }
    }

    /// What is done next, now that nothing is.
    fn next_work(&mut self) -> Option<Work> {
        let now = Instant::now();
        if self.acts
            && let Some(why) = self.crashed.take()
        {
            return Some(Work::Evidence { why, failures: self.state.retry.failures() });
        }
        if self.pass_due().is_some_and(|due| due <= now) {
            return Some(Work::Volumes);
        }
        if let Some(at) = self.jobs.iter().position(|job| !self.waits(job))
            && (at == 0 || self.may_overtake())
            && let Some(job) = self.jobs.remove(at)
        {
            return Some(Work::Job(job));
        }
        let may_write = self.remember_at.is_none_or(|at| at <= now);
        let is_news = self.acts && self.state.remembers() != self.written;
        (is_news && may_write).then_some(Work::Remember)
    }

    /// Whether a job cannot be done yet: its image is on the way, or the target has yet to prove itself.
    fn waits(&self, job: &Job) -> bool {
        let on_probation = matches!(self.state.phase, Phase::Probation { .. });
        match job {
            Job::Deploy(_) => false,
            Job::Settle(_) => on_probation,
            Job::Asked(Requested { request, .. }) => match request {
                Request::Target { dry_run, .. } => self.deploy_waits && !dry_run,
                Request::Activate { .. } | Request::Look { .. } => {
                    on_probation || self.deploy_waits && !self.may_overtake()
                }
                _ => self.deploy_waits && !self.may_overtake(),
            },
        }
    }

    /// Whether what serves may be asked for more while the image of its successor is on the way.
    fn may_overtake(&self) -> bool {
        self.deploy_waits && matches!(self.state.phase, Phase::Serving { .. })
    }

    /// When its volumes are looked at next, if it serves.
    fn pass_due(&self) -> Option<Instant> {
        let Phase::Serving { pid, .. } = self.state.phase else { return None };
        // Also one without volumes is looked at once: then it is known to serve.
        let is_due = !self.parts.desired.volumes(&self.name).is_empty()
            || self.status.read(|known| known.in_place) != Some(pid);
        let retry = self.worker.as_ref().and_then(|worker| worker.retry.due());
        let due = self
            .status
            .read(|known| known.next_pass.into_iter().chain(retry.map(Instant::from_std)).min());
        due.filter(|_| self.acts && is_due)
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let is_news = self.worker.is_some() && self.state.remembers() != self.written;
        let remember = self.remember_at.filter(|_| is_news);
        if self.parts.desired.get(&self.name).is_none() {
            return remember;
        }
        let pass = self.pass_due().filter(|_| self.worker.is_some());
        self.requeue_at.into_iter().chain(pass).chain(remember).min()
    }

    fn begin(&mut self, work: Work) {
        let Some(mut worker) = self.worker.take() else { return };
        let at_work = work.at_work();
        self.brings_up = at_work == Some(target::Work::BringUp);
        self.stuck.send_replace(None);
        worker.serves(match self.state.phase {
            Phase::Serving { pid, .. } => Some(pid),
            _ => None,
        });
        let (written, acts) = (self.written, self.acts);
        let remembers = if acts { self.state.remembers() } else { written };
        self.writing = remembers;
        self.exits_before = self.status.change(|known| {
            known.at_work = at_work.or(known.at_work);
            known.exits
        });
        self.work = Some(Box::pin(async move {
            // Before anything is done: the agent may die in that, too.
            let written = if acts { worker.remember(written, remembers).await } else { written };
            let after = worker.work(work).await;
            Finished { worker, after, written }
        }));
    }

    /// The work has ended.
    fn finished(&mut self, Finished { worker, after, written }: Finished<C>) {
        (self.work, self.worker, self.written) = (None, Some(worker), written);
        self.remember_at = (written != self.writing).then(|| Instant::now() + ENGINE_PAUSE);
        self.brings_up = false;
        match after {
            After::Nothing => {}
            // It started, and exited before that was known: one failure, and counted already.
            After::Started(Some(Attempt::Failed)) if self.exited_meanwhile() => {
                let (due, now) = (self.state.retry.due(), Instant::now().into_std());
                let wait = due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now));
                self.attempt = Some(Attempt::After(wait));
            }
            After::Started(attempt) => self.attempt = attempt,
            After::Converged(deploy) => {
                // What it was to be started from is of no interest any more.
                self.start_waits = false;
                self.jobs.push_front(Job::Settle(deploy));
            }
            After::NeedsImage(image, then) => {
                match then {
                    Then::Deploy(_) => self.deploy_waits = true,
                    Then::Start => self.start_waits = true,
                }
                let parts = self.parts.clone();
                self.images.push(Box::pin(async move { image.bring_in(&parts, then).await }));
            }
        }
        let waits = (self.deploy_waits || self.start_waits).then_some(target::Work::BringUp);
        // What was made or ended by it is seen together with its end.
        let seen = self.observed.as_ref().map(|(of, seen)| (of.clone(), seen.borrow().clone()));
        self.status.change(|known| {
            // Unless that was seen while it was done.
            self.stopped =
                std::mem::take(&mut known.stopping) && self.state.phase != Phase::Stopping;
            known.at_work = waits;
            known.seen = seen.or(known.seen.take());
        });
    }

    fn exited_meanwhile(&self) -> bool {
        self.status.read(|known| known.exits) != self.exits_before
    }

    /// An image was brought in, or could not be.
    fn image_ended(&mut self, image: Image) {
        match image {
            Image::Deploy(deploy) => {
                self.deploy_waits = false;
                self.jobs.push_front(Job::Deploy(deploy));
            }
            Image::Start(_) if !self.start_waits => {}
            Image::Start(done) => {
                self.start_waits = false;
                self.attempt = Some(match done {
                    Ok(()) => Attempt::After(Duration::ZERO),
                    Err(fault) if fault.code.is_engine_away() => Attempt::After(ENGINE_PAUSE),
                    Err(fault) => {
                        let (heal, failures) =
                            (&self.parts.policy.heal, self.state.retry.failures());
                        start_failed(&self.status, heal, failures, &fault)
                    }
                });
            }
        }
        let waits = (self.deploy_waits || self.start_waits).then_some(target::Work::BringUp);
        self.status.change(|known| {
            known.at_work = waits.or(known.at_work.filter(|_| self.work.is_some()))
        });
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
impl<C: Containers> Task<C> {
    /// Reconciles until nothing more is to be done now.
    pub(super) async fn settle(&mut self) {
        loop {
            self.reconcile();
            if self.work.is_none() {
                return;
            }
            let done = wait::end(&mut self.work).await;
            self.finished(done);
        }
    }

    /// It is asked for something.
    pub(super) fn acts(&mut self) {
        self.acts = true;
    }

    /// Reconciles for so long.
    pub(super) async fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.settle().await;
            let due = self.next_due().map(|due| due.max(self.reconciled + LEAST_PAUSE));
            tokio::select! {
                () = changed(&mut self.observed) => {}
                () = wait::until(due) => {}
                () = tokio::time::sleep_until(end) => {}
            }
        }
    }

    /// Begins work on volumes that never ends by itself, and reconciles until it is given up; why it was.
    pub(super) async fn gives_up(&mut self) -> crate::model::fault::Fault {
        self.settle().await;
        let Some(mut worker) = self.worker.take() else { unreachable!() };
        let mut done =
            Box::pin(async move { worker.unless_stuck(std::future::pending::<()>()).await });
        loop {
            self.reconcile();
            let due = self.next_due();
            tokio::select! {
                given_up = &mut done => return given_up.unwrap_err(),
                () = changed(&mut self.observed) => {}
                () = wait::until(due) => {}
            }
        }
    }
}
