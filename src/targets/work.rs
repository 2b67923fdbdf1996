//! The work on one target, one piece at a time: starts, kills, its volumes, and what callers ask for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::converge::Converged;
use super::status::Status;
use super::task::Job;
use super::{Parts, Request, Requested, TargetWish};
use crate::agent::apply::volumes::Unanswered;
use crate::agent::progress::ProgressSink;
use crate::docker::Containers;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::observation::{Observation, Process};
use crate::model::path::CleanPath;
use crate::model::policy::HealPolicy;
use crate::model::prepare::{PartReport, PrepareReport};
use crate::model::status::VolumeTally;
use crate::model::step::Step;
use crate::model::target::{self, EnsureWish, TargetName, TargetSeen, TargetSpec};
use crate::model::volume::VolumeName;
use crate::model::work::WorkId;
use crate::plan::lifecycle::{Attempt, Remembered, State};
use crate::plan::quarantine::{self, Exit, Quarantine};
use crate::plan::retry::{Backoff, CRASH_LOOP};
use crate::plan::target::end_frozen;

/// An engine that does not answer is asked again after so long: it may come back any moment, and its
/// absence says nothing of the target.
pub(super) const ENGINE_PAUSE: Duration = Duration::from_secs(2);
/// How long its start is waited for; it goes on by itself.
const RAISE_TIME: Duration = Duration::from_secs(30);
/// After its volumes were brought back, guests are looked for often for so long …
const RETURN_TIME: Duration = Duration::from_secs(30);
/// … with that between two looks.
const RETURN_PAUSE: Duration = Duration::from_secs(1);

/// A piece of work.
pub(super) enum Work {
    /// One try to bring the target up.
    Start {
        /// As it is desired.
        spec: TargetSpec,
        /// How often it has failed.
        failures: u32,
        /// Whether it gets a new container.
        anew: bool,
    },
    /// Its process, which is stuck, is killed.
    Kill(TargetSpec),
    /// Its volumes are looked at.
    Volumes,
    /// The evidence of a crash loop is looked for.
    Evidence {
        /// How it exited.
        why: String,
        /// How often it has failed.
        failures: u32,
    },
    /// What is to be remembered is written down, which each work begins with.
    Remember,
    /// What a caller asked for.
    Job(Job),
}

impl Work {
    /// What is told of the target meanwhile.
    pub(super) fn at_work(&self) -> Option<target::Work> {
        let wish = match self {
            Work::Start { .. } => return Some(target::Work::BringUp),
            Work::Job(Job::Deploy(deploy)) => &deploy.wish,
            Work::Job(Job::Asked(Requested {
                request: Request::Target { wish, dry_run: false, .. },
                ..
            })) => wish,
            _ => return None,
        };
        Some(match **wish {
            TargetWish::Ensure(..) => target::Work::BringUp,
            TargetWish::Destroy { .. } => target::Work::TakeAway,
        })
    }
}

/// What a caller wants of the target itself, and how far that is.
pub(super) struct Deploy {
    work: WorkId,
    pub(super) wish: Box<TargetWish>,
    dry_run: bool,
    reply: oneshot::Sender<PrepareReport>,
    pub(super) report: PartReport,
    began: Instant,
    /// Why its image could not be brought in.
    failed: Option<Fault>,
    /// Shows that the task is needed until it is done.
    _work: Arc<()>,
}

impl Deploy {
    fn end(mut self, done: Result<(), Fault>) {
        self.report.errors.extend(done.err());
        let report = PrepareReport::of(self.dry_run, self.report, self.began.elapsed());
        let _ = self.reply.send(report);
    }
}

/// What comes after a piece of work.
pub(super) enum After {
    /// Nothing.
    Nothing,
    /// A start was tried.
    Started(Option<Attempt>),
    /// The container of a deploy runs.
    Converged(Box<Deploy>),
    /// An image has to be there first.
    NeedsImage(NeedsImage, Then),
}

/// An image that is to be brought in.
pub(super) struct NeedsImage {
    step: Step,
    progress: ProgressSink,
}

/// What goes on once it is there.
pub(super) enum Then {
    /// A deploy.
    Deploy(Box<Deploy>),
    /// A start of the task's own.
    Start,
}

/// The end of that.
pub(super) enum Image {
    /// A deploy goes on.
    Deploy(Box<Deploy>),
    /// A start does, unless it has failed.
    Start(Result<(), Fault>),
}

impl NeedsImage {
    /// Brings it in, which has its own deadline. A deploy that cannot have it is over.
    pub(super) async fn bring_in<C: Containers>(self, parts: &Parts<C>, then: Then) -> Image {
        let mut report = PartReport::default();
        let seen = TargetSeen::default();
        let done = parts.apply(&self.step, &seen, &self.progress, &mut report).await;
        match then {
            Then::Deploy(mut deploy) => {
                deploy.report.steps.append(&mut report.steps);
                deploy.failed = done.err();
                Image::Deploy(deploy)
            }
            Then::Start => Image::Start(done),
        }
    }
}

/// The end of a piece of work.
pub(super) struct Finished<C> {
    pub(super) worker: Worker<C>,
    pub(super) after: After,
    /// What is written down now.
    pub(super) written: Remembered,
}

/// Who does the work on one target.
pub(super) struct Worker<C> {
    pub(super) name: TargetName,
    pub(super) parts: Arc<Parts<C>>,
    pub(super) status: Status,
    /// The process that served when the work began.
    pub(super) serving: Option<u32>,
    /// How often it had exited then.
    exits: u64,
    /// When volumes that failed are tried again.
    pub(super) retry: Backoff,
    pub(super) quarantine: Quarantine,
    /// What is written down of that.
    pub(super) held: quarantine::Remembered,
    /// What was being made, and in which process, when the agent before this one ended.
    pub(super) inherited: Option<(u32, BTreeSet<VolumeName>)>,
    /// Volumes whose making was not answered.
    pub(super) unanswered: Unanswered,
    /// How its process exited last, where the engine told.
    pub(super) exit: Option<Exit>,
    /// The process that answered last.
    pub(super) answered: Option<u32>,
    /// When all volumes were looked at last.
    pub(super) passed: Option<Instant>,
    /// How the log was told that its volumes stand.
    told: Option<VolumeTally>,
    /// Whether it waits for the engine.
    without_engine: bool,
    stuck: watch::Receiver<Option<String>>,
    /// Tells of the work that it is at.
    pub(super) progress: ProgressSink,
}

impl<C: Containers> Worker<C> {
    pub(super) fn new(
        parts: Arc<Parts<C>>,
        status: Status,
        state: &State,
        written: &Remembered,
        stuck: watch::Receiver<Option<String>>,
    ) -> Worker<C> {
        let (held, fresh) = (parts.exits.quarantine(status.name()), state.retry.forgotten());
        Worker {
            name: status.name().clone(),
            status,
            serving: None,
            exits: 0,
            quarantine: Quarantine::recall(&held, &fresh, Instant::now().into_std()),
            inherited: held.pid.map(|pid| (pid, held.making.clone())),
            held,
            retry: fresh,
            unanswered: Unanswered::default(),
            exit: None,
            answered: written.process.pid,
            passed: None,
            told: None,
            without_engine: false,
            stuck,
            progress: parts.progress.clone(),
            parts,
        }
    }

    /// The process that serves when the work begins.
    pub(super) fn serves(&mut self, pid: Option<u32>) {
        self.serving = pid;
        self.exits = self.status.read(|known| known.exits);
        if pid.is_some() {
            (self.answered, self.without_engine) = (pid, false);
        }
    }

    /// Nobody desires the target any more.
    pub(super) fn forget(&mut self) {
        (self.retry, self.quarantine) = (self.retry.forgotten(), Quarantine::default());
        (self.exit, self.answered, self.passed, self.told) = (None, None, None, None);
        let _ = self.unanswered.take();
        self.inherited = None;
        self.status.change(|known| {
            (known.trouble, known.in_place, known.next_pass) = (None, None, None);
            (known.controllers_made, known.book) = (None, super::book::VolumeBook::default());
        });
    }

    /// Writes down what the next agent has to know, when that is something else than is written; what is
    /// written then.
    pub(super) async fn remember(
        &mut self,
        written: Remembered,
        remembers: Remembered,
    ) -> Remembered {
        self.remember_making(BTreeSet::new()).await;
        let kept =
            remembers == written || self.parts.exits.keep(&self.name, written, remembers).await;
        // Else it is tried again with the next work.
        if kept { remembers } else { written }
    }

    fn needs(&self, step: Step) -> NeedsImage {
        NeedsImage { step, progress: self.progress.clone() }
    }

    pub(super) async fn work(&mut self, work: Work) -> After {
        self.progress = self.progress.of(WorkId::next());
        match work {
            Work::Start { spec, failures, anew } => {
                if !self.parts.probe.engine_may_be_asked().await {
                    let fault = Fault::new(Code::EngineAbsent, "it does not run");
                    return After::Started(Some(self.wait_for_engine(&fault).await));
                }
                // One that hangs since it was started goes first.
                if self.seen_at(&spec.control_sock).is_some_and(|seen| hangs(&seen)) {
                    self.kill(&spec).await;
                }
                return self.start(spec, failures, anew).await;
            }
            Work::Kill(spec) => self.kill(&spec).await,
            Work::Volumes => self.settle().await,
            Work::Evidence { why, failures } => {
                let within = self.parts.policy.target.call_timeout;
                let evidence = self.parts.observer.last_words(&self.name, &why, within).await;
                blame(&self.status, &self.parts.policy.heal, failures, &evidence);
            }
            Work::Remember => {}
            Work::Job(Job::Deploy(deploy)) => return self.deploy(deploy).await,
            Work::Job(Job::Settle(deploy)) => {
                // With its volumes, when it had to be brought up for that.
                self.settle_if_due().await;
                deploy.end(Ok(()));
            }
            Work::Job(Job::Asked(Requested { request, _work })) => {
                return self.carry_out(request, _work).await;
            }
        }
        After::Nothing
    }

    async fn carry_out(&mut self, request: Request, _work: Arc<()>) -> After {
        match request {
            Request::Target { work, wish, dry_run, reply } => {
                let (report, began) = (PartReport::default(), Instant::now());
                let deploy =
                    Deploy { work, wish, dry_run, reply, report, began, failed: None, _work };
                return self.deploy(Box::new(deploy)).await;
            }
            Request::Activate { volumes, undo, reply } => {
                let _ = reply.send(self.activate(volumes, undo).await);
            }
            Request::Deactivate { target, volumes, reply } => {
                let _ = reply.send(self.deactivate(&target, &volumes).await);
            }
            Request::Resize { target, volume, size_mib, reply } => {
                let _ = reply.send(self.resize(&target, &volume, size_mib).await);
            }
            // Who gave up waiting needs none.
            Request::Look { reply, .. } if reply.is_closed() => {}
            Request::Look { reply, _place } => {
                self.look_at_volumes().await;
                let _ = reply.send(());
            }
            Request::Start => {}
        }
        After::Nothing
    }

    async fn deploy(&mut self, mut deploy: Box<Deploy>) -> After {
        self.progress = self.progress.of(deploy.work);
        if let Some(fault) = deploy.failed.take() {
            deploy.end(Err(fault));
            return After::Nothing;
        }
        let done = match deploy.dry_run {
            true => self.converge(&deploy.wish, true, &mut deploy.report).await,
            false => self.change(&deploy.wish, &mut deploy.report).await,
        };
        match done {
            Ok(Converged::NeedsImage(step)) => {
                After::NeedsImage(self.needs(step), Then::Deploy(deploy))
            }
            Ok(Converged::Holds) if !deploy.dry_run => After::Converged(deploy),
            done => {
                deploy.end(done.map(drop));
                After::Nothing
            }
        }
    }

    /// One try to bring it up.
    async fn start(&mut self, spec: TargetSpec, failures: u32, anew: bool) -> After {
        let began = Instant::now();
        let wish = EnsureWish { anew, ..EnsureWish::default() };
        let mut report = PartReport::default();
        let control = spec.control_sock.clone();
        let done = self.change(&TargetWish::Ensure(spec, wish), &mut report).await;
        // What it replaced was dead.
        self.status.change(|known| known.stopping = false);
        let attempt = match done {
            Ok(Converged::NeedsImage(step)) => {
                return After::NeedsImage(self.needs(step), Then::Start);
            }
            Ok(Converged::Holds) => {
                let answers = self.seen_at(&control).is_some_and(|seen| seen.version().is_some());
                if answers && !report.steps.is_empty() {
                    self.status.change(|known| known.restarts += 1);
                    let took = began.elapsed();
                    tracing::info!(target_name = %self.name, "{} was brought up again in {took:.1?}", self.name);
                }
                // Else it has not been seen to answer.
                (!answers).then_some(Attempt::Failed)
            }
            Err(fault) if fault.code.is_engine_away() => Some(self.wait_for_engine(&fault).await),
            Err(fault) => {
                Some(start_failed(&self.status, &self.parts.policy.heal, failures, &fault))
            }
        };
        After::Started(attempt)
    }

    /// What is seen at a control socket.
    fn seen_at(&self, control: &CleanPath) -> Option<Arc<Observation>> {
        Some(self.parts.observers.observe(&self.name, control).borrow().clone())
    }

    async fn wait_for_engine(&mut self, fault: &Fault) -> Attempt {
        let first = !std::mem::replace(&mut self.without_engine, true);
        if first {
            tracing::warn!(
                target_name = %self.name, code = %fault.code,
                "{} cannot be brought up again before the engine answers: {fault}", self.name
            );
        }
        let raised = match &self.parts.engine {
            Some(engine) => tokio::time::timeout(RAISE_TIME, engine.raise()).await.unwrap_or(false),
            None => false,
        };
        // Guests wait: one that was just started is asked at once, but only once.
        Attempt::After(if raised && first { Duration::ZERO } else { ENGINE_PAUSE })
    }

    /// Kills its process, which is stuck: as long as it takes connections and serves none, each guest that
    /// reconnects to it is lost.
    async fn kill(&mut self, spec: &TargetSpec) {
        let container = match self.parts.observer.container_of(spec).await {
            Ok(container) => container,
            Err(fault) => {
                tracing::warn!(
                    target_name = %self.name, code = %fault.code,
                    "{} is stuck, and is killed once the engine tells its container: {fault}", self.name
                );
                return;
            }
        };
        // The engine may have taken its time: what was true of a process then need not be true of this one now.
        let pid = container.as_ref().and_then(|it| it.pid);
        let seen = self.seen_at(&spec.control_sock);
        let Some(seen) = seen.filter(|seen| seen.pid() == pid && is_silent(seen)) else {
            tracing::info!(target_name = %self.name, "{} is not stuck any more, and is not killed", self.name);
            return;
        };
        let silence = seen.answers.silence();
        let done = match end_frozen(spec, container.as_ref()) {
            Some(step) => {
                tracing::error!(
                    target_name = %self.name,
                    "{} is stuck, and is killed so that it can be brought back: {silence}", self.name
                );
                self.status.exited(format!("killed by the agent, for it was stuck: {silence}"));
                self.status.change(|known| known.killed = true);
                self.exit = Some(Exit::Killed);
                self.apply(&step, &TargetSeen::default(), &mut PartReport::default()).await
            }
            None => Ok(()),
        };
        if let Err(fault) = done {
            tracing::warn!(target_name = %self.name, code = %fault.code, "{} is stuck: {fault}", self.name);
        }
        self.parts.observers.look_again(&self.name, &spec.control_sock).await;
    }

    /// Its volumes, when it serves and that is due.
    pub(super) async fn settle_if_due(&mut self) {
        let now = Instant::now();
        let retry = self.retry.due().is_some_and(|due| due <= now.into_std());
        let due = self.status.read(|known| known.next_pass.is_some_and(|due| due <= now));
        if self.serving.is_some() && (retry || due || !self.is_in_place()) {
            self.settle().await;
        }
    }

    /// All volumes. Those that are made one at a time follow at once, for guests wait for them too.
    async fn settle(&mut self) {
        let Some(pid) = self.serving else { return };
        let began = Instant::now();
        let mut retries = self.retry.due().is_some_and(|due| due <= began.into_std());
        let mut made = 0;
        loop {
            let volumes = self.parts.desired.volumes(&self.name);
            let (is_new, suspects) = (!self.is_in_place(), self.quarantine.suspects());
            let done = self.pass(volumes.values().cloned().collect(), retries || is_new).await;
            let passed = match done {
                Ok(passed) => passed,
                Err(fault) => return self.not_settled(&fault),
            };
            made += passed.made;
            let now = Instant::now();
            let (interval, exits) = (self.parts.policy.volumes.look_interval, self.exits);
            self.passed = Some(now);
            self.status.change(|known| {
                if known.exits != exits {
                    return;
                }
                let lately = known.controllers_made.is_some_and(|it| it.elapsed() < RETURN_TIME);
                let returning = known.book.is_unsettled() && lately;
                known.next_pass = Some(now + if returning { RETURN_PAUSE } else { interval });
                (known.in_place, known.trouble) = (Some(pid), None);
            });
            let left = self.quarantine.suspects();
            if left == 0 || !is_new && left >= suspects {
                break;
            }
            retries = true;
        }
        self.tell_of_volumes(made, began.elapsed());
    }

    fn not_settled(&mut self, fault: &Fault) {
        let now = Instant::now();
        self.status.change(|known| known.next_pass = Some(now + RETURN_PAUSE));
        self.retry.failed(now.into_std());
        tracing::warn!(
            target_name = %self.name, code = %fault.code,
            "the volumes of {} could not be looked at: {fault}", self.name
        );
    }

    /// Fails once the process has exited that served when the work began: what was seen of it is of no use.
    pub(super) fn still_serves(&self) -> Result<(), Fault> {
        match self.status.read(|known| known.exits) == self.exits {
            true => Ok(()),
            false => Err(Fault::new(Code::TargetAbsent, "its process has exited meanwhile")),
        }
    }

    /// Whether all its volumes were brought about in the process that serves now.
    pub(super) fn is_in_place(&self) -> bool {
        self.serving.is_some() && self.status.read(|known| known.in_place) == self.serving
    }

    /// Does work that asks the target, and gives it up once the target is to be killed, or is paused: whoever
    /// waits for it, waits for nothing.
    ///
    /// # Errors
    /// When that is so.
    pub(super) async fn unless_stuck<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Fault> {
        let stuck = async {
            let why = self.stuck.wait_for(Option::is_some).await.map(|why| why.clone());
            match why {
                Ok(why) => why.unwrap_or_default(),
                // The task has ended, and with it who waits.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            // What was sent may still be done: whoever looks next sees that.
            done = work => Ok(done),
            // Cancel-safe: only looks.
            why = stuck => {
                let text = format!("{} does not answer: {why}", self.name);
                Err(Fault::new(Code::TargetNotAnswering, text))
            }
        }
    }

    /// Says in the log how they stand, when that is another way than was said last.
    fn tell_of_volumes(&mut self, made: usize, took: Duration) {
        let tally = self.status.read(|known| known.book.tally());
        let same =
            |told: VolumeTally| (told.serving, told.degraded) == (tally.serving, tally.degraded);
        if made == 0 && self.told.map_or(tally.degraded == 0, same) {
            return;
        }
        self.told = Some(tally);
        let text = format!(
            "{} of {} volumes of {} serve, {made} were made in {took:.1?}",
            tally.serving, tally.wanted, self.name
        );
        match tally.degraded {
            0 => tracing::info!(target_name = %self.name, "{text}"),
            degraded => {
                let first = self.status.read(|known| {
                    let first = known.book.stands().iter().find(|(_, it)| !it.reason.is_empty());
                    first.map(|(name, it)| format!("{name}: {}", it.reason))
                });
                tracing::warn!(
                    target_name = %self.name, degraded, first = first.unwrap_or_default(),
                    "{text}, {degraded} could not be brought about and are tried again"
                );
            }
        }
    }
}

/// Whether it does not answer, and nothing explains that.
fn is_silent(seen: &Observation) -> bool {
    seen.answers.is_silent() && seen.version().is_none() && !seen.is_busy()
}

/// Whether it is there, old enough, and silent. Not one that somebody has just started, or that was not even
/// asked yet.
fn hangs(seen: &Observation) -> bool {
    matches!(seen.process, Process::Lives { young: false, .. }) && is_silent(seen)
}

/// Tells of a start that failed, after so many failures.
pub(super) fn start_failed(
    status: &Status,
    policy: &HealPolicy,
    failures: u32,
    fault: &Fault,
) -> Attempt {
    let (name, failures) = (status.name(), failures + 1);
    tracing::warn!(
        target_name = %name, failures, code = %fault.code,
        "{name} could not be brought up again: {fault}"
    );
    if failures >= CRASH_LOOP {
        blame(status, policy, failures, &fault.text);
    }
    Attempt::Failed
}

/// It exits again and again: that is told with the evidence until it serves.
fn blame(status: &Status, policy: &HealPolicy, failures: u32, evidence: &str) {
    let most = policy.most;
    let text = format!(
        "it falls again and again ({failures} times in short order), and is tried again with pauses of up \
         to {most:?}: {evidence}"
    );
    status.change(|known| known.trouble = Some(text));
}
