//! The work on pools and mounts, with the books.
//!
//! Blocking: the pools' owner runs it on a thread of its own, because a write to a pool lasts as
//! long as the kernel looks for memory. `growth` raises pools, `giving_back` lowers them, this file
//! does the rest: planning, restoring, mounting.

mod books;
mod giving_back;
mod growth;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::books::Books;
pub use self::books::Published;
pub(crate) use self::books::RESERVATIONS;
pub use self::giving_back::ReclaimOrder;
use self::growth::Growth;
use super::apply::cancel::CancelHandle;
use super::apply::memory::MemoryApplier;
use super::observe::memory::MemoryObserver;
use super::progress::ProgressSink;
use crate::model::fault::Fault;
use crate::model::policy::{MountPolicy, PoolPolicy};
use crate::model::pools::{Memory, PoolGoal, PoolsSeen};
use crate::model::prepare::{PartReport, StepReport};
use crate::model::step::Step;
use crate::model::units::PageSize;
use crate::model::work::WorkId;
use crate::plan::hugepages::Decision;
use crate::plan::mounts::{self, MountPlan};
use crate::store::Store;

/// What is wanted of the memory.
#[derive(Debug, Clone)]
pub struct MemoryOrder {
    /// Which work it is a part of.
    pub work: WorkId,
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
    ahead: Option<Ahead>,
    /// Set when the agent stops: what was begun is ended or given back.
    stopping: Arc<AtomicBool>,
    progress: ProgressSink,
}

/// Looks at the machine's memory while the thread that is to work on its pools wakes up and looks at those.
#[derive(Debug)]
pub struct LookAhead {
    observer: MemoryObserver,
    tells: Sender<(Instant, Memory)>,
}

/// The other half of it.
#[derive(Debug)]
struct Ahead {
    sizes: BTreeSet<PageSize>,
    told: Receiver<(Instant, Memory)>,
}

impl LookAhead {
    /// Looks. Who works on the pools looks himself where that fails.
    pub fn look(self) {
        let at = Instant::now();
        if let Ok(memory) = self.observer.memory() {
            let _ = self.tells.send((at, memory));
        }
    }
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
        let (seen, ahead, stopping) = (None, None, Arc::default());
        Ok(MemoryWork {
            observer,
            applier,
            pools,
            mount,
            books,
            mounted,
            seen,
            ahead,
            stopping,
            progress,
        })
    }

    /// The books for others, who see each change before the caller that caused it is answered.
    pub fn publishes(&self) -> watch::Receiver<Published> {
        self.books.publishes()
    }

    /// What makes the work end early, from another thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.applier.cancel_handle(self.stopping.clone())
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

    /// What looks at the machine for an order that is handed to another thread; `None` when the last look
    /// is good for it.
    ///
    /// As [`MemoryWork::plan_at_once`] it may be called where nothing may block.
    pub fn looks_ahead(&mut self, order: &MemoryOrder) -> Option<LookAhead> {
        let is_good = self.seen.as_ref().is_some_and(|(at, _)| at.elapsed() < LOOK_IS_GOOD);
        let sizes = self.sizes(order);
        // Who is told that there is no such size is told which there are.
        if is_good || !sizes.is_subset(&self.observer.sizes()) {
            return None;
        }
        let (tells, told) = channel();
        self.ahead = Some(Ahead { sizes, told });
        Some(LookAhead { observer: self.observer.clone(), tells })
    }

    /// The last look at the pools, when it is good for the order at hand.
    fn last_look(&mut self) -> Option<(Instant, PoolsSeen)> {
        if let Some(Ahead { sizes, told }) = self.ahead.take() {
            let now = Instant::now();
            let seen = self.observer.pools_of(&sizes, Memory::default()).ok()?;
            let (at, memory) = told.recv_timeout(LOOK_IS_GOOD).ok()?;
            // Where this thread came late, much may have happened to the memory since.
            let is_good = at.elapsed() < LOOK_IS_GOOD;
            return is_good.then(|| (at.min(now), PoolsSeen { memory, ..seen }));
        }
        self.seen.take().filter(|(at, _)| at.elapsed() < LOOK_IS_GOOD)
    }

    /// The sizes of pages that an order and the books are about: pools of others are nothing to them.
    fn sizes(&self, order: &MemoryOrder) -> BTreeSet<PageSize> {
        let mut sizes = self.books.ledger().sizes();
        match &order.goal {
            PoolGoal::Free(wants) => sizes.extend(wants.iter().map(|want| want.size)),
            PoolGoal::Grown(pages) => sizes.extend(pages.keys().map(|key| key.size)),
        }
        sizes
    }

    /// Grows pools and makes mounts until the order holds.
    pub fn prepare(&mut self, order: &MemoryOrder) -> PartReport {
        self.progress = self.progress.of(order.work);
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

    /// Ends what the caller of the last order did not have to wait for.
    pub fn catch_up(&mut self) {
        self.books.catch_up();
    }

    /// Takes again what the agent held before the machine was booted or somebody else took it away, as far as it can.
    pub fn restore(&mut self) -> PartReport {
        let seen = match self.observer.pools() {
            Ok(seen) => seen,
            Err(fault) => return PartReport { errors: vec![fault], ..PartReport::default() },
        };
        self.books.settle(&seen);
        self.seen = Some((Instant::now(), seen));
        let mut report = self.prepare(&MemoryOrder {
            work: WorkId::next(),
            goal: PoolGoal::Grown(self.books.to_restore()),
            mounts: Vec::new(),
            keep_partial: true,
            dry_run: false,
            cancelled: Arc::default(),
        });
        // What a stop has cut short is done by the next start.
        if !self.stopping.load(Ordering::Relaxed) {
            report.errors.extend(self.books.restored().err());
        }
        report
    }

    /// Looks at what others have done to the pools, and writes it down. Lost pages are taken again where the settings say so:
    /// when the pools are as the look before found them, for who lowers a pool may be about to raise it.
    pub fn look(&mut self) -> PartReport {
        // It may be another pool from here on.
        self.seen = None;
        let looked = self.observer.pools().and_then(|seen| self.books.catch_up_with(&seen));
        match looked {
            Err(fault) => PartReport { errors: vec![fault], ..PartReport::default() },
            Ok(changed) => {
                let are_lost = !changed && !self.books.ledger().lost().is_empty();
                if are_lost && self.pools.retake { self.restore() } else { PartReport::default() }
            }
        }
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
        let begun = self.progress.begun(step);
        let (_, after) = step.before_after();
        begun.applied(work().map(|()| after), &mut report.steps)
    }
}

/// A count of pages as reports show it.
fn pages_text(pages: u64) -> String {
    format!("{pages} pages")
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
