//! The owner of one target: what it remembers, and its loop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::super::apply::volumes::Unanswered;
use super::super::observe::target::Containers;
use super::super::pulse::Beat;
use super::book::VolumeBook;
use super::{Board, Order, Ordered, Parts, TargetWish};
use crate::model::observation::Observation;
use crate::model::path::CleanPath;
use crate::model::prepare::{PartReport, PrepareReport};
use crate::model::status::VolumeTally;
use crate::model::target::{TargetHealth, TargetName};
use crate::plan::lifecycle::{Attempt, Remembered, State};
use crate::plan::quarantine::{Exit, Quarantine};
use crate::plan::retry::Backoff;

/// Between two looks at what is due, unless something changes.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// What is seen of a target, now and from now on.
type Observations = watch::Receiver<Arc<Observation>>;

/// The owner of one target.
pub(super) struct Owner<C> {
    pub(super) name: TargetName,
    pub(super) parts: Arc<Parts<C>>,
    pub(super) board: Board,
    /// What is seen at the control socket that is wanted.
    observations: Option<(CleanPath, Observations)>,
    /// Where the target is in its life.
    pub(super) state: State,
    /// What is written down of that.
    pub(super) written: Remembered,
    /// When the state asks to be looked at again.
    pub(super) requeue_at: Option<Instant>,
    /// What came of the last start, until the next step.
    pub(super) attempt: Option<Attempt>,
    /// Whether the agent itself stopped its process, until the next step.
    pub(super) stopped: bool,
    /// Whether it waits for the engine.
    pub(super) without_engine: bool,
    /// When volumes that failed are tried again.
    pub(super) retry: Backoff,
    pub(super) book: VolumeBook,
    pub(super) quarantine: Quarantine,
    /// Volumes whose making was not answered.
    pub(super) unanswered: Unanswered,
    /// How its process exited last, where the engine told.
    pub(super) exit: Option<Exit>,
    /// The process that answered last.
    pub(super) answered: Option<u32>,
    /// The process in which all its volumes were brought about.
    pub(super) in_place: Option<u32>,
    /// When all of them were looked at last.
    pub(super) passed: Option<Instant>,
    /// When its volumes are looked at next.
    pub(super) next_pass: Instant,
    /// When controllers were made in it last.
    pub(super) controllers_made: Option<Instant>,
    /// How the log was told that its volumes stand.
    pub(super) told: Option<VolumeTally>,
    /// When what was due was done last.
    pub(super) tended: Instant,
    /// Whether the agent has only started, and the target was not brought up since.
    pub(super) at_start: bool,
}

impl<C: Containers> Owner<C> {
    pub(super) fn new(name: TargetName, parts: Arc<Parts<C>>, board: Board) -> Owner<C> {
        // Targets of one node do not come back in step.
        let seed = name.as_str().bytes().fold(u64::from(std::process::id()), |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let state = State::new(&parts.policy.heal, seed);
        let retry = state.retry.clone();
        Owner {
            name,
            parts,
            board,
            observations: None,
            state,
            written: Remembered::default(),
            requeue_at: None,
            attempt: None,
            stopped: false,
            without_engine: false,
            retry,
            book: VolumeBook::default(),
            quarantine: Quarantine::default(),
            unanswered: Unanswered::default(),
            exit: None,
            answered: None,
            in_place: None,
            passed: None,
            next_pass: Instant::now(),
            controllers_made: None,
            told: None,
            tended: Instant::now(),
            at_start: false,
        }
    }

    /// Remembers what an agent before this one wrote down.
    pub(super) fn recall(&mut self) {
        self.written = self.parts.falls.of(&self.name);
        self.answered = self.written.process.pid;
        self.state = self.state.clone().recall(self.written, Instant::now().into_std());
    }

    /// Writes down what the next agent has to know, when that is something else than is written.
    pub(super) async fn write_falls(&mut self) {
        let remembers = self.state.remembers();
        if remembers != self.written {
            let kept = self.parts.falls.keep(&self.name, self.written, remembers).await;
            // Else it is tried again when it is looked after next.
            self.written = if kept { remembers } else { self.written };
        }
    }

    /// How it is told.
    pub(super) fn health(&self) -> Option<TargetHealth> {
        self.parts.stands.health_of(&self.name)
    }

    /// What is seen of it; watched from the first time on.
    pub(super) fn observations(&mut self) -> Option<&mut Observations> {
        let control = self.parts.desired.get(&self.name)?.control_sock;
        let known = self.observations.as_ref();
        let is_good =
            |(of, seen): &(CleanPath, Observations)| *of == control && seen.has_changed().is_ok();
        if !known.is_some_and(is_good) {
            let seen = self.parts.health.watch(&self.name, &control);
            self.observations = Some((control, seen));
        }
        self.observations.as_mut().map(|(_, seen)| seen)
    }

    /// Returns when something else is seen of it, or something is due. Cancel-safe.
    pub(super) async fn wakes(&mut self) {
        // What is due and cannot be done now must not become a busy loop.
        let due = self.next_due().map(|due| due.max(self.tended + LEAST_PAUSE));
        self.waits(due).await;
    }

    /// Returns when something else is seen of it, and at that time. Cancel-safe.
    pub(super) async fn waits(&mut self, until: Option<Instant>) {
        let mut desired = self.parts.desired.watch();
        let timer = async {
            match until {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let changes = async {
            match self.observations() {
                // An observer that ended is replaced in the next round.
                Some(seen) => drop(seen.changed().await),
                None => drop(desired.changed().await),
            }
        };
        tokio::select! {
            // Cancel-safe: what was not seen stays new.
            () = changes => {}
            () = timer => {}
        }
    }

    async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Target { wish, dry_run, reply } => {
                let _ = reply.send(self.bring_about(&wish, dry_run).await);
            }
            Order::Activate { volumes, undo, reply } => {
                let _ = reply.send(self.activate(volumes, undo).await);
            }
            Order::Deactivate { target, volumes, reply } => {
                let _ = reply.send(self.deactivate(&target, &volumes).await);
            }
            Order::Resize { target, volume, size_mib, reply } => {
                let _ = reply.send(self.resize(&target, &volume, size_mib).await);
            }
            // Who gave up waiting needs none.
            Order::Look { reply, .. } if reply.is_closed() => {}
            Order::Look { reply, _place } => {
                self.look_at_volumes().await;
                let _ = reply.send(());
            }
            Order::Tend => self.at_start = true,
        }
    }

    async fn bring_about(&mut self, wish: &TargetWish, dry_run: bool) -> PrepareReport {
        let began = Instant::now();
        let mut report = PartReport::default();
        let done = match dry_run {
            true => self.converge(wish, true, &mut report).await,
            false => self.change(wish, &mut report).await,
        };
        if !dry_run && done.is_ok() {
            // With its volumes, when it had to be brought up for that.
            self.tend_standing().await;
        }
        report.errors.extend(done.err());
        PrepareReport::of(dry_run, report, began.elapsed())
    }
}

/// Carries out what is asked for, and looks after the target, until nobody can ask any more.
pub(super) async fn run<C: Containers>(
    mut owner: Owner<C>,
    mut queue: mpsc::Receiver<Ordered>,
    mut beat: Beat,
) {
    loop {
        let next = tokio::select! {
            // Cancel-safe, all of them: an order stays queued, a change stays new, a beat stays due.
            ordered = queue.recv() => match ordered {
                None => return beat.retire(),
                ordered => ordered,
            },
            () = owner.wakes() => None,
            () = beat.due() => continue,
        };
        let work = async {
            if let Some(Ordered { order, _work }) = next {
                owner.carry_out(order).await;
            }
            owner.tend().await;
            owner.write_falls().await;
            owner.tended = Instant::now();
        };
        tokio::pin!(work);
        loop {
            tokio::select! {
                // The work is pinned and goes on when a beat comes first.
                () = &mut work => break,
                () = beat.due() => {}
            }
        }
    }
}
