//! Pools that may give pages, and the number of pages from each.

use super::Round;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::pools::{PagesByPool, Placement, PoolKey, PoolWant};
use crate::model::units::{NumaNode, PageSize};

impl Round<'_> {
    pub(super) fn candidates(&self, want: &PoolWant) -> Result<Vec<PoolKey>, Fault> {
        let of_size = self.pools_of(want.size);
        if of_size.is_empty() {
            let sizes: Vec<String> = self.seen.sizes().iter().map(PageSize::to_string).collect();
            return Err(Fault::new(
                Code::PageSizeUnsupported,
                format!(
                    "this kernel has no pool of {} pages (it has: {}); for 1G pages an x86 CPU must have \
                     the flag pdpe1gb, and kernels with base pages of 16 or 64 KiB have other sizes",
                    want.size,
                    if sizes.is_empty() { "none".to_string() } else { sizes.join(", ") }
                ),
            ));
        }
        match &want.placement {
            Placement::Spread => {
                let nodes = self.seen.memory_nodes.beside_all(self.seen.cpu_nodes.iter().copied());
                let near: Vec<PoolKey> =
                    of_size.iter().filter(|key| nodes.contains(&key.node)).copied().collect();
                Ok(if near.is_empty() { of_size } else { near })
            }
            // Pages for a node without memory lie on the nearest nodes that have some.
            Placement::Bound(nodes) => {
                let nodes = self.seen.memory_nodes.beside_all(nodes.iter().copied());
                nodes.into_iter().map(|node| self.bound_pool(want.size, node, &of_size)).collect()
            }
        }
    }

    fn bound_pool(
        &self,
        size: PageSize,
        node: NumaNode,
        there: &[PoolKey],
    ) -> Result<PoolKey, Fault> {
        there.iter().find(|key| key.node == node).copied().ok_or_else(|| {
            let nodes: Vec<String> = there.iter().map(|key| key.node.to_string()).collect();
            let text = format!(
                "no pool of {size} pages on {node}; this machine has: {}",
                nodes.join(", ")
            );
            Fault::new(Code::NoSuchNode, text)
        })
    }

    /// Pools of the pages of `size`. Since Linux 6.1 nodes without memory have pools too, which never get a page.
    pub(super) fn pools_of(&self, size: PageSize) -> Vec<PoolKey> {
        let keys = self.seen.pools.iter().map(|pool| pool.key);
        keys.filter(|key| key.size == size && !self.seen.memory_nodes.lacks(key.node)).collect()
    }

    pub(super) fn others(&self, size: PageSize, candidates: &[PoolKey]) -> Vec<PoolKey> {
        self.pools_of(size).into_iter().filter(|key| !candidates.contains(key)).collect()
    }
}

/// Adds `missing` pages to the pools with the lowest levels first, so that the levels come out as
/// even as they can without taking anything away. The shares sum up to `missing`.
pub(super) fn fill_evenly(levels: &PagesByPool, missing: u64) -> PagesByPool {
    let mut order: Vec<(u64, PoolKey)> = levels.iter().map(|(key, level)| (*level, *key)).collect();
    order.sort_unstable();
    // The common level: raise the k lowest pools to it, with the largest k that missing pays for.
    let mut sum: u128 = 0;
    let mut filled = 0;
    for (level, _) in &order {
        if u128::from(*level) * (filled as u128) > sum + u128::from(missing) {
            break;
        }
        sum += u128::from(*level);
        filled += 1;
    }
    let goal = sum + u128::from(missing);
    let count = filled.max(1) as u128;
    let (level, odd) = (goal / count, goal % count);
    order
        .iter()
        .take(filled)
        .enumerate()
        .map(|(i, (before, key))| {
            let after = level + u128::from((i as u128) < odd);
            (*key, u64::try_from(after.saturating_sub(u128::from(*before))).unwrap_or(u64::MAX))
        })
        .filter(|(_, add)| *add > 0)
        .collect()
}
