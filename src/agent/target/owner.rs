//! The owner of one target: what it remembers, and its loop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::super::observe::target::Containers;
use super::super::pulse::Beat;
use super::book::VolumeBook;
use super::{Board, Order, Ordered, Parts, TargetWish};
use crate::health::backoff::{Backoff, BackoffPolicy, Failures};
use crate::model::prepare::{PartReport, PrepareReport};
use crate::model::status::{Standings, VolumeTally};
use crate::model::target::{TargetHealth, TargetName};

/// Between two looks at what is due, unless something changes.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// The owner of one target.
pub(super) struct Owner<C> {
    pub(super) name: TargetName,
    pub(super) parts: Arc<Parts<C>>,
    pub(super) board: Board,
    /// How all targets stand, this one among them.
    pub(super) standings: watch::Receiver<Standings>,
    /// When it is brought up again.
    pub(super) backoff: Backoff,
    /// What is written down of that.
    pub(super) written: Failures,
    /// When volumes that failed are tried again.
    pub(super) retry: Backoff,
    pub(super) book: VolumeBook,
    /// The process that answers, and since when that was seen.
    pub(super) stands: Option<(u32, Instant)>,
    /// Whether its fall was noted.
    pub(super) fallen: bool,
    /// The process that lives and does not answer, and since when.
    pub(super) frozen: Option<(u32, Instant)>,
    /// The process that answered last.
    pub(super) answered: Option<u32>,
    /// Whether all its volumes were looked after since it stands.
    pub(super) in_place: bool,
    /// When all of them were looked at last.
    pub(super) passed: Option<Instant>,
    /// When its volumes are looked at next.
    pub(super) next_pass: Instant,
    /// When controllers were made in it last.
    pub(super) controllers_made: Option<Instant>,
    /// An engine that does not answer is asked again then.
    pub(super) engine_again: Option<Instant>,
    /// How the log was told that its volumes stand.
    pub(super) told: Option<VolumeTally>,
    /// When what was due was begun last …
    pub(super) tending: Instant,
    /// … and done.
    pub(super) tended: Instant,
    /// Whether the agent has only started, and the target was not brought up since.
    pub(super) at_start: bool,
}

impl<C: Containers> Owner<C> {
    pub(super) fn new(name: TargetName, parts: Arc<Parts<C>>, board: Board) -> Owner<C> {
        let heal = &parts.policy.heal;
        let policy = BackoffPolicy {
            first: heal.first,
            most: heal.most,
            clear_after: heal.clear_after,
            jitter_percent: heal.jitter_percent,
        };
        // Targets of one node do not come back in step.
        let seed = name.as_str().bytes().fold(u64::from(std::process::id()), |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let standings = parts.stands.watch();
        Owner {
            name,
            parts,
            board,
            standings,
            backoff: Backoff::new(policy, seed),
            written: Failures::default(),
            retry: Backoff::new(policy, seed),
            book: VolumeBook::default(),
            stands: None,
            fallen: false,
            frozen: None,
            answered: None,
            in_place: false,
            passed: None,
            next_pass: Instant::now(),
            controllers_made: None,
            engine_again: None,
            told: None,
            tending: Instant::now(),
            tended: Instant::now(),
            at_start: false,
        }
    }

    /// Remembers what an agent before this one wrote down.
    pub(super) fn recall(&mut self) {
        self.written = self.parts.falls.of(&self.name);
        self.backoff = self.backoff.clone().recall(self.written);
    }

    /// Writes down how often it has failed, when that is another number than is written.
    pub(super) async fn write_falls(&mut self) {
        let failures = self.backoff.remembers();
        if failures != self.written {
            let kept = self.parts.falls.keep(&self.name, failures).await;
            // Else it is tried again when it is looked after next.
            self.written = if kept { failures } else { self.written };
        }
    }

    /// How the watchers see it.
    pub(super) fn health(&mut self) -> Option<TargetHealth> {
        self.standings.borrow_and_update().get(&self.name)?.health.clone()
    }

    /// Returns when it stands otherwise, or something is due. Cancel-safe.
    async fn wakes(&mut self) {
        // What is due and cannot be done now must not become a busy loop.
        let due = self.next_due().map(|due| due.max(self.tended + LEAST_PAUSE));
        let timer = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Cancel-safe: what was not seen stays new. The sender lives as long as the parts.
            _ = self.standings.changed() => {}
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
