//! Hugepage pools: what is wanted of them, and what the kernel says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::units::{NumaNode, PageSize};

/// One pool: the hugepages of one size on one NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolKey {
    /// Size of its pages.
    pub size: PageSize,
    /// Where its memory is.
    pub node: NumaNode,
}

impl PoolKey {
    /// So many pages of that pool.
    pub(super) fn pages(self, pages: u64) -> PoolPages {
        PoolPages { size: self.size, node: self.node, pages }
    }
}

impl std::fmt::Display for PoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.node, self.size)
    }
}

/// What the kernel says of one pool, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Which pool.
    #[serde(flatten)]
    pub key: PoolKey,
    /// `nr_hugepages`: all pages, surplus ones with them.
    pub total: u64,
    /// `free_hugepages`: not handed out; some may be promised (see [`PoolsSeen::reserved`]).
    pub free: u64,
    /// `surplus_hugepages`: handed out beyond the pool, back to the kernel when their user ends.
    pub surplus: u64,
}

impl Pool {
    /// Pages that stay in the pool when their user ends.
    pub fn persistent(&self) -> u64 {
        self.total.saturating_sub(self.surplus)
    }
}

/// The memory of the whole node, in KiB, as `/proc/meminfo` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// `MemTotal`.
    pub total_kib: u64,
    /// `MemAvailable`: what could be given to new work without swapping.
    pub available_kib: u64,
}

/// Everything the pool planner looks at, read in one go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolsSeen {
    /// Each pool that the kernel has.
    pub pools: Vec<Pool>,
    /// `resv_hugepages` by size: free pages that are promised to somebody. The kernel counts them
    /// for the machine, not for each NUMA node.
    pub reserved: BTreeMap<PageSize, u64>,
    /// Nodes with CPUs: pages are spread over these, not over memory-only (CXL) nodes.
    pub cpu_nodes: Vec<NumaNode>,
    /// The machine's memory.
    pub memory: Memory,
}

impl PoolsSeen {
    /// The pool of that key.
    pub fn pool(&self, key: PoolKey) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.key == key)
    }

    /// Puts a newer look at one pool in the place of the older one.
    pub fn replace(&mut self, newer: Pool) {
        for pool in self.pools.iter_mut().filter(|pool| pool.key == newer.key) {
            *pool = newer;
        }
    }

    /// Page sizes that this kernel has pools for.
    pub fn sizes(&self) -> Vec<PageSize> {
        let mut sizes: Vec<PageSize> = self.pools.iter().map(|pool| pool.key.size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Promised pages of that size.
    pub fn reserved(&self, size: PageSize) -> u64 {
        self.reserved.get(&size).copied().unwrap_or(0)
    }
}

/// Where wanted pages may lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Placement {
    /// Anywhere, filled up evenly.
    #[default]
    Spread,
    /// On these nodes, filled up evenly over them.
    Bound(Vec<NumaNode>),
}

/// A wish: at least `pages` free pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolWant {
    /// Page size.
    pub size: PageSize,
    /// Pages that are to be free, promised ones not counted as free.
    pub pages: u64,
    /// On which nodes.
    pub placement: Placement,
    /// Whether another node may give what one cannot.
    pub move_shortfall: bool,
}

/// Pages by pool.
pub type PagesByPool = BTreeMap<PoolKey, u64>;

/// What the pool owner is asked to bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolGoal {
    /// These many free pages.
    Free(Vec<PoolWant>),
    /// These many pages grown by the agent, whoever uses them now: what a reboot took away.
    Grown(PagesByPool),
}

/// A count of pages in one pool, as it is written to disk and to the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolPages {
    /// Page size.
    pub size: PageSize,
    /// NUMA node.
    pub node: NumaNode,
    /// How many.
    pub pages: u64,
}

impl PoolPages {
    /// Key of their pool.
    pub fn key(&self) -> PoolKey {
        PoolKey { size: self.size, node: self.node }
    }
}

/// A map of pages as the list that goes to disk and wire; zeros are left out.
pub fn pages_list(pages: &PagesByPool) -> Vec<PoolPages> {
    pages.iter().filter(|(_, pages)| **pages > 0).map(|(key, pages)| key.pages(*pages)).collect()
}

/// The map of such a list.
pub fn pages_map(list: &[PoolPages]) -> PagesByPool {
    list.iter().map(|p| (p.key(), p.pages)).collect()
}
