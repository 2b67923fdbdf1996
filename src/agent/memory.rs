//! The work on pools and mounts, step by step, with the ledger.
//!
//! Blocking: the pools' owner runs it on a thread of its own, because a write to a pool lasts as
//! long as the kernel looks for memory. Large growths are written in portions, so that a deadline
//! and a caller that gave up are seen in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::apply::memory::{MemoryApplier, Resized};
use super::observe::memory::MemoryObserver;
use super::progress::ProgressSink;
use crate::model::fault::Fault;
use crate::model::policy::{MountPolicy, PoolPolicy};
use crate::model::pools::{Intent, Ledger, PagesByPool, PoolGoal, PoolKey, PoolPages};
use crate::model::prepare::{PartReport, ReclaimReport, ResizePool, Step, StepOutcome, StepReport};
use crate::model::units::{NumaNode, PageSize};
use crate::plan::hugepages::{self, Decision, OnShortfall, Trial, Trials, next_effort};
use crate::plan::mounts::{self, MountPlan};
use crate::store::{Durability, Store};

/// The ledger of this boot.
const LEDGER: &str = "ledger.json";
/// What is taken again after a reboot.
const RESERVATIONS: &str = "reservations.json";
/// KiB that one write to a pool may ask for: 2 GiB.
const PORTION_KIB: u64 = 2 * 1024 * 1024;
/// Rounds of plan and apply before it is said that somebody else keeps changing the pools.
const MOST_ROUNDS: usize = 32;

/// What is wanted of the memory.
#[derive(Debug, Clone)]
pub struct MemoryOrder {
    /// Of the pools.
    pub goal: PoolGoal,
    /// Page sizes that need a mount.
    pub mounts: Vec<PageSize>,
    /// Whether a growth that came out short is kept.
    pub keep_partial: bool,
    /// Whether only the plan is wanted.
    pub dry_run: bool,
    /// Set when nobody waits any more: what was taken is given back.
    pub cancelled: Arc<AtomicBool>,
}

/// Which pages to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReclaimOrder {
    /// Of this size only.
    pub size: Option<PageSize>,
    /// On this node only.
    pub node: Option<NumaNode>,
    /// Whether only the plan is wanted.
    pub dry_run: bool,
}

/// Works on the memory of one machine.
#[derive(Debug)]
pub struct MemoryWork {
    observer: MemoryObserver,
    applier: MemoryApplier,
    pools: PoolPolicy,
    mount: MountPolicy,
    store: Store,
    ledger: Ledger,
    /// The ledger as others see it.
    published: watch::Sender<Ledger>,
    progress: ProgressSink,
}

/// What one growth has done so far.
#[derive(Default)]
struct Growth {
    report: PartReport,
    trials: Trials,
    /// Persistent pages taken.
    taken: PagesByPool,
}

impl MemoryWork {
    /// Reads the ledger and brings it in line with the kernel.
    ///
    /// # Errors
    /// When the kernel's counters or the state cannot be read.
    pub fn new(
        observer: MemoryObserver,
        applier: MemoryApplier,
        pools: PoolPolicy,
        mount: MountPolicy,
        store: Store,
        progress: ProgressSink,
    ) -> Result<MemoryWork, Fault> {
        let boot_id = observer.boot_id()?;
        let ledger = store.read::<Ledger>(LEDGER)?.filter(|ledger| ledger.boot_id == boot_id);
        let ledger = ledger.unwrap_or_else(|| Ledger::new(boot_id));
        let published = watch::Sender::new(ledger.clone());
        let mut work =
            MemoryWork { observer, applier, pools, mount, store, ledger, published, progress };
        work.settle()?;
        Ok(work)
    }

    /// The ledger as it stands.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The ledger for others, who see each change before the caller that caused it is answered.
    pub fn publishes(&self) -> watch::Receiver<Ledger> {
        self.published.subscribe()
    }

    /// Grows pools and makes mounts until the order holds.
    pub fn prepare(&mut self, order: &MemoryOrder) -> PartReport {
        let mut growth = Growth::default();
        let grown = self.grow(order, &mut growth);
        if let Err(mut fault) = grown {
            if !order.keep_partial {
                fault.text += &self.undo(&mut growth);
            }
            growth.report.errors.push(fault);
        }
        // A prepare that was refused, or whose pages were given back, changes nothing else either.
        let go_on = growth.report.errors.is_empty() || order.keep_partial;
        for size in order.mounts.iter().filter(|_| go_on) {
            if let Err(fault) = self.mount(*size, order.dry_run, &mut growth.report) {
                growth.report.errors.push(fault);
            }
        }
        growth.report
    }

    /// Takes again what the agent held before the machine was booted, as far as it can.
    pub fn restore(&mut self) -> PartReport {
        let wanted = match self.store.read::<Vec<PoolPages>>(RESERVATIONS) {
            Ok(wanted) => wanted.unwrap_or_default(),
            Err(e) => return PartReport { errors: vec![e.into()], ..PartReport::default() },
        };
        let wanted =
            wanted.iter().map(|p| (PoolKey { size: p.size, node: p.node }, p.pages)).collect();
        let mut report = self.prepare(&MemoryOrder {
            goal: PoolGoal::Grown(wanted),
            mounts: Vec::new(),
            keep_partial: true,
            dry_run: false,
            cancelled: Arc::default(),
        });
        self.ledger.restored = true;
        if let Err(fault) = self.save() {
            report.errors.push(fault);
        }
        report
    }

    /// Writes down what the agent holds, for the next boot.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn remember(&self) -> Result<(), Fault> {
        Ok(self.store.write(RESERVATIONS, &self.ledger.grown, Durability::Disk)?)
    }

    /// Gives back what the agent grew and nobody uses.
    pub fn reclaim(&mut self, order: ReclaimOrder) -> ReclaimReport {
        let mut report =
            ReclaimReport { steps: Vec::new(), remaining: Vec::new(), errors: Vec::new() };
        let wanted = |key: &PoolKey| {
            order.size.is_none_or(|size| size == key.size)
                && order.node.is_none_or(|node| node == key.node)
        };
        let limit = self.settle().map(|()| {
            let grown = self.ledger.by_pool();
            grown.into_iter().filter(|(key, _)| wanted(key)).collect::<PagesByPool>()
        });
        let shrunk = limit.and_then(|limit| self.shrink(&limit, order.dry_run, &mut report.steps));
        let kept = shrunk.and_then(|_| if order.dry_run { Ok(()) } else { self.remember() });
        report.errors.extend(kept.err());
        report.remaining = self.ledger.grown.clone();
        report
    }

    fn grow(&mut self, order: &MemoryOrder, growth: &mut Growth) -> Result<(), Fault> {
        let deadline = Instant::now() + self.pools.write_timeout;
        let on_shortfall =
            if order.keep_partial { OnShortfall::TakeTheRest } else { OnShortfall::Stop };
        for _ in 0..MOST_ROUNDS {
            let seen = self.observer.pools()?;
            let grown = self.ledger.by_pool();
            let decision = hugepages::grow(
                &order.goal,
                &seen,
                &grown,
                &self.pools,
                &growth.trials,
                on_shortfall,
            );
            let steps = match decision {
                Decision::Holds => return Ok(()),
                Decision::Short(fault) | Decision::Refused(fault) => return Err(fault),
                Decision::Steps(steps) if order.dry_run => {
                    growth.report.steps.extend(steps.iter().map(StepReport::planned));
                    return Ok(());
                }
                Decision::Steps(steps) => steps,
            };
            for step in &steps {
                self.apply(step, growth, deadline, &order.cancelled)?;
            }
        }
        Err(Fault::new(
            "pools-contended",
            format!(
                "the wanted pages were taken away again {MOST_ROUNDS} times while they were being grown: \
                 something else uses or resizes the pools at the same time; prepare again when it is done"
            ),
        ))
    }

    fn apply(
        &mut self,
        step: &Step,
        growth: &mut Growth,
        deadline: Instant,
        cancelled: &AtomicBool,
    ) -> Result<(), Fault> {
        self.progress.begun(step);
        let began = Instant::now();
        let (before, after) = step.before_after();
        let done = match step {
            Step::Grow(resize) => {
                return self.raise(step, *resize, growth, deadline, cancelled);
            }
            Step::Compact(node) => self.applier.compact(*node),
            Step::DropPageCache => self.applier.drop_page_cache(),
            other => {
                Err(Fault::new("internal", format!("the step {} is not the pools'", other.name())))
            }
        };
        let (after, outcome) = match &done {
            Ok(()) => (after, StepOutcome::Done),
            Err(fault) => (fault.text.clone(), StepOutcome::Failed),
        };
        self.note(
            StepReport::of(step, before, after, outcome, began.elapsed()),
            &mut growth.report,
        );
        done
    }

    /// Raises one pool in portions until it gives less than it was asked for.
    fn raise(
        &mut self,
        step: &Step,
        resize: ResizePool,
        growth: &mut Growth,
        deadline: Instant,
        cancelled: &AtomicBool,
    ) -> Result<(), Fault> {
        let began = Instant::now();
        let key = resize.pool;
        let first = self.applier.pool(key)?;
        if first.total != resize.from {
            // Somebody resized it since it was looked at: the next round plans anew.
            return Ok(());
        }
        let portion = (PORTION_KIB / key.size.kib()).max(1);
        let mut pool = first;
        let mut broke = None;
        while pool.total < resize.to && broke.is_none() {
            if let Err(fault) = in_time(deadline, self.pools.write_timeout, cancelled, key) {
                broke = Some(fault);
                break;
            }
            let to = pool.total.saturating_add(portion).min(resize.to);
            let before = pool;
            match self.write_portion(before, to, &mut growth.taken) {
                Ok(resized) => pool = resized.after,
                Err(fault) => broke = Some(fault),
            }
            if pool.total < to {
                break;
            }
        }
        let short = pool.total < resize.to;
        if short {
            let wanted = resize.to - resize.from;
            let got = pool.total.saturating_sub(resize.from);
            growth
                .trials
                .entry(key)
                .and_modify(|trial| {
                    trial.effort = next_effort(Some(trial.effort));
                    trial.got += got;
                })
                .or_insert(Trial { effort: next_effort(None), wanted, got });
        }
        let pages = |total: u64| format!("{total} pages");
        let outcome = match (&broke, short) {
            (Some(_), _) => StepOutcome::Failed,
            (None, true) => StepOutcome::Short,
            (None, false) => StepOutcome::Done,
        };
        let report =
            StepReport::of(step, pages(first.total), pages(pool.total), outcome, began.elapsed());
        self.note(report, &mut growth.report);
        broke.map_or(Ok(()), Err)
    }

    /// Writes one portion, with the ledger before and after.
    fn write_portion(
        &mut self,
        before: crate::model::pools::Pool,
        to: u64,
        taken: &mut PagesByPool,
    ) -> Result<Resized, Fault> {
        let key = before.key;
        self.ledger.intent = Some(Intent { pool: key, from: before.persistent(), to });
        if let Err(fault) = self.save() {
            self.ledger.intent = None;
            return Err(fault);
        }
        let resized = self.applier.resize(before, to);
        self.ledger.intent = None;
        if let Ok(resized) = &resized {
            self.ledger.set_grown(key, self.ledger.grown(key) + resized.gained());
            *taken.entry(key).or_default() += resized.gained();
        }
        self.save()?;
        resized
    }

    /// Gives back what a growth that failed has taken; says how far that went.
    fn undo(&mut self, growth: &mut Growth) -> String {
        let taken: u64 = growth.taken.values().sum();
        if taken == 0 {
            return String::new();
        }
        let limit = std::mem::take(&mut growth.taken);
        match self.shrink(&limit, false, &mut growth.report.steps) {
            Ok(given) if given == taken => {
                format!("; the {taken} pages that this call took were given back")
            }
            Ok(given) => format!(
                "; of the {taken} pages that this call took {given} were given back, the others are in \
                 use: `vhost-agent reclaim` gives them back later"
            ),
            Err(fault) => format!(
                "; the {taken} pages that this call took could not be given back ({fault}): `vhost-agent \
                 reclaim` tries again"
            ),
        }
    }

    /// Lowers pools by at most `limit`; returns the pages given back.
    fn shrink(
        &mut self,
        limit: &PagesByPool,
        dry_run: bool,
        reports: &mut Vec<StepReport>,
    ) -> Result<u64, Fault> {
        let mut given = 0;
        for step in hugepages::give_back(limit, &self.observer.pools()?) {
            let Step::Shrink(resize) = &step else { continue };
            if dry_run {
                reports.push(StepReport::planned(&step));
                continue;
            }
            self.progress.begun(&step);
            let began = Instant::now();
            let before = self.applier.pool(resize.pool)?;
            let give = (resize.from - resize.to).min(before.free).min(before.persistent());
            let resized = self.applier.resize(before, before.persistent() - give)?;
            given += resized.lost();
            let left = self.ledger.grown(resize.pool).saturating_sub(resized.lost());
            self.ledger.set_grown(resize.pool, left);
            self.save()?;
            let outcome =
                if resized.lost() < give { StepOutcome::Short } else { StepOutcome::Done };
            let pages = |total: u64| format!("{total} pages");
            let (from, to) = (pages(before.total), pages(resized.after.total));
            let report = StepReport::of(&step, from, to, outcome, began.elapsed());
            self.progress.ended(&report);
            reports.push(report);
        }
        Ok(given)
    }

    fn mount(
        &mut self,
        size: PageSize,
        dry_run: bool,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        let step = match mounts::plan(size, &self.observer.mounts()?, &self.mount) {
            MountPlan::Use(path) => {
                report.mounts.push(path);
                return Ok(());
            }
            MountPlan::Make(step) => step,
        };
        let Step::Mount { path, .. } = &step else { return Ok(()) };
        report.mounts.push(path.clone());
        if dry_run {
            report.steps.push(StepReport::planned(&step));
            return Ok(());
        }
        self.progress.begun(&step);
        let began = Instant::now();
        let mounted = self.applier.mount(path, size);
        let (before, after) = step.before_after();
        let (after, outcome) = match &mounted {
            Ok(()) => (after, StepOutcome::Done),
            Err(fault) => (fault.text.clone(), StepOutcome::Failed),
        };
        self.note(StepReport::of(&step, before, after, outcome, began.elapsed()), report);
        mounted
    }

    fn note(&self, step: StepReport, report: &mut PartReport) {
        self.progress.ended(&step);
        report.steps.push(step);
    }

    /// Brings the ledger in line with the kernel.
    fn settle(&mut self) -> Result<(), Fault> {
        let seen = self.observer.pools()?;
        if let Some(intent) = self.ledger.intent {
            tracing::warn!(
                pool = %intent.pool, from = intent.from, to = intent.to,
                "the agent ended while it was growing a pool; its pages are claimed only if all are there"
            );
        }
        if self.ledger.settle(&seen) { self.save() } else { Ok(()) }
    }

    fn save(&self) -> Result<(), Fault> {
        self.published.send_replace(self.ledger.clone());
        Ok(self.store.write(LEDGER, &self.ledger, Durability::Boot)?)
    }
}

fn in_time(
    deadline: Instant,
    within: Duration,
    cancelled: &AtomicBool,
    key: PoolKey,
) -> Result<(), Fault> {
    if cancelled.load(Ordering::Relaxed) {
        return Err(Fault::new("cancelled", format!("nobody waits any more for pages of {key}")));
    }
    if Instant::now() >= deadline {
        let text = format!(
            "growing {key} took longer than {within:?} (pools.write_timeout): the kernel has to \
                            search for free memory; free some, or raise the limit"
        );
        return Err(Fault::new("pools-timeout", text));
    }
    Ok(())
}
