//! Growth of pools: rounds of observe, plan and apply, until the goal holds or cannot be reached.
//!
//! Large growths are written in portions, so that a deadline and a caller that gave up are noticed in
//! between; each portion is in the ledger before it is begun.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{LOOK_IS_GOOD, MemoryOrder, MemoryWork, pages_text};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::ledger::Intent;
use crate::model::pools::{PagesByPool, Pool, PoolKey, PoolsSeen};
use crate::model::prepare::{PartReport, StepOutcome, StepReport};
use crate::model::step::Step;
use crate::plan::hugepages::{self, Decision, GrowthTrial, OnShortfall, Trials, next_effort};

/// KiB that one write to a pool may request: 2 GiB.
const PORTION_KIB: u64 = 2 * 1024 * 1024;
/// Maximum age of an observation for a write to the pool without reading the pool again: a new reading would not be
/// much closer to the write.
const AS_GOOD_AS_NOW: Duration = Duration::from_micros(500);
/// Rounds of plan and apply before contention with another user of the pools is reported.
const MOST_ROUNDS: usize = 32;

/// Progress of one growth.
#[derive(Default)]
pub(super) struct Growth {
    pub(super) report: PartReport,
    trials: Trials,
    /// Persistent pages taken, by pool.
    pub(super) taken: PagesByPool,
    /// Free pages, by pool, that are kept for others and do not count towards the goal. Fixed for the whole growth, as a
    /// guest may take its pages meanwhile.
    pub(super) aside: PagesByPool,
    /// Set if the pages are temporary.
    pub(super) temporary: bool,
}

/// Conditions to stop between portions.
struct Limits<'a> {
    deadline: Instant,
    within: Duration,
    cancelled: &'a AtomicBool,
    stopping: &'a AtomicBool,
}

impl Limits<'_> {
    fn check(&self, key: PoolKey) -> Result<(), Fault> {
        self.check_cancelled()?;
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let text = format!(
            "growing {key} took longer than {:?} (pools.write_timeout): the kernel has to search for \
             free memory; free some, or raise the limit",
            self.within
        );
        Err(Fault::new(Code::PoolsTimeout, text))
    }

    fn check_cancelled(&self) -> Result<(), Fault> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Fault::new(Code::Stopping, "the agent stops: call again when it runs"));
        }
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(Fault::new(Code::Cancelled, "nobody waits for these pages any more")),
            false => Ok(()),
        }
    }
}

impl MemoryWork {
    /// Grows the pools to the request's goal; `growth` has what was done, also after an error.
    pub(super) fn grow(&mut self, order: &MemoryOrder, growth: &mut Growth) -> Result<(), Fault> {
        let within = self.pools.write_timeout;
        let deadline = Instant::now() + within;
        let stopping = self.stopping.clone();
        let limits = Limits { deadline, within, cancelled: &order.cancelled, stopping: &stopping };
        let (mut at, mut seen) = match self.last_look() {
            Some(last) => last,
            None => (Instant::now(), self.observer.pools()?),
        };
        self.records.reconcile(&seen);
        for _ in 0..MOST_ROUNDS {
            let steps = match self.decide(order, &seen, growth) {
                Decision::Holds => return limits.check_cancelled(),
                Decision::Short(fault) | Decision::Refused(fault) => return Err(fault),
                Decision::Steps(steps) if order.dry_run => {
                    growth.report.steps.extend(steps.iter().map(StepReport::planned));
                    return Ok(());
                }
                Decision::Steps(steps) => steps,
            };
            for step in &steps {
                self.apply(step, (at, &mut seen), growth, &limits)?;
            }
            // Written pools were read back. The others are observed again, unless the observation is recent: a guest
            // may have started during a long growth.
            if at.elapsed() < LOOK_IS_GOOD && self.decide(order, &seen, growth) == Decision::Holds {
                return limits.check_cancelled();
            }
            (at, seen) = (Instant::now(), self.observer.pools()?);
        }
        Err(Fault::new(
            Code::PoolsContended,
            format!(
                "the wanted pages were taken away again {MOST_ROUNDS} times while they were being \
                 grown: something else uses or resizes the pools at the same time; prepare again \
                 when it is done"
            ),
        ))
    }

    /// Plans the next round from the observation and the outcomes of the rounds before.
    pub(super) fn decide(
        &self,
        order: &MemoryOrder,
        seen: &PoolsSeen,
        growth: &Growth,
    ) -> Decision {
        let on_shortfall =
            if order.keep_partial { OnShortfall::TakeTheRest } else { OnShortfall::Stop };
        let grown = self.records.ledger().by_pool();
        let free = seen.without(&growth.aside);
        hugepages::grow(&order.goal, &free, &grown, &self.pools, &growth.trials, on_shortfall)
    }

    /// Applies one step; updates `seen` with what it reads back.
    fn apply(
        &mut self,
        step: &Step,
        (at, seen): (Instant, &mut PoolsSeen),
        growth: &mut Growth,
        limits: &Limits,
    ) -> Result<(), Fault> {
        limits.check_cancelled()?;
        match step {
            Step::Grow(resize) => {
                let first = match seen.pool(resize.pool) {
                    Some(pool) if at.elapsed() < AS_GOOD_AS_NOW => *pool,
                    _ => self.applier.pool(resize.pool)?,
                };
                // If the totals differ, somebody resized the pool since it was observed: the next round plans anew.
                let pool = match first.total == resize.from {
                    true => self.raise(step, first, resize.to, growth, limits)?,
                    false => first,
                };
                seen.replace(pool);
                Ok(())
            }
            Step::Compact(node) => {
                let (applier, node) = (&self.applier, *node);
                self.simply(step, &mut growth.report, || applier.compact(node))
            }
            Step::DropPageCache => {
                let applier = &self.applier;
                self.simply(step, &mut growth.report, || applier.drop_page_cache())
            }
            other => Err(Fault::new(
                Code::Internal,
                format!("the step {} is not the pools'", other.name()),
            )),
        }
    }

    /// Raises one pool in portions until the kernel grants less than requested; returns the pool afterwards.
    fn raise(
        &mut self,
        step: &Step,
        first: Pool,
        goal: u64,
        growth: &mut Growth,
        limits: &Limits,
    ) -> Result<Pool, Fault> {
        let begun = self.progress.begun(step);
        let (last, broke) = self.raise_by_portions(first, goal, growth, limits);
        let short = last.persistent() < goal;
        if short {
            let got = last.total.saturating_sub(first.total);
            growth.note_short(first.key, goal.saturating_sub(first.total), got);
        }
        let outcome = match (&broke, short) {
            (Some(_), _) => StepOutcome::Failed,
            (None, true) => StepOutcome::Short,
            (None, false) => StepOutcome::Done,
        };
        let pages = (pages_text(first.total), pages_text(last.total));
        begun.ended(pages, outcome, &mut growth.report.steps);
        broke.map_or(Ok(last), Err)
    }

    /// Raises the pool `first` towards `goal` in portions. Returns the pool afterwards, and a fault if the raise
    /// stopped for another reason than too few pages from the kernel.
    fn raise_by_portions(
        &mut self,
        first: Pool,
        goal: u64,
        growth: &mut Growth,
        limits: &Limits,
    ) -> (Pool, Option<Fault>) {
        let portion = (PORTION_KIB / first.key.size.kib()).max(1);
        let mut pool = first;
        while pool.persistent() < goal {
            if let Err(fault) = limits.check(pool.key) {
                return (pool, Some(fault));
            }
            let to = pool.total.saturating_add(portion).min(goal);
            match self.raise_one_portion(pool, to, growth) {
                Ok(after) => pool = after,
                Err(fault) => return (pool, Some(fault)),
            }
            if pool.persistent() < to {
                break;
            }
        }
        (pool, None)
    }

    fn raise_one_portion(
        &mut self,
        before: Pool,
        to: u64,
        growth: &mut Growth,
    ) -> Result<Pool, Fault> {
        let key = before.key;
        self.records.begin(Intent {
            pool: key,
            from: before.persistent(),
            to,
            temporary: growth.temporary,
        })?;
        match self.applier.resize(before, to) {
            Ok(resized) => {
                *growth.taken.entry(key).or_default() += resized.gained();
                self.records.grew(&resized).map(|()| resized.after)
            }
            Err(fault) => {
                // If pages may have been taken in spite of the fault, the next observation resolves the intent.
                let same = |pool: Pool| pool.persistent() == before.persistent();
                if self.applier.pool(key).is_ok_and(same) {
                    // The write's own fault is the one to report.
                    let _ = self.records.did_not_grow();
                }
                Err(fault)
            }
        }
    }
}

impl Growth {
    /// Growth beside the free pages in `aside`.
    pub(super) fn beside(aside: PagesByPool) -> Growth {
        Growth { aside, ..Growth::default() }
    }

    /// Growth of temporary pages beside the free pages in `aside`.
    pub(super) fn of_temporary(aside: PagesByPool) -> Growth {
        Growth { temporary: true, ..Growth::beside(aside) }
    }

    fn note_short(&mut self, key: PoolKey, wanted: u64, got: u64) {
        self.trials
            .entry(key)
            .and_modify(|trial| {
                trial.effort = next_effort(Some(trial.effort));
                trial.got += got;
            })
            .or_insert(GrowthTrial { effort: next_effort(None), wanted, got });
    }
}
