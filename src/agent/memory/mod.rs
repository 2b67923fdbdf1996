//! The work on pools and mounts, with the books.
//!
//! Blocking: the pools' owner runs it on a thread of its own, because a write to a pool lasts as
//! long as the kernel looks for memory. `growth` raises pools, this file does the rest: giving back,
//! restoring, mounting.

mod books;
mod growth;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::books::Books;
pub use self::books::Published;
use self::growth::Growth;
use super::apply::memory::{Cut, MemoryApplier};
use super::observe::memory::MemoryObserver;
use super::progress::ProgressSink;
use crate::model::fault::Fault;
use crate::model::policy::{MountPolicy, PoolPolicy};
use crate::model::pools::{PagesByPool, PoolGoal, PoolKey, PoolsSeen};
use crate::model::prepare::{PartReport, ReclaimReport, ResizePool, Step, StepOutcome, StepReport};
use crate::model::units::{NumaNode, PageSize};
use crate::plan::hugepages::{self, Decision};
use crate::plan::mounts::{self, MountPlan};
use crate::store::Store;

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

impl ReclaimOrder {
    fn names(&self, key: &PoolKey) -> bool {
        self.size.is_none_or(|size| size == key.size)
            && self.node.is_none_or(|node| node == key.node)
    }
}

/// Makes the work on the memory end early.
#[derive(Debug, Clone)]
pub struct Brake {
    stopping: Arc<AtomicBool>,
    cut: Cut,
}

impl Brake {
    /// Makes it possible to cut a write to a pool short. On the runtime.
    ///
    /// # Errors
    /// When the signal that does it cannot be caught.
    pub fn arm(&self) -> std::io::Result<()> {
        self.cut.arm()
    }

    /// Has the work at hand end, and all further work refused; again and again until it has ended, for
    /// each write is cut by itself.
    pub fn pull(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.cut.now();
    }
}

/// Works on the memory of one machine.
#[derive(Debug)]
pub struct MemoryWork {
    observer: MemoryObserver,
    applier: MemoryApplier,
    pools: PoolPolicy,
    mount: MountPolicy,
    books: Books,
    /// The mounts that were found good or made, by page size.
    mounted: BTreeMap<PageSize, String>,
    /// What the last plan was made on, and when: the order that follows it need not look again.
    seen: Option<(Instant, PoolsSeen)>,
    /// Set when the agent stops: what was begun is ended or given back.
    stopping: Arc<AtomicBool>,
    progress: ProgressSink,
}

/// A plan's look at the pools is good for the order that follows it so soon. A pool is read once more
/// before it is written to.
const LOOK_IS_GOOD: Duration = Duration::from_millis(10);

impl MemoryWork {
    /// Reads the books. Nothing is written before something is to be changed.
    ///
    /// # Errors
    /// When the boot id or the state cannot be read.
    pub fn new(
        observer: MemoryObserver,
        applier: MemoryApplier,
        pools: PoolPolicy,
        mount: MountPolicy,
        store: Store,
        progress: ProgressSink,
    ) -> Result<MemoryWork, Fault> {
        let books = Books::open(store, observer.boot_id()?)?;
        let mounted = BTreeMap::new();
        let (seen, stopping) = (None, Arc::default());
        Ok(MemoryWork { observer, applier, pools, mount, books, mounted, seen, stopping, progress })
    }

    /// The books for others, who see each change before the caller that caused it is answered.
    pub fn publishes(&self) -> watch::Receiver<Published> {
        self.books.publishes()
    }

    /// What makes the work end early, from another thread.
    pub fn brake(&self) -> Brake {
        Brake { stopping: self.stopping.clone(), cut: self.applier.cut() }
    }

    /// Whether what the last boot held was taken again in this one.
    pub fn is_restored(&self) -> bool {
        self.books.ledger().restored
    }

    /// The plan of an order that is a dry run, when it takes no more than a look at some counters;
    /// `None` when it takes more: a mount that is not known yet, or a wish that cannot be met.
    ///
    /// Unlike all else here it may be called where nothing may block: counters in sysfs and the state
    /// of a hugetlbfs are answered out of the kernel's memory.
    pub fn plan_at_once(&mut self, order: &MemoryOrder) -> Option<PartReport> {
        if !order.dry_run {
            return None;
        }
        let mounts =
            order.mounts.iter().map(|size| self.known_mount(*size)).collect::<Option<_>>()?;
        let seen = self.observer.pools().ok()?;
        self.books.settle(&seen);
        let steps = match self.decide(order, &seen, &Growth::default()) {
            Decision::Holds => Vec::new(),
            Decision::Steps(steps) => steps.iter().map(StepReport::planned).collect(),
            Decision::Short(_) | Decision::Refused(_) => return None,
        };
        self.seen = Some((Instant::now(), seen));
        Some(PartReport { steps, mounts, ..PartReport::default() })
    }

    /// Grows pools and makes mounts until the order holds.
    pub fn prepare(&mut self, order: &MemoryOrder) -> PartReport {
        let mut growth = Growth::default();
        let grown = self.grow(order, &mut growth);
        self.undo_after(grown, order, &mut growth);
        // What a restore takes is reserved already; anything else is, when the next boot takes it too.
        if !order.dry_run && matches!(order.goal, PoolGoal::Free(_)) {
            let remembered = self.books.remember();
            self.undo_after(remembered, order, &mut growth);
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
        let mut report = self.prepare(&MemoryOrder {
            goal: PoolGoal::Grown(self.books.reservations().clone()),
            mounts: Vec::new(),
            keep_partial: true,
            dry_run: false,
            cancelled: Arc::default(),
        });
        report.errors.extend(self.books.restored().err());
        report
    }

    /// Gives back what the agent grew and nobody uses.
    pub fn reclaim(&mut self, order: ReclaimOrder) -> ReclaimReport {
        let mut report =
            ReclaimReport { steps: Vec::new(), remaining: Vec::new(), errors: Vec::new() };
        match self.observer.pools() {
            Ok(seen) => self.books.settle(&seen),
            Err(fault) => {
                report.errors.push(fault);
                return report;
            }
        }
        let mut limit = self.books.ledger().by_pool();
        limit.retain(|key, _| order.names(key));
        let shrunk = self.shrink(&limit, order.dry_run, &mut report.steps);
        report.errors.extend(shrunk.1);
        if !order.dry_run {
            report.errors.extend(self.books.lower(|key| order.names(key)).err());
        }
        report.remaining = self.books.ledger().grown.clone();
        report
    }

    /// Reports a part of a growth that failed, and gives back what was taken unless it is to be kept.
    fn undo_after(&mut self, part: Result<(), Fault>, order: &MemoryOrder, growth: &mut Growth) {
        let Err(mut fault) = part else { return };
        if !order.keep_partial {
            fault.text += &self.undo(growth);
        }
        growth.report.errors.push(fault);
    }

    /// Gives back what a growth that failed has taken; says how far that went.
    fn undo(&mut self, growth: &mut Growth) -> String {
        let taken: u64 = growth.taken.values().sum();
        if taken == 0 {
            return String::new();
        }
        let limit = std::mem::take(&mut growth.taken);
        match self.shrink(&limit, false, &mut growth.report.steps) {
            (given, _) if given == taken => {
                format!("; the {taken} pages that this call took were given back")
            }
            (given, None) => format!(
                "; of the {taken} pages that this call took {given} were given back, the others are in \
                 use: `vhost-agent reclaim` gives them back later"
            ),
            (given, Some(fault)) => format!(
                "; of the {taken} pages that this call took {given} were given back, then: {fault}; \
                 `vhost-agent reclaim` tries again"
            ),
        }
    }

    /// Lowers pools by at most `limit`; returns the pages given back, and why it stopped.
    fn shrink(
        &mut self,
        limit: &PagesByPool,
        dry_run: bool,
        reports: &mut Vec<StepReport>,
    ) -> (u64, Option<Fault>) {
        let seen = match self.observer.pools() {
            Ok(seen) => seen,
            Err(fault) => return (0, Some(fault)),
        };
        let mut given = 0;
        for step in hugepages::give_back(limit, &seen) {
            let Step::Shrink(resize) = &step else { continue };
            if dry_run {
                reports.push(StepReport::planned(&step));
                continue;
            }
            if let Err(fault) = self.lower(&step, *resize, &mut given, reports) {
                return (given, Some(fault));
            }
        }
        (given, None)
    }

    fn lower(
        &mut self,
        step: &Step,
        resize: ResizePool,
        given: &mut u64,
        reports: &mut Vec<StepReport>,
    ) -> Result<(), Fault> {
        self.progress.begun(step);
        let began = Instant::now();
        let before = self.applier.pool(resize.pool)?;
        let give = (resize.from - resize.to).min(before.free).min(before.persistent());
        let resized = self.applier.resize(before, before.persistent() - give)?;
        *given += resized.lost();
        let outcome = if resized.lost() < give { StepOutcome::Short } else { StepOutcome::Done };
        let (from, to) = (pages_text(before.total), pages_text(resized.after.total));
        let report = StepReport::of(step, from, to, outcome, began.elapsed());
        self.progress.ended(&report);
        reports.push(report);
        self.books.gave_back(&resized)
    }

    fn mount(
        &mut self,
        size: PageSize,
        dry_run: bool,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        if let Some(path) = self.known_mount(size) {
            report.mounts.push(path);
            return Ok(());
        }
        let step = match mounts::plan(size, &self.observer.mounts()?, &self.mount) {
            MountPlan::Use(path) => {
                self.mounted.insert(size, path.clone());
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
        self.simply(&step, report, || self.applier.mount(path, size))
    }

    /// The mount that was found good or made before, when it still is.
    fn known_mount(&self, size: PageSize) -> Option<String> {
        self.mounted.get(&size).filter(|path| self.observer.is_usable(path, size)).cloned()
    }

    /// Does a step that either works or does not.
    fn simply(
        &self,
        step: &Step,
        report: &mut PartReport,
        work: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.progress.begun(step);
        let began = Instant::now();
        let done = work();
        let (before, after) = step.before_after();
        let (after, outcome) = match &done {
            Ok(()) => (after, StepOutcome::Done),
            Err(fault) => (fault.text.clone(), StepOutcome::Failed),
        };
        self.note(StepReport::of(step, before, after, outcome, began.elapsed()), report);
        done
    }

    fn note(&self, step: StepReport, report: &mut PartReport) {
        self.progress.ended(&step);
        report.steps.push(step);
    }
}

/// A count of pages as reports show it.
fn pages_text(pages: u64) -> String {
    format!("{pages} pages")
}
