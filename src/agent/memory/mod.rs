//! Work on pools and mounts, with the ledger and the reservations.
//!
//! Blocking: the pools' owner runs it on a thread of its own, because a write to a pool lasts as long as the kernel
//! searches for memory. `growth` raises pools, `release` lowers them, `page_records` keeps ledger and reservations;
//! this file does the rest: planning, restoring, mounting.

mod growth;
mod page_records;
mod release;
mod reservations;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::growth::Growth;
use self::page_records::PageRecords;
pub use self::page_records::Published;
pub(crate) use self::page_records::RESERVATIONS;
pub use self::release::ReclaimOrder;
pub use self::reservations::DownTargets;
use super::apply::cancel::CancelHandle;
use super::apply::memory::MemoryApplier;
use super::observe::memory::MemoryObserver;
use super::progress_sink::ProgressSink;
use crate::model::code::Code;
use crate::model::fault::{Fault, Finding};
use crate::model::policy::{MountPolicy, PoolPolicy};
use crate::model::pools::{NodeMemory, PagesByPool, PoolGoal, PoolsSeen, pages_map};
use crate::model::prepare::{PartReport, StepReport};
use crate::model::step::Step;
use crate::model::units::PageSize;
use crate::model::work::WorkId;
use crate::plan::hugepages::{self, Decision};
use crate::plan::mounts::{self, MountPlan};
use crate::store::Store;

/// Request to prepare the memory.
#[derive(Debug, Clone)]
pub struct MemoryOrder {
    /// Work that the request is part of.
    pub work: WorkId,
    /// Goal for the pools.
    pub goal: PoolGoal,
    /// Page sizes that need a mount.
    pub mounts: Vec<PageSize>,
    /// Set to keep the pages of a growth that fell short.
    pub keep_partial: bool,
    /// Set to plan only.
    pub dry_run: bool,
    /// Set when no caller waits any more: taken pages are given back.
    pub cancelled: Arc<AtomicBool>,
}

/// Worker on the memory of one machine.
#[derive(Debug)]
pub struct MemoryWork {
    observer: MemoryObserver,
    applier: MemoryApplier,
    pools: PoolPolicy,
    mount: MountPolicy,
    records: PageRecords,
    /// Mounts that were found usable or made, by page size.
    mounted: BTreeMap<PageSize, String>,
    /// Observation of the last plan, and its time; the request that follows the plan can use it.
    seen: Option<(Instant, PoolsSeen)>,
    ahead: Option<Ahead>,
    /// Set if the agent tried to take lost pages again, and the pools have not changed since.
    retook: bool,
    /// Set when the agent stops: what was begun is ended or given back.
    stopping: Arc<AtomicBool>,
    progress: ProgressSink,
    /// Targets whose pages are free while they are down; `None` if none are watched.
    targets: Option<DownTargets>,
}

/// Observation of the machine's memory, to be made while the thread that works on the pools wakes up and observes the
/// pools.
#[derive(Debug)]
pub struct LookAhead {
    observer: MemoryObserver,
    sender: Sender<(Instant, NodeMemory)>,
}

/// Receiving half of [`LookAhead`].
#[derive(Debug)]
struct Ahead {
    sizes: BTreeSet<PageSize>,
    receiver: Receiver<(Instant, NodeMemory)>,
}

impl LookAhead {
    /// Observes the memory. If that fails, the worker on the pools observes it itself.
    pub fn look(self) {
        let at = Instant::now();
        if let Ok(memory) = self.observer.memory() {
            let _ = self.sender.send((at, memory));
        }
    }
}

/// Maximum age at which a plan's observation of the pools is valid for the request that follows. A pool
/// is read once more before it is written to.
const LOOK_IS_GOOD: Duration = Duration::from_millis(10);

impl MemoryWork {
    /// Reads ledger and reservations. Writes nothing before the first change.
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
        let arrival = arrival_shares(&observer, &pools);
        let records = PageRecords::open(store, observer.boot_id()?, arrival)?;
        let mounted = BTreeMap::new();
        let (seen, ahead, stopping) = (None, None, Arc::default());
        Ok(MemoryWork {
            observer,
            applier,
            pools,
            mount,
            records,
            mounted,
            seen,
            ahead,
            retook: false,
            stopping,
            progress,
            targets: None,
        })
    }

    /// Sets the targets whose pages are kept for them while they are down.
    pub fn with_targets(self, targets: DownTargets) -> MemoryWork {
        MemoryWork { targets: Some(targets), ..self }
    }

    /// Subscribes to the ledger; each change is published before the caller that caused it is answered.
    pub fn publishes(&self) -> watch::Receiver<Published> {
        self.records.publishes()
    }

    /// Makes a handle to end the work early, from another thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.applier.cancel_handle(self.stopping.clone())
    }

    /// `true` if the reservations were restored in this boot.
    pub fn is_restored(&self) -> bool {
        self.records.ledger().restored
    }

    /// Plans a dry run that takes no more than reading some counters. `None` if `order` is no dry run, or takes more: a
    /// mount that is not known yet, a ledger that is behind, or a request that cannot be met.
    ///
    /// May be called where nothing may block: counters in sysfs and the state of a hugetlbfs are answered from the
    /// kernel's memory.
    pub fn plan_at_once(&mut self, order: &MemoryOrder) -> Option<PartReport> {
        if !order.dry_run {
            return None;
        }
        let mounts =
            order.mounts.iter().map(|size| self.known_mount(*size)).collect::<Option<_>>()?;
        let seen = self.observer.pools().ok()?;
        if self.records.reconcile(&seen) {
            return None;
        }
        let growth = Growth::beside(self.kept_free(true));
        let steps = match self.decide(order, &seen, &growth) {
            Decision::Holds => Vec::new(),
            Decision::Steps(steps) => steps.iter().map(StepReport::planned).collect(),
            Decision::Short(_) | Decision::Refused(_) => return None,
        };
        self.seen = Some((Instant::now(), seen));
        Some(PartReport { steps, mounts, ..PartReport::default() })
    }

    /// Returns an observation of memory to be made while `order` is handed to another thread. `None` if the last
    /// observation is recent enough, or `order` names a page size that this kernel does not have.
    ///
    /// May be called where nothing may block, as [`MemoryWork::plan_at_once`].
    pub fn looks_ahead(&mut self, order: &MemoryOrder) -> Option<LookAhead> {
        let is_good = self.seen.as_ref().is_some_and(|(at, _)| at.elapsed() < LOOK_IS_GOOD);
        let sizes = self.sizes(order);
        // The error about an unknown size lists the known ones, for which all pools have to be observed.
        if is_good || !sizes.is_subset(&self.observer.sizes()) {
            return None;
        }
        let (sender, receiver) = channel();
        self.ahead = Some(Ahead { sizes, receiver });
        Some(LookAhead { observer: self.observer.clone(), sender })
    }

    /// Returns the last observation of the pools, if it is valid for the current request.
    fn last_look(&mut self) -> Option<(Instant, PoolsSeen)> {
        if let Some(Ahead { sizes, receiver }) = self.ahead.take() {
            let now = Instant::now();
            let seen = self.observer.pools_of(&sizes, NodeMemory::default()).ok()?;
            let (at, memory) = receiver.recv_timeout(LOOK_IS_GOOD).ok()?;
            // If this thread came late, the memory may have changed much since.
            let is_good = at.elapsed() < LOOK_IS_GOOD;
            return is_good.then(|| (at.min(now), PoolsSeen { memory, ..seen }));
        }
        self.seen.take().filter(|(at, _)| at.elapsed() < LOOK_IS_GOOD)
    }

    /// Page sizes in the request and the ledger; pools of other sizes need not be observed.
    fn sizes(&self, order: &MemoryOrder) -> BTreeSet<PageSize> {
        let mut sizes = self.records.ledger().sizes();
        match &order.goal {
            PoolGoal::Free(wants) => sizes.extend(wants.iter().map(|want| want.size)),
            PoolGoal::Grown(pages) => sizes.extend(pages.keys().map(|key| key.size)),
        }
        sizes
    }

    /// Grows pools and makes mounts until the request holds.
    pub fn prepare(&mut self, order: &MemoryOrder) -> PartReport {
        self.progress = self.progress.of(order.work);
        let mut growth = Growth::beside(self.kept_free(true));
        let grown = self.grow(order, &mut growth);
        self.undo_after(grown, order, &mut growth);
        // The pages of a restore are reserved already. Others are reserved now, for the next boot to restore.
        if let (false, PoolGoal::Free(wants)) = (order.dry_run, &order.goal) {
            let sizes = wants.iter().map(|want| want.size).collect();
            let adopted = match growth.report.errors.is_empty() {
                true => self.records.adopt(&sizes, &self.most_temporary()),
                false => Ok(()),
            };
            let remembered = adopted.and_then(|()| self.records.remember());
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

    /// Finishes work for which the last request's caller did not have to wait.
    pub fn catch_up(&mut self) {
        self.records.catch_up();
    }

    /// Restores, as far as possible, pages that the agent held before a reboot or before somebody else took them.
    pub fn restore(&mut self) -> PartReport {
        let seen = match self.observer.pools() {
            Ok(seen) => seen,
            Err(fault) => return PartReport { errors: vec![fault], ..PartReport::default() },
        };
        self.records.reconcile(&seen);
        self.seen = Some((Instant::now(), seen));
        let (is_first, pages) = (!self.is_restored(), self.records.to_restore());
        let had_pages = !pages.is_empty();
        let mut report = self.take_again(pages);
        // A restore that a stop has cut short is repeated at the next start.
        if !self.stopping.load(Ordering::Relaxed) {
            report.errors.extend(self.records.restored().err());
        }
        // No guest has its pages yet: they are free, and not for the reserve.
        if is_first && had_pages {
            let beside = pages_map(&self.records.ledger().grown);
            report.errors.extend(self.fill_reserve(&beside, &mut report.steps).err());
        }
        report
    }

    /// Makes the mounts again that were lost with the last boot, once a boot: for the pages that the agent keeps, and for
    /// those of 2 MiB where targets that take them are to run and there are any.
    pub fn mount_again(&mut self, has_targets: bool) -> PartReport {
        let mut report = PartReport::default();
        if self.records.ledger().mounted {
            return report;
        }
        let mut sizes = self.records.kept_sizes();
        match self.observer.counters() {
            Ok(seen) if has_targets => {
                let there = seen.pools.iter().filter(|pool| pool.total > 0);
                sizes.extend(there.map(|pool| pool.key.size).filter(|it| *it == PageSize::MIB_2));
            }
            seen => report.errors.extend(seen.err()),
        }
        for size in &sizes {
            let mounted = self.mount(*size, false, &mut report);
            report.errors.extend(mounted.err());
        }
        if !sizes.is_empty() && report.errors.is_empty() {
            report.errors.extend(self.records.mounted().err());
        }
        report
    }

    fn take_again(&mut self, pages: PagesByPool) -> PartReport {
        self.prepare(&MemoryOrder {
            work: WorkId::next(),
            goal: PoolGoal::Grown(pages),
            mounts: Vec::new(),
            keep_partial: true,
            dry_run: false,
            cancelled: Arc::default(),
        })
    }

    /// Records in the ledger the changes that others made to the pools. Lost pages are taken again if the settings say
    /// so, and only if the pools have not changed since the last look: a process that lowers a pool may be about to
    /// raise it. One attempt is made until the pools change again, because a request that the kernel cannot meet slows
    /// the whole machine.
    pub fn look(&mut self) -> PartReport {
        // The pools may change from here on.
        self.seen = None;
        let looked = self.observer.pools().and_then(|seen| self.records.catch_up_with(&seen));
        if let Err(fault) = looked {
            return PartReport { errors: vec![fault], ..PartReport::default() };
        }
        let stay = !self.records.changed_since();
        self.retook &= stay;
        let lost = self.records.to_retake();
        if !self.pools.retake || !stay || self.retook || lost.is_empty() {
            return PartReport::default();
        }
        let report = self.take_again(lost);
        // Forgets the changes that this call made itself.
        self.records.changed_since();
        self.retook = true;
        report
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
        let (default, seen) = (self.observer.default_size(), self.observer.mounts()?);
        let (steps, finding) = match mounts::plan(size, default, &seen, &self.mount) {
            MountPlan::Use(path) => {
                self.mounted.insert(size, path.clone());
                report.mounts.push(path);
                return Ok(());
            }
            MountPlan::Make { steps, finding } => (steps, finding),
        };
        report.findings.extend(finding);
        for step in &steps {
            let Step::Mount { path, size: made } = step else { continue };
            report.mounts.extend((*made == size).then(|| path.clone()));
            if !dry_run {
                let mounted = self.simply(step, report, || self.applier.mount(path, *made));
                match mounted {
                    Err(fault) if *made != size => {
                        report.findings.push(not_for_guests(size, fault))
                    }
                    mounted => mounted?,
                }
                continue;
            }
            let planned = StepReport::planned(step);
            // A mount for guests may be planned before, as one of its own size.
            if !report.steps.contains(&planned) {
                report.steps.push(planned);
            }
        }
        Ok(())
    }

    /// Returns the mount that was found or made before, if it is still usable.
    fn known_mount(&self, size: PageSize) -> Option<String> {
        self.mounted.get(&size).filter(|path| self.observer.is_usable(path, size)).cloned()
    }

    /// Applies a step that either succeeds or fails.
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

/// Pages of the reserve for arrivals, by pool. Without a reserve nothing is read, and pools that cannot be read keep no
/// agent from its start.
fn arrival_shares(observer: &MemoryObserver, pools: &PoolPolicy) -> PagesByPool {
    if pools.arrival_reserve == 0 {
        return PagesByPool::new();
    }
    match observer.pools() {
        Ok(seen) => hugepages::arrival_shares(pools, &seen),
        Err(fault) => {
            tracing::warn!(
                code = %fault.code,
                "no pages are kept for guests that arrive until the agent is started again (pools.arrival_reserve): {fault}"
            );
            PagesByPool::new()
        }
    }
}

/// Finding on a mount for guests that could not be made; that of `size`, which is needed, is made all the same.
fn not_for_guests(size: PageSize, fault: Fault) -> Finding {
    let text = format!(
        "the kernel's default size is not mounted, so that virtual machines whose definition names no page size \
         (<hugepages/>) get pages of {size} once libvirt's daemon is restarted: {}",
        fault.text
    );
    Finding::new(Code::DefaultPagesUnmounted, text)
}

/// Formats a count of pages for reports.
fn pages_text(pages: u64) -> String {
    format!("{pages} pages")
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
