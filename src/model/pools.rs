//! Hugepage pools: desired pages, and what the kernel reports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::numa::MemoryNodes;
use super::units::{NumaNode, PageSize};

/// Key of a pool: the hugepages of one size on one NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolKey {
    pub size: PageSize,
    pub node: NumaNode,
}

impl PoolKey {
    /// Builds the count of `pages` pages in this pool.
    pub(super) fn pages(self, pages: u64) -> PoolPages {
        PoolPages { size: self.size, node: self.node, pages }
    }
}

impl std::fmt::Display for PoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.node, self.size)
    }
}

/// Pool as the kernel reports it, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    #[serde(flatten)]
    pub key: PoolKey,
    /// `nr_hugepages`: all pages, surplus ones included.
    pub total: u64,
    /// `free_hugepages`: not handed out; some may be reserved (see [`PoolsSeen::reserved`]).
    pub free: u64,
    /// `surplus_hugepages`: pages handed out beyond the persistent ones; they return to the kernel when their user
    /// exits.
    pub surplus: u64,
}

impl Pool {
    /// Pages that stay in the pool when their user exits.
    pub fn persistent(&self) -> u64 {
        self.total.saturating_sub(self.surplus)
    }
}

/// Memory of the whole node, in KiB, from `/proc/meminfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeMemory {
    /// `MemTotal`.
    pub total_kib: u64,
    /// `MemAvailable`: available to new work without swapping.
    pub available_kib: u64,
}

/// Observation that the pool planner works on, read in one go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolsSeen {
    pub pools: Vec<Pool>,
    /// `resv_hugepages` by size: free pages that are reserved for somebody. The kernel counts them for the machine, not
    /// for each NUMA node.
    pub reserved: BTreeMap<PageSize, u64>,
    /// Nodes with CPUs: pages are spread over these, not over memory-only (CXL) nodes.
    pub cpu_nodes: Vec<NumaNode>,
    /// Nodes without memory, which have no pages either.
    pub memory_nodes: MemoryNodes,
    pub memory: NodeMemory,
}

impl PoolsSeen {
    pub fn pool(&self, key: PoolKey) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.key == key)
    }

    /// Replaces the observation of one pool by a newer one.
    pub fn replace(&mut self, newer: Pool) {
        for pool in self.pools.iter_mut().filter(|pool| pool.key == newer.key) {
            *pool = newer;
        }
    }

    /// Copy in which the pages in `aside` do not count as free.
    pub fn without(&self, aside: &PagesByPool) -> PoolsSeen {
        let mut seen = self.clone();
        for pool in &mut seen.pools {
            pool.free = pool.free.saturating_sub(aside.get(&pool.key).copied().unwrap_or(0));
        }
        seen
    }

    /// Page sizes that this kernel has pools for.
    pub fn sizes(&self) -> Vec<PageSize> {
        let mut sizes: Vec<PageSize> = self.pools.iter().map(|pool| pool.key.size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Reserved pages of the size `size`.
    pub fn reserved(&self, size: PageSize) -> u64 {
        self.reserved.get(&size).copied().unwrap_or(0)
    }
}

/// Limit of a control group for hugepages of one size (Documentation/admin-guide/cgroup-v1/hugetlb.rst and
/// Documentation/admin-guide/cgroup-v2.rst, "HugeTLB").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageLimit {
    /// Path of the file with the limit.
    pub file: String,
    pub size: PageSize,
    /// Pages that the group may have.
    pub pages: u64,
    /// Pages that the group has.
    pub used: u64,
}

impl PageLimit {
    /// Pages that the group may still take.
    pub fn left(&self) -> u64 {
        self.pages.saturating_sub(self.used)
    }
}

impl std::fmt::Display for PageLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PageLimit { file, size, pages, .. } = self;
        write!(f, "{file} allows {pages} pages of {size}, of which {} are left", self.left())
    }
}

/// NUMA nodes on which desired pages may lie.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Placement {
    /// Any node, filled up evenly.
    #[default]
    Spread,
    /// Given nodes, filled up evenly.
    Bound(Vec<NumaNode>),
}

/// Desired pages: at least `pages` free ones of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolWant {
    pub size: PageSize,
    /// Pages that are to be free, reserved ones not counted as free.
    pub pages: u64,
    pub placement: Placement,
    /// Set if pages that one NUMA node cannot provide may be taken from another.
    pub move_shortfall: bool,
}

pub type PagesByPool = BTreeMap<PoolKey, u64>;

/// Goal of a request to the pool owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolGoal {
    /// Free pages, as many as each entry says.
    Free(Vec<PoolWant>),
    /// Pages that the agent is to have grown, free or in use: for a restore after a reboot or a loss.
    Grown(PagesByPool),
}

/// Count of pages in one pool, as it is written to disk and to the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolPages {
    pub size: PageSize,
    pub node: NumaNode,
    pub pages: u64,
}

impl PoolPages {
    pub fn key(&self) -> PoolKey {
        PoolKey { size: self.size, node: self.node }
    }
}

/// Converts `pages` to a list for disk and wire, without pools of zero pages.
pub fn pages_list(pages: &PagesByPool) -> Vec<PoolPages> {
    pages.iter().filter(|(_, pages)| **pages > 0).map(|(key, pages)| key.pages(*pages)).collect()
}

/// Converts a list of [`pages_list`] back to a map.
pub fn pages_map(list: &[PoolPages]) -> PagesByPool {
    list.iter().map(|p| (p.key(), p.pages)).collect()
}
