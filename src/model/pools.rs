//! Hugepage pools: what is wanted of them, what the kernel says, and which pages are the agent's.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::code::Code;
use super::fault::Finding;
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

/// Which pages of each pool exist because the agent grew them, in this boot.
///
/// Pages vanish at a reboot, so the ledger is worth nothing under another boot id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// `/proc/sys/kernel/random/boot_id` of the boot that it speaks of.
    pub boot_id: String,
    /// Whether the pages written down before this boot were taken again.
    pub restored: bool,
    /// Persistent pages grown and not given back.
    pub grown: Vec<PoolPages>,
    /// All persistent pages of those pools when they were last looked at.
    #[serde(default)]
    pub persistent: Vec<PoolPages>,
    /// Persistent pages grown that somebody else took away since, and that were neither grown again nor given up.
    #[serde(default)]
    pub lost: Vec<PoolPages>,
    /// A growth that was begun; settled when the outcome is known.
    pub intent: Option<Intent>,
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

/// A growth that is about to be written to the kernel, in persistent pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Which pool.
    pub pool: PoolKey,
    /// Persistent pages before.
    pub from: u64,
    /// Persistent pages wanted after.
    pub to: u64,
}

impl Ledger {
    /// An empty ledger for this boot.
    pub fn new(boot_id: impl Into<String>) -> Ledger {
        Ledger { boot_id: boot_id.into(), ..Ledger::default() }
    }

    /// Pages the agent grew in that pool.
    pub fn grown(&self, key: PoolKey) -> u64 {
        self.grown.iter().find(|p| p.key() == key).map_or(0, |p| p.pages)
    }

    /// All of it as a map.
    pub fn by_pool(&self) -> PagesByPool {
        pages_map(&self.grown)
    }

    /// Sets the pages of one pool that has `persistent` pages in all; zero removes the line. More pages than before make up
    /// for lost ones.
    pub fn set_grown(&mut self, key: PoolKey, pages: u64, persistent: u64) {
        let mut all = self.by_pool();
        let mut seen = pages_map(&self.persistent);
        let gained = pages.saturating_sub(self.grown(key));
        for lost in self.lost.iter_mut().filter(|lost| lost.key() == key) {
            lost.pages = lost.pages.saturating_sub(gained);
        }
        self.lost.retain(|lost| lost.pages > 0);
        all.insert(key, pages);
        seen.insert(key, persistent);
        seen.retain(|key, _| all.get(key).is_some_and(|pages| *pages > 0));
        self.grown = pages_list(&all);
        self.persistent = pages_list(&seen);
    }

    /// Sizes of the pages that it speaks of.
    pub fn sizes(&self) -> BTreeSet<PageSize> {
        let grown = self.grown.iter().map(|pages| pages.size);
        grown.chain(self.intent.map(|intent| intent.pool.size)).collect()
    }

    /// Brings the ledger in line with the kernel after a gap in which the agent did not watch.
    ///
    /// What is not surely the agent's is never given back. So a growth that was begun counts only
    /// when it is there to the page, and when somebody lowered a pool, the agent's pages are taken to
    /// be the ones that went. Returns whether anything changed.
    pub fn settle(&mut self, seen: &PoolsSeen) -> bool {
        let before = self.clone();
        let intent = self.intent.take();
        let last = pages_map(&self.persistent);
        let mut lost = pages_map(&self.lost);
        for (key, pages) in self.by_pool() {
            let there = seen.pool(key).map_or(0, Pool::persistent);
            let fewer = last.get(&key).map_or(0, |last| last.saturating_sub(there));
            let left = pages.saturating_sub(fewer).min(there);
            self.set_grown(key, left, there);
            let lost = lost.entry(key).or_default();
            *lost = lost.saturating_add(pages - left);
        }
        self.lost = pages_list(&lost);
        if let Some(intent) = intent
            && let Some(pool) = seen.pool(intent.pool)
            && pool.persistent() == intent.to
        {
            let gained = intent.to.saturating_sub(intent.from);
            self.set_grown(intent.pool, self.grown(intent.pool) + gained, pool.persistent());
        }
        *self != before
    }
}

impl Ledger {
    /// Finding of lost pages; none where none are lost.
    pub fn finding(&self) -> Option<Finding> {
        let lost = self.lost.iter().map(|lost| format!("{} of {}", lost.pages, lost.key()));
        let lost = lost.collect::<Vec<_>>().join(", ");
        let text = format!(
            "something else took away hugepages that the agent keeps ({lost}): virtual machines and targets may find too few. \
             `vhost-agent pools restore` takes them again, `vhost-agent reclaim` gives them up with all that nobody uses"
        );
        (!self.lost.is_empty()).then(|| Finding::new(Code::PagesLost, text))
    }
}

/// A map of pages as the list that goes to disk and wire; zeros are left out.
pub fn pages_list(pages: &PagesByPool) -> Vec<PoolPages> {
    pages
        .iter()
        .filter(|(_, pages)| **pages > 0)
        .map(|(key, pages)| PoolPages { size: key.size, node: key.node, pages: *pages })
        .collect()
}

/// The map of such a list.
pub fn pages_map(list: &[PoolPages]) -> PagesByPool {
    list.iter().map(|p| (p.key(), p.pages)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PoolKey = PoolKey { size: PageSize::MIB_2, node: NumaNode(0) };

    fn seen(total: u64, surplus: u64) -> PoolsSeen {
        PoolsSeen {
            pools: vec![Pool { key: KEY, total, free: 0, surplus }],
            ..PoolsSeen::default()
        }
    }

    #[test]
    fn a_growth_cut_off_by_a_crash_is_claimed_only_when_it_is_there_to_the_page() {
        for (total, claimed) in [(110, 110 - 100), (109, 0), (100, 0), (120, 0)] {
            let mut ledger = Ledger::new("b");
            ledger.intent = Some(Intent { pool: KEY, from: 100, to: 110 });
            assert!(ledger.settle(&seen(total, 0)));
            assert_eq!(ledger.grown(KEY), claimed, "total {total}");
            assert_eq!(ledger.intent, None);
        }
    }

    #[test]
    fn when_somebody_lowers_a_pool_the_agents_pages_are_the_ones_that_went() {
        let mut ledger = Ledger::new("b");
        ledger.set_grown(KEY, 50, 200);
        assert!(ledger.settle(&seen(190, 10)));
        assert_eq!(ledger.grown(KEY), 30, "20 persistent pages fewer");
        assert!(!ledger.settle(&seen(190, 10)), "nothing more to settle");
        ledger.settle(&seen(900, 0));
        assert_eq!(ledger.grown(KEY), 30, "what others add is theirs");
        ledger.settle(&seen(880, 0));
        assert_eq!(ledger.grown(KEY), 10);
        ledger.settle(&seen(0, 0));
        assert!(ledger.grown.is_empty() && ledger.persistent.is_empty());
    }

    #[test]
    fn lost_pages_are_told_until_they_are_grown_again() {
        let lost = |ledger: &Ledger| ledger.lost.iter().map(|lost| lost.pages).sum::<u64>();
        let mut ledger = Ledger::new("b");
        ledger.set_grown(KEY, 50, 200);
        assert_eq!(ledger.finding(), None);
        ledger.settle(&seen(170, 0));
        ledger.settle(&seen(170, 0));
        assert_eq!((ledger.grown(KEY), lost(&ledger)), (20, 30), "once");
        let finding = ledger.finding().unwrap();
        assert!(
            finding.code == Code::PagesLost && finding.text.contains("(30 of node0/2M)"),
            "{}",
            finding.text
        );
        ledger.settle(&seen(0, 0));
        assert_eq!((ledger.grown(KEY), lost(&ledger)), (0, 50), "and no more than it had");
        ledger.settle(&seen(900, 0));
        assert_eq!(lost(&ledger), 50, "what others add is theirs");
        ledger.set_grown(KEY, 40, 940);
        assert_eq!(lost(&ledger), 10);
        ledger.set_grown(KEY, 30, 930);
        assert_eq!(lost(&ledger), 10, "what the agent gives back is not lost");
        ledger.set_grown(KEY, 50, 950);
        assert_eq!((lost(&ledger), ledger.finding()), (0, None));
    }
}
