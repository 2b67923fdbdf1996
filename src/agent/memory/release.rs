//! Return of pages that a failed growth took, or that are not desired any more.

use super::growth::Growth;
use super::{MemoryOrder, MemoryWork, pages_text};
use crate::model::fault::Fault;
use crate::model::pools::{PagesByPool, PoolKey};
use crate::model::prepare::{ReclaimReport, StepOutcome, StepReport};
use crate::model::step::{ResizePool, Step};
use crate::model::units::{NumaNode, PageSize};
use crate::model::work::WorkId;
use crate::plan::hugepages;

/// Request to give pages back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReclaimOrder {
    /// Page size; `None` for any.
    pub size: Option<PageSize>,
    /// NUMA node; `None` for any.
    pub node: Option<NumaNode>,
    /// Number of free pages of each size that stay.
    pub keep: u64,
    /// Set to plan only.
    pub dry_run: bool,
}

/// Pages to give back.
pub(super) struct Shrink {
    /// Most pages of each pool.
    pub(super) limit: PagesByPool,
    /// Free pages of each pool that stay.
    pub(super) aside: PagesByPool,
    /// Set if the pages are temporary ones.
    pub(super) temporary: bool,
}

impl ReclaimOrder {
    fn names(&self, key: &PoolKey) -> bool {
        self.size.is_none_or(|size| size == key.size)
            && self.node.is_none_or(|node| node == key.node)
    }
}

impl MemoryWork {
    /// Gives back unused pages that the agent grew.
    pub fn reclaim(&mut self, order: ReclaimOrder) -> ReclaimReport {
        self.progress = self.progress.of(WorkId::next());
        // The pools change from here on.
        self.seen = None;
        let mut report =
            ReclaimReport { steps: Vec::new(), remaining: Vec::new(), errors: Vec::new() };
        // Temporary pages first, so that the others are those that a prepare asked for.
        let surplus =
            if order.dry_run { Ok(()) } else { self.give_back_surplus(&mut report.steps) };
        let seen = match surplus.and_then(|()| self.observer.pools()) {
            Ok(seen) => seen,
            Err(fault) => {
                report.errors.push(fault);
                return report;
            }
        };
        self.records.reconcile(&seen);
        // Pages that are kept for guests stay, whoever asks.
        let aside = self.kept_free(true);
        let seen = seen.without(&aside);
        let mut limit = self.records.ledger().by_pool();
        let mut missing = self.records.missing();
        limit.retain(|key, _| order.names(key));
        missing.retain(|key, _| order.names(key));
        hugepages::keep(&mut limit, &mut missing, order.keep, &seen);
        let named = |key: &PoolKey| order.names(key);
        // Lost pages are given up first: otherwise the pages given back below would be reported as lost too.
        let given_up = if order.dry_run { Ok(()) } else { self.records.lower(named, &missing) };
        let shrunk = self.shrink(
            Shrink { limit, aside, temporary: false },
            order.dry_run,
            &mut report.steps,
        );
        report.errors.extend(shrunk.1);
        if !order.dry_run {
            report.errors.extend(given_up.and(self.records.lower(named, &missing)).err());
        }
        report.remaining = self.records.ledger().grown.clone();
        report
    }

    /// Reports the fault if `part` failed, and gives back the pages that `growth` took, unless `order` keeps them.
    pub(super) fn undo_after(
        &mut self,
        part: Result<(), Fault>,
        order: &MemoryOrder,
        growth: &mut Growth,
    ) {
        let Err(mut fault) = part else { return };
        if !order.keep_partial {
            fault.text += &self.undo(growth);
        }
        growth.report.errors.push(fault);
    }

    /// Gives back the pages that a failed growth took; returns text on the outcome.
    fn undo(&mut self, growth: &mut Growth) -> String {
        let taken: u64 = growth.taken.values().sum();
        if taken == 0 {
            return String::new();
        }
        let limit = std::mem::take(&mut growth.taken);
        let shrink = Shrink { limit, aside: growth.aside.clone(), temporary: growth.temporary };
        match self.shrink(shrink, false, &mut growth.report.steps) {
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

    /// Lowers pools; returns the pages given back, and the fault that stopped it.
    pub(super) fn shrink(
        &mut self,
        what: Shrink,
        dry_run: bool,
        reports: &mut Vec<StepReport>,
    ) -> (u64, Option<Fault>) {
        let seen = match self.observer.pools() {
            Ok(seen) => seen.without(&what.aside),
            Err(fault) => return (0, Some(fault)),
        };
        let mut given = 0;
        for step in hugepages::give_back(&what.limit, &seen) {
            let Step::Shrink(resize) = &step else { continue };
            if dry_run {
                reports.push(StepReport::planned(&step));
                continue;
            }
            if let Err(fault) = self.lower(&step, (*resize, &what), &mut given, reports) {
                return (given, Some(fault));
            }
        }
        (given, None)
    }

    fn lower(
        &mut self,
        step: &Step,
        (resize, what): (ResizePool, &Shrink),
        given: &mut u64,
        reports: &mut Vec<StepReport>,
    ) -> Result<(), Fault> {
        let before = self.applier.pool(resize.pool)?;
        let spare = before.free.saturating_sub(what.aside.get(&resize.pool).copied().unwrap_or(0));
        let give = (resize.from - resize.to).min(spare).min(before.persistent());
        let begun = self.progress.begun(step);
        let resized = match self.applier.resize(before, before.persistent() - give) {
            Ok(resized) => resized,
            Err(fault) => return begun.applied(Err(fault), reports),
        };
        *given += resized.lost();
        let outcome = if resized.lost() < give { StepOutcome::Short } else { StepOutcome::Done };
        let pages = (pages_text(before.total), pages_text(resized.after.total));
        begun.ended(pages, outcome, reports);
        self.records.gave_back(&resized, what.temporary)
    }
}
