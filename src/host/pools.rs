//! Hugepage pools in sysfs, one per page size and NUMA node
//! (Documentation/admin-guide/mm/hugetlbpage.rst; field notes 2 to 4).

use std::path::PathBuf;

use super::files::{entries, read_list, read_number, write_value};
use super::{HostError, Root};
use crate::model::pools::{Pool, PoolKey};
use crate::model::units::{NumaNode, PageSize};

const NODES: &str = "/sys/devices/system/node";
const MACHINE: &str = "/sys/kernel/mm/hugepages";

/// The pools of this machine, found once: page sizes and NUMA nodes do not come and go while it runs.
#[derive(Debug, Clone)]
pub struct PoolFiles {
    root: Root,
    keys: Vec<PoolKey>,
    sizes: Vec<PageSize>,
    /// Whether the kernel has a knob for each node; without NUMA there is only the machine's.
    per_node: bool,
}

impl PoolFiles {
    /// Looks which pools there are.
    ///
    /// # Errors
    /// When sysfs cannot be listed.
    pub fn find(root: &Root) -> Result<PoolFiles, HostError> {
        let sizes: Vec<PageSize> =
            entries(&root.path(MACHINE))?.iter().filter_map(|(name, _)| size_of(name)).collect();
        let mut keys = Vec::new();
        for (name, path) in entries(&root.path(NODES))? {
            let Some(node) = name.strip_prefix("node").and_then(|n| n.parse().ok()) else {
                continue;
            };
            let found = entries(&path.join("hugepages"))?;
            let sizes = found.iter().filter_map(|(name, _)| size_of(name));
            keys.extend(sizes.map(|size| PoolKey { size, node: NumaNode(node) }));
        }
        let per_node = !keys.is_empty();
        if !per_node {
            keys.extend(sizes.iter().map(|size| PoolKey { size: *size, node: NumaNode(0) }));
        }
        keys.sort_unstable();
        Ok(PoolFiles { root: root.clone(), keys, sizes, per_node })
    }

    /// Each pool's key.
    pub fn keys(&self) -> &[PoolKey] {
        &self.keys
    }

    /// Page sizes that the machine has pools for.
    pub fn sizes(&self) -> &[PageSize] {
        &self.sizes
    }

    /// Reads one pool.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn read(&self, key: PoolKey) -> Result<Pool, HostError> {
        let folder = self.folder(key);
        Ok(Pool {
            key,
            total: read_number(&folder.join("nr_hugepages"))?,
            free: read_number(&folder.join("free_hugepages"))?,
            surplus: read_number(&folder.join("surplus_hugepages"))?,
        })
    }

    /// Free pages of that size which are promised to somebody, on the whole machine.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn reserved(&self, size: PageSize) -> Result<u64, HostError> {
        let folder = format!("{MACHINE}/hugepages-{}kB/resv_hugepages", size.kib());
        read_number(&self.root.path(folder))
    }

    /// Asks the kernel for `pages` persistent pages; it takes what it can get and does not say so.
    /// Blocks for as long as the kernel looks for memory.
    ///
    /// # Errors
    /// When the knob cannot be written.
    pub fn write(&self, key: PoolKey, pages: u64) -> Result<(), HostError> {
        write_value(&self.folder(key).join("nr_hugepages"), &pages.to_string())
    }

    /// Nodes with CPUs.
    ///
    /// # Errors
    /// When the list is there but cannot be read.
    pub fn cpu_nodes(&self) -> Result<Vec<NumaNode>, HostError> {
        if !self.per_node {
            return Ok(vec![NumaNode(0)]);
        }
        let path = self.root.path(format!("{NODES}/has_cpu"));
        Ok(read_list(&path)?.into_iter().map(NumaNode).collect())
    }

    fn folder(&self, key: PoolKey) -> PathBuf {
        let size = key.size.kib();
        self.root.path(match self.per_node {
            true => format!("{NODES}/{}/hugepages/hugepages-{size}kB", key.node),
            false => format!("{MACHINE}/hugepages-{size}kB"),
        })
    }
}

fn size_of(folder: &str) -> Option<PageSize> {
    let kib = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    PageSize::from_kib(kib.parse().ok()?)
}

/// Has the kernel gather free memory on one node; on the whole machine where it has no knob for
/// nodes. Blocks while it works.
///
/// # Errors
/// When the knob cannot be written.
pub fn compact(root: &Root, node: NumaNode) -> Result<(), HostError> {
    let near = root.path(format!("{NODES}/{node}/compact"));
    let path = if near.exists() { near } else { root.path("/proc/sys/vm/compact_memory") };
    write_value(&path, "1")
}

/// Drops the clean page cache of the whole machine (1 = page cache only, not dentries and inodes).
///
/// # Errors
/// When the knob cannot be written.
pub fn drop_page_cache(root: &Root) -> Result<(), HostError> {
    write_value(&root.path("/proc/sys/vm/drop_caches"), "1")
}
