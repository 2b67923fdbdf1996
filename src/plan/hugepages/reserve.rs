//! Shares of reserved pages: from which pools the pages of a reservation, of the reserve for arrivals, and of a target
//! come.

use std::cmp::Reverse;

use super::{Round, Trials, fill_evenly};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::PoolPolicy;
use crate::model::pools::{
    PagesByPool, Placement, PoolKey, PoolPages, PoolWant, PoolsSeen, pages_list,
};
use crate::model::units::PageSize;

/// Chooses the pools of the pages in `want` among the free ones of `seen`: those with most free pages first.
///
/// # Errors
/// If too few are free, or `want` names a pool that there is not.
pub fn share_out(want: &PoolWant, seen: &PoolsSeen) -> Result<PagesByPool, Fault> {
    let shares = free_share(want, seen)?;
    if shares.values().sum::<u64>() == want.pages {
        return Ok(shares);
    }
    let text = format!(
        "the {} pages of {} were taken by others while they were reserved: call again",
        want.pages, want.size
    );
    Err(Fault::new(Code::PoolsContended, text))
}

/// Pools of the pages in `want`, as [`share_out`] chooses them, of which only so many are taken as are free.
///
/// # Errors
/// If `want` names a pool that there is not.
pub fn free_share(want: &PoolWant, seen: &PoolsSeen) -> Result<PagesByPool, Fault> {
    let candidates = with_round(seen, |round| round.candidates(want))?;
    Ok(take_most_free(want.pages, &candidates, seen))
}

/// Pools from which a target takes `pages` of 2 MiB when it comes back, as far as they are free.
pub fn taken_by_target(pages: u64, seen: &PoolsSeen) -> PagesByPool {
    let pools = with_round(seen, |round| round.pools_of(PageSize::MIB_2));
    take_most_free(pages, &pools, seen)
}

/// Even shares of the reserve for arrivals on the NUMA nodes with CPUs.
pub fn arrival_shares(policy: &PoolPolicy, seen: &PoolsSeen) -> PagesByPool {
    let want = PoolWant {
        size: PageSize::MIB_2,
        pages: policy.arrival_reserve,
        placement: Placement::Spread,
        move_shortfall: false,
    };
    if want.pages == 0 {
        return PagesByPool::new();
    }
    let pools = with_round(seen, |round| round.candidates(&want)).unwrap_or_default();
    fill_evenly(&pools.into_iter().map(|key| (key, 0)).collect(), want.pages)
}

/// Requests that have the pages `shares` free, each in its pool.
pub fn wants_of(shares: &PagesByPool) -> Vec<PoolWant> {
    let want = |part: &PoolPages| PoolWant {
        size: part.size,
        pages: part.pages,
        placement: Placement::Bound(vec![part.node]),
        move_shortfall: false,
    };
    pages_list(shares).iter().map(want).collect()
}

fn take_most_free(pages: u64, from: &[PoolKey], seen: &PoolsSeen) -> PagesByPool {
    let free = |key: &PoolKey| seen.pool(*key).map_or(0, |pool| pool.free);
    let mut pools = from.to_vec();
    pools.sort_by_key(|key| (Reverse(free(key)), *key));
    let (mut left, mut shares) = (pages, PagesByPool::new());
    for key in pools {
        let share = free(&key).min(left);
        left -= share;
        if share > 0 {
            shares.insert(key, share);
        }
    }
    shares
}

fn with_round<T>(seen: &PoolsSeen, read: impl FnOnce(&Round<'_>) -> T) -> T {
    let (grown, trials) = (PagesByPool::new(), Trials::new());
    let policy = PoolPolicy::default();
    let round = Round { seen, grown: &grown, policy: &policy, trials: &trials, restored: None };
    read(&round)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pools::Pool;
    use crate::model::units::NumaNode;

    fn key(node: u32) -> PoolKey {
        PoolKey { size: PageSize::MIB_2, node: NumaNode(node) }
    }

    fn seen(free: &[u64]) -> PoolsSeen {
        let pool = |(node, free): (usize, &u64)| {
            let key = key(u32::try_from(node).unwrap());
            Pool { key, total: *free, free: *free, surplus: 0 }
        };
        let cpu_nodes = (0..free.len()).map(|node| NumaNode(u32::try_from(node).unwrap()));
        PoolsSeen {
            pools: free.iter().enumerate().map(pool).collect(),
            cpu_nodes: cpu_nodes.collect(),
            ..PoolsSeen::default()
        }
    }

    fn want(pages: u64, placement: Placement) -> PoolWant {
        PoolWant { size: PageSize::MIB_2, pages, placement, move_shortfall: false }
    }

    #[test]
    fn shares_come_from_the_pools_with_most_free_pages_or_from_the_named_one() {
        let shares = share_out(&want(12, Placement::Spread), &seen(&[5, 10, 1])).unwrap();
        assert_eq!(shares, PagesByPool::from([(key(0), 2), (key(1), 10)]));
        let bound = Placement::Bound(vec![NumaNode(0)]);
        let shares = share_out(&want(5, bound.clone()), &seen(&[5, 10])).unwrap();
        assert_eq!(shares, PagesByPool::from([(key(0), 5)]));
        let fault = share_out(&want(6, bound), &seen(&[5, 10])).unwrap_err();
        assert_eq!(fault.code, Code::PoolsContended);
    }

    #[test]
    fn reserve_for_arrivals_is_even() {
        let policy = PoolPolicy { arrival_reserve: 5, ..PoolPolicy::default() };
        let shares = arrival_shares(&policy, &seen(&[0, 9]));
        assert_eq!(shares, PagesByPool::from([(key(0), 3), (key(1), 2)]));
        assert!(arrival_shares(&PoolPolicy::default(), &seen(&[1])).is_empty());
    }
}
