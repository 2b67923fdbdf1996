//! Growing and giving back hugepages (field notes 1 to 6).
//!
//! `grow` is called again after each round of writes, with what the kernel really did and with the
//! trials so far, until it says that the goal holds or why it cannot. Growth is wanted as *free*
//! pages: what guests have taken or been promised does not count. The kernel counts promised pages for
//! the whole machine, and lets a process that is bound to a node map pages when the machine has that
//! many unpromised ones and the node that many free ones (hugetlb_acct_memory in mm/hugetlb.c). The
//! planner counts alike: promised pages count against the pools asked about as far as the free pages
//! elsewhere do not cover them.

mod bounds;
mod giving_back;
mod placement;

use std::cmp::Reverse;
use std::collections::BTreeMap;

pub use self::bounds::floor_kib;
pub use self::giving_back::{give_back, keep};
use self::placement::fill_evenly;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::PoolPolicy;
use crate::model::pools::{PagesByPool, PoolGoal, PoolKey, PoolWant, PoolsSeen};
use crate::model::step::{ResizePool, Step};

/// How hard the kernel was asked for pages of a pool and still gave too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// Plainly.
    Plain,
    /// After compaction.
    Compacted,
    /// After the page cache was dropped.
    CacheDropped,
}

/// A pool that was asked for pages in this call and gave too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// The most that was done for it.
    pub effort: Effort,
    /// Pages wanted of it.
    pub wanted: u64,
    /// Pages it gave.
    pub got: u64,
}

/// The growths of this call that came out short, by pool.
pub type Trials = BTreeMap<PoolKey, Trial>;

/// The effort that a next try will have been, given the last one that fell short.
pub fn next_effort(last: Option<Effort>) -> Effort {
    match last {
        None => Effort::Plain,
        Some(Effort::Plain) => Effort::Compacted,
        Some(_) => Effort::CacheDropped,
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it holds.
    Holds,
    /// These steps, then look again.
    Steps(Vec<Step>),
    /// Nothing helps: the fault names the node, the pages wanted and got.
    Short(Fault),
    /// It must not be tried.
    Refused(Fault),
}

/// Whether every pool that can still give is tried, up to the floor, though not all can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnShortfall {
    /// Stop at the first pool that cannot: what was taken will be given back.
    Stop,
    /// Take what there is.
    TakeTheRest,
}

/// Plans the next steps towards `goal`.
///
/// `grown` are the pages that the agent's ledger has for this boot.
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

/// Pages that each pool should gain, and what no pool can give.
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
    /// Pages that the agent had and takes again, where it does.
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

    /// Adds what one wish lacks to `planned`; a page that is planned already counts as free.
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
                // What was moved to another node is the agent's; as long as it lies there, asking
                // the full node again would be asking in vain at every call. Other free pages there
                // are somebody else's.
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

    /// Pages of a pool that are to be taken again and are not yet.
    fn missing(&self, key: PoolKey) -> u64 {
        let pages = |of: &PagesByPool| of.get(&key).copied().unwrap_or(0);
        self.restored.map_or(0, pages).saturating_sub(pages(self.grown))
    }

    /// Persistent pages of a pool to which so many are added.
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

    /// What helps comes first, once; then the largest pages, while memory is still in one piece.
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

    /// Whether asking that pool once more is useless.
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
#[path = "hugepages_tests.rs"]
mod tests;
