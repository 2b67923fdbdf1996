//! Giving pages back: only the agent's, and none that is in use or reserved.

use std::collections::BTreeMap;

use crate::model::pools::{PagesByPool, PoolsSeen};
use crate::model::step::{ResizePool, Step};
use crate::model::units::PageSize;

/// Lowers `limit`, so that `keep` free pages of each size stay, and lowers `missing` to the number of pages by which
/// the free ones of a size fall short of `keep`.
pub fn keep(limit: &mut PagesByPool, missing: &mut PagesByPool, keep: u64, seen: &PoolsSeen) {
    let free = |size| {
        let of_size = seen.pools.iter().filter(|pool| pool.key.size == size);
        of_size.map(|pool| pool.free).sum::<u64>()
    };
    lower(limit, |size| free(size).saturating_sub(keep));
    lower(missing, |size| keep.saturating_sub(free(size)));
}

/// Lowers `pages`, so that their sum for each size is at most `most` of that size.
fn lower(pages: &mut PagesByPool, most: impl Fn(PageSize) -> u64) {
    let mut left: BTreeMap<PageSize, u64> = BTreeMap::new();
    for (key, pages) in pages {
        let left = left.entry(key.size).or_insert_with(|| most(key.size));
        *pages = (*left).min(*pages);
        *left -= *pages;
    }
}

/// Plans giving pages back: at most `limit` from each pool, never one that is in use or reserved.
///
/// The caller passes only pages of the agent's: those that a failed call took, or the ledger's.
pub fn give_back(limit: &PagesByPool, seen: &PoolsSeen) -> Vec<Step> {
    let mut spare: BTreeMap<PageSize, u64> = BTreeMap::new();
    for pool in &seen.pools {
        *spare.entry(pool.key.size).or_default() += pool.free;
    }
    for (size, spare) in &mut spare {
        *spare = spare.saturating_sub(seen.reserved(*size));
    }
    let mut steps = Vec::new();
    for (key, limit) in limit {
        let (Some(pool), Some(spare)) = (seen.pool(*key), spare.get_mut(&key.size)) else {
            continue;
        };
        // Surplus pages go by themselves; lowering the pool below its persistent pages in use would
        // only turn those into surplus.
        let give = (*limit).min(pool.free).min(*spare).min(pool.persistent());
        if give > 0 {
            *spare -= give;
            steps.push(Step::Shrink(ResizePool {
                pool: *key,
                from: pool.total,
                to: pool.total - give,
            }));
        }
    }
    steps
}
