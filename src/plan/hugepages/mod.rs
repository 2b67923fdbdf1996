//! Growing and giving back hugepages (field notes 1 to 6).
//!
//! `grow` is called again after each round of writes, with what the kernel really did and with the trials so far,
//! until the goal holds or cannot be reached. Growth is wanted as *free* pages: those that guests have taken or
//! reserved do not count. The kernel counts reserved pages for the whole machine, and lets a process that is bound to
//! a node map pages when the machine has that many unreserved ones and the node that many free ones
//! (hugetlb_acct_memory in mm/hugetlb.c). The planner counts alike: reserved pages count against the requested pools
//! as far as the free pages elsewhere do not cover them.

mod bounds;
mod placement;
mod reserve;
mod shrink;

use std::cmp::Reverse;
use std::collections::BTreeMap;

pub use self::bounds::floor_kib;
use self::placement::fill_evenly;
pub use self::reserve::{arrival_shares, free_share, share_out, taken_by_target, wants_of};
pub use self::shrink::{give_back, keep};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::PoolPolicy;
use crate::model::pools::{PagesByPool, PoolGoal, PoolKey, PoolWant, PoolsSeen};
use crate::model::step::{ResizePool, Step};

/// Effort that preceded a request to the kernel for pages of a pool, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    Plain,
    /// After compaction.
    Compacted,
    /// After the page cache was dropped.
    CacheDropped,
}

/// Growth of a pool for which the kernel gave too few pages in this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrowthTrial {
    /// Greatest effort made for this growth.
    pub effort: Effort,
    /// Pages requested.
    pub wanted: u64,
    /// Pages obtained.
    pub got: u64,
}

/// Growths for which the kernel gave too few pages in this call, by pool.
pub type Trials = BTreeMap<PoolKey, GrowthTrial>;

/// Effort of the next attempt; `last` is the effort of the attempt before, if that gave too few pages.
pub fn next_effort(last: Option<Effort>) -> Effort {
    match last {
        None => Effort::Plain,
        Some(Effort::Plain) => Effort::Compacted,
        Some(_) => Effort::CacheDropped,
    }
}

/// Outcome of a planning round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing to do: the goal holds.
    Holds,
    /// Steps to apply before the pools are observed again.
    Steps(Vec<Step>),
    /// No further step can help; the fault names the node, and the pages requested and obtained.
    Short(Fault),
    /// Growth that must not be tried, for the reason in the fault.
    Refused(Fault),
}

/// Reaction to a pool that cannot give its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnShortfall {
    /// Stop at the first such pool: what was taken will be given back.
    Stop,
    /// Take what there is, from every pool that can still give, up to the floor.
    TakeTheRest,
}

/// Plans the next steps towards `goal`.
///
/// `grown` has the pages in the agent's ledger for this boot.
pub fn grow(
    goal: &PoolGoal,
    seen: &PoolsSeen,
    grown: &PagesByPool,
    policy: &PoolPolicy,
    trials: &Trials,
    on_shortfall: OnShortfall,
) -> Decision {
    let restored = match goal {
        PoolGoal::Grown(wanted) => Some(wanted),
        PoolGoal::Free(_) => None,
    };
    let round = Round { seen, grown, policy, trials, restored };
    let shares = match goal {
        PoolGoal::Free(wants) => round.shares_for_free(wants),
        PoolGoal::Grown(wanted) => Ok(round.shares_for_grown(wanted)),
    };
    match shares {
        Ok(shares) => round.decide(shares, on_shortfall),
        Err(refused) => Decision::Refused(refused),
    }
}

/// Pages that each pool should gain, and pages that an exhausted pool would have to give.
#[derive(Default)]
struct Shares {
    adds: PagesByPool,
    short: Vec<Shortfall>,
}

struct Shortfall {
    pool: PoolKey,
    missing: u64,
}

struct Round<'a> {
    seen: &'a PoolsSeen,
    grown: &'a PagesByPool,
    policy: &'a PoolPolicy,
    trials: &'a Trials,
    /// Pages that the agent had before a boot and restores; `None` if the goal is free pages.
    restored: Option<&'a PagesByPool>,
}

impl Round<'_> {
    fn shares_for_free(&self, wants: &[PoolWant]) -> Result<Shares, Fault> {
        let mut shares = Shares::default();
        for want in wants {
            self.add_want(want, &mut shares.adds, &mut shares.short)?;
        }
        Ok(shares)
    }

    /// Adds the pages that `want` lacks to `planned`, or to `short` if their pool is exhausted. Pages in `planned`
    /// already count as free.
    fn add_want(
        &self,
        want: &PoolWant,
        planned: &mut PagesByPool,
        short: &mut Vec<Shortfall>,
    ) -> Result<(), Fault> {
        let candidates = self.candidates(want)?;
        let overflow = want.move_shortfall && candidates.iter().all(|key| self.exhausted(*key));
        let free = |key: &PoolKey| {
            let free = self.seen.pool(*key).map_or(0, |pool| pool.free);
            free.saturating_add(planned.get(key).copied().unwrap_or(0))
        };
        let mut levels: PagesByPool = candidates.iter().map(|key| (*key, free(key))).collect();
        let mut moved = PagesByPool::new();
        if want.move_shortfall {
            for key in self.others(want.size, &candidates) {
                // Of the free pages on other nodes, only the agent's own count. They were moved there because the
                // wanted node was full, and to ask that node again would be in vain at every call.
                let grown = self.grown.get(&key).copied().unwrap_or(0);
                moved.insert(key, free(&key).min(grown));
            }
        }
        let have = sum(&levels).saturating_add(sum(&moved));
        let everywhere = self.pools_of(want.size).iter().map(free).fold(0, u64::saturating_add);
        let elsewhere = everywhere.saturating_sub(have);
        let promised = self.seen.reserved(want.size).saturating_sub(elsewhere);
        let missing = want.pages.saturating_add(promised).saturating_sub(have);
        if missing == 0 {
            return Ok(());
        }
        self.refuse_absurd(want, missing)?;
        if want.move_shortfall {
            let from = if overflow { moved } else { levels.clone() };
            let willing: PagesByPool =
                from.into_iter().filter(|(key, _)| !self.exhausted(*key)).collect();
            if !willing.is_empty() {
                levels = willing;
            }
        }
        for (key, add) in fill_evenly(&levels, missing) {
            if self.exhausted(key) {
                short.push(Shortfall { pool: key, missing: add });
            } else {
                *planned.entry(key).or_default() += add;
            }
        }
        Ok(())
    }

    fn shares_for_grown(&self, wanted: &PagesByPool) -> Shares {
        let mut shares = Shares::default();
        for key in wanted.keys() {
            let missing = self.missing(*key);
            if missing == 0 {
                continue;
            }
            match self.seen.pool(*key) {
                // The kernel makes surplus pages persistent first, which takes no memory.
                Some(pool) if !self.exhausted(*key) => {
                    shares.adds.insert(*key, missing.saturating_sub(pool.surplus));
                }
                _ => shares.short.push(Shortfall { pool: *key, missing }),
            }
        }
        shares
    }

    /// Pages of a pool that are yet to be restored.
    fn missing(&self, key: PoolKey) -> u64 {
        let pages = |of: &PagesByPool| of.get(&key).copied().unwrap_or(0);
        self.restored.map_or(0, pages).saturating_sub(pages(self.grown))
    }

    /// Persistent pages of a pool once `add` pages are added.
    fn persistent_after(&self, key: PoolKey, add: u64) -> u64 {
        let (total, persistent) =
            self.seen.pool(key).map_or((0, 0), |pool| (pool.total, pool.persistent()));
        let to = total.saturating_add(add);
        match self.restored {
            // Surplus pages beyond what is missing are not the agent's.
            Some(_) => to.min(persistent.saturating_add(self.missing(key))),
            None => to,
        }
    }

    fn decide(&self, shares: Shares, on_shortfall: OnShortfall) -> Decision {
        let stop = on_shortfall == OnShortfall::Stop || shares.adds.is_empty();
        if stop && !shares.short.is_empty() {
            return Decision::Short(self.shortfalls(&shares.short));
        }
        if shares.adds.is_empty() {
            return Decision::Holds;
        }
        match self.keep_floor(&shares.adds).and_then(|()| self.keep_limit(&shares.adds)) {
            Ok(()) => Decision::Steps(self.steps(&shares.adds)),
            Err(refused) if on_shortfall == OnShortfall::Stop => Decision::Refused(refused),
            Err(refused) => {
                let affordable = self.within_bounds(&shares.adds);
                match affordable.is_empty() {
                    true => Decision::Refused(refused),
                    false => Decision::Steps(self.steps(&affordable)),
                }
            }
        }
    }

    /// Orders the steps. Compaction of each node and the drop of the page cache come first, once each. The pools grow
    /// after that, those with the largest pages first, while memory is still in one piece.
    fn steps(&self, adds: &PagesByPool) -> Vec<Step> {
        let mut order: Vec<(&PoolKey, &u64)> = adds.iter().collect();
        order.sort_by_key(|(key, _)| (Reverse(key.size), key.node));
        let mut helps = Vec::new();
        let mut grows = Vec::new();
        for (key, add) in order {
            let help = match next_effort(self.trials.get(key).map(|trial| trial.effort)) {
                Effort::Plain => None,
                Effort::Compacted => Some(Step::Compact(key.node)),
                Effort::CacheDropped => Some(Step::DropPageCache),
            };
            helps.extend(help.filter(|help| !helps.contains(help)));
            let from = self.seen.pool(*key).map_or(0, |pool| pool.total);
            let to = self.persistent_after(*key, *add);
            grows.push(Step::Grow(ResizePool { pool: *key, from, to }));
        }
        helps.into_iter().chain(grows).collect()
    }

    /// `true` if the pool gave too few pages even with the greatest effort that the policy allows.
    fn exhausted(&self, key: PoolKey) -> bool {
        let last =
            if self.policy.drop_page_cache { Effort::CacheDropped } else { Effort::Compacted };
        self.trials.get(&key).is_some_and(|trial| trial.effort >= last)
    }

    /// Names each node that cannot give its share.
    fn shortfalls(&self, short: &[Shortfall]) -> Fault {
        let texts: Vec<String> = short.iter().map(|short| self.shortfall(short)).collect();
        let advice = match self.policy.drop_page_cache {
            true => "reboot and let vhost-agent-pools.service take the pages early",
            false => "let another node give them (moveShortfall), or allow pools.drop_page_cache",
        };
        Fault::new(Code::PagesShort, format!("{}; free memory there, {advice}", texts.join("; ")))
    }

    fn shortfall(&self, short: &Shortfall) -> String {
        let Shortfall { pool: PoolKey { size, node }, missing } = short;
        match (self.trials.get(&short.pool), self.seen.pool(short.pool)) {
            (Some(trial), Some(pool)) => format!(
                "{node} gave {} of {} wanted pages of {size} ({} are free there now): its memory is \
                 full or fragmented",
                trial.got, trial.wanted, pool.free
            ),
            _ => format!("{missing} pages of {size} are missing on {node}, which is gone"),
        }
    }
}

fn sum(pages: &PagesByPool) -> u64 {
    pages.values().fold(0, |sum, pages| sum.saturating_add(*pages))
}

#[cfg(test)]
mod property_tests;
#[cfg(test)]
#[path = "hugepages_tests.rs"]
mod tests;
