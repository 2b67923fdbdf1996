//! Hugepage pools in sysfs, one per page size and NUMA node
//! (Documentation/admin-guide/mm/hugetlbpage.rst; field notes 2 to 4).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::facts::default_page_size;
use super::files::{HeldFile, entries, read_list, read_number, read_table_text, write_value};
use super::numa::{self, NumaFiles};
use super::{HostError, Root};
use crate::model::numa::MemoryNodes;
use crate::model::pools::{Pool, PoolKey};
use crate::model::units::{NumaNode, PageSize};

const MACHINE: &str = "/sys/kernel/mm/hugepages";

/// Files of this machine's pools. They are enumerated once: page sizes and NUMA nodes do not change while the machine
/// runs.
#[derive(Debug, Clone)]
pub struct PoolFiles {
    pools: Arc<[PoolFolder]>,
    /// `resv_hugepages` of the machine-wide pool of each page size.
    reserved: Arc<[(PageSize, HeldFile)]>,
    /// File with the list of NUMA nodes that have CPUs; `None` if there is only one node, which has all CPUs.
    cpu_nodes: Option<PathBuf>,
    numa: NumaFiles,
    cut: Cut,
}

/// Handle that interrupts a write to a pool, which lasts as long as the kernel looks for memory. The kernel stops at a
/// signal and keeps the pages that it has found (set_max_huge_pages in mm/hugetlb.c).
#[derive(Debug, Clone, Default)]
pub struct Cut {
    writer: Arc<Mutex<Option<Pthread>>>,
    /// Set once a handler for SIGUSR1 is installed.
    armed: Arc<AtomicBool>,
}

/// Registration of the thread that writes to a pool. Until it is dropped, [`Cut::now`] interrupts that thread.
struct Writing<'a>(&'a Cut);

impl Cut {
    /// Installs a handler for SIGUSR1, which would end the process otherwise. Must be called within the tokio runtime.
    ///
    /// # Errors
    /// When the handler cannot be installed.
    pub fn arm(&self) -> std::io::Result<()> {
        let _ = signal(SignalKind::user_defined1())?;
        self.armed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Interrupts the current write, if there is one; does nothing before [`Cut::arm`].
    pub fn now(&self) {
        if !self.armed.load(Ordering::Relaxed) {
            return;
        }
        // The lock is held, so that the writing thread does not end before the signal is sent.
        if let Some(thread) = *self.writer() {
            let _ = pthread_kill(thread, Signal::SIGUSR1);
        }
    }

    fn writing(&self) -> Writing<'_> {
        *self.writer() = Some(pthread_self());
        Writing(self)
    }

    fn writer(&self) -> MutexGuard<'_, Option<Pthread>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        *self.0.writer() = None;
    }
}

/// Counter files of one pool.
#[derive(Debug)]
struct PoolFolder {
    key: PoolKey,
    total: HeldFile,
    free: HeldFile,
    surplus: HeldFile,
}

impl PoolFolder {
    fn new(key: PoolKey, folder: &Path) -> PoolFolder {
        PoolFolder {
            key,
            total: HeldFile::new(folder.join("nr_hugepages")),
            free: HeldFile::new(folder.join("free_hugepages")),
            surplus: HeldFile::new(folder.join("surplus_hugepages")),
        }
    }

    fn read(&self) -> Result<Pool, HostError> {
        self.read_of(self.total.number()?)
    }

    /// Reads the pool after a write. The total is read by path, as other processes see it, and not from the open file.
    fn read_back(&self) -> Result<Pool, HostError> {
        self.read_of(read_number(self.total.path())?)
    }

    fn read_of(&self, total: u64) -> Result<Pool, HostError> {
        Ok(Pool {
            key: self.key,
            total,
            free: self.free.number()?,
            surplus: self.surplus.number()?,
        })
    }
}

impl PoolFiles {
    /// Enumerates the pools.
    ///
    /// # Errors
    /// When sysfs cannot be listed.
    pub fn find(root: &Root) -> Result<PoolFiles, HostError> {
        let machine = folders_by_size(&root.path(MACHINE))?;
        let mut pools = Vec::new();
        for (node, path) in numa::nodes(root)? {
            let found = folders_by_size(&path.join("hugepages"))?;
            let key = |size| PoolKey { size, node };
            pools.extend(found.iter().map(|(size, path)| PoolFolder::new(key(*size), path)));
        }
        let per_node = !pools.is_empty();
        if !per_node {
            // A kernel without NUMA has only the machine-wide pools.
            let key = |size| PoolKey { size, node: NumaNode(0) };
            pools.extend(machine.iter().map(|(size, path)| PoolFolder::new(key(*size), path)));
        }
        pools.sort_unstable_by_key(|pool| pool.key);
        let mut nodes = pools.iter().map(|pool| pool.key.node);
        let first = nodes.next();
        let has_many_nodes = nodes.any(|node| Some(node) != first);
        let reserved =
            |(size, path): (_, PathBuf)| (size, HeldFile::new(path.join("resv_hugepages")));
        Ok(PoolFiles {
            pools: pools.into(),
            reserved: machine.into_iter().map(reserved).collect(),
            cpu_nodes: has_many_nodes.then(|| numa::path(root, "has_cpu")),
            numa: NumaFiles::find(root)?,
            cut: Cut::default(),
        })
    }

    /// Page sizes for which this kernel has pools.
    pub fn sizes(&self) -> BTreeSet<PageSize> {
        self.pools.iter().map(|pool| pool.key.size).collect()
    }

    /// Reads all pools.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn read_all(&self) -> Result<Vec<Pool>, HostError> {
        self.pools.iter().map(PoolFolder::read).collect()
    }

    /// Reads the pools of the page sizes in `sizes`.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn read_sizes(&self, sizes: &BTreeSet<PageSize>) -> Result<Vec<Pool>, HostError> {
        let pools = self.pools.iter().filter(|pool| sizes.contains(&pool.key.size));
        pools.map(PoolFolder::read).collect()
    }

    /// Reads the pool `key`, before or after a write.
    ///
    /// # Errors
    /// When this machine has no pool `key`, or a counter cannot be read.
    pub fn read(&self, key: PoolKey) -> Result<Pool, HostError> {
        self.folder(key)?.read_back()
    }

    /// Free pages that are reserved already, for each page size in `sizes`, on the whole machine.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn reserved(
        &self,
        sizes: &BTreeSet<PageSize>,
    ) -> Result<BTreeMap<PageSize, u64>, HostError> {
        let reserved = self.reserved.iter().filter(|(size, _)| sizes.contains(size));
        reserved.map(|(size, counter)| Ok((*size, counter.number()?))).collect()
    }

    /// Sets the size of the pool `key` to `pages` persistent pages. The kernel allocates as many as it can, and does
    /// not report if that is fewer. Blocks for as long as the kernel looks for memory.
    ///
    /// # Errors
    /// When the file cannot be written, or this machine has no pool `key`.
    pub fn write(&self, key: PoolKey, pages: u64) -> Result<(), HostError> {
        let _writing = self.cut.writing();
        self.folder(key)?.total.write(&pages.to_string())
    }

    /// Handle that interrupts a running [`PoolFiles::write`].
    pub fn cut(&self) -> Cut {
        self.cut.clone()
    }

    /// Reads the list of NUMA nodes that have CPUs.
    ///
    /// # Errors
    /// When the list exists but cannot be read.
    pub fn cpu_nodes(&self) -> Result<Vec<NumaNode>, HostError> {
        match &self.cpu_nodes {
            Some(path) => Ok(read_list(path)?.into_iter().map(NumaNode).collect()),
            None => Ok(vec![self.pools.first().map_or(NumaNode(0), |pool| pool.key.node)]),
        }
    }

    /// Finds the NUMA nodes without memory.
    pub fn memory_nodes(&self) -> MemoryNodes {
        self.numa.memory(None)
    }

    fn folder(&self, key: PoolKey) -> Result<&PoolFolder, HostError> {
        self.pools.iter().find(|pool| pool.key == key).ok_or(HostError::NoPool { key })
    }
}

/// Lists the folders of pools in `folder`, with their page sizes.
fn folders_by_size(folder: &Path) -> Result<Vec<(PageSize, PathBuf)>, HostError> {
    let found = entries(folder)?.into_iter();
    Ok(found.filter_map(|(name, path)| Some((size_of(&name)?, path))).collect())
}

fn size_of(folder: &str) -> Option<PageSize> {
    let kib = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    PageSize::from_kib(kib.parse().ok()?)
}

/// Number of 2 MiB pages that the process `pid` has on each NUMA node (`numa_maps` of proc(5)); empty if the kernel
/// does not report them.
pub fn hugepages_of(root: &Root, pid: u32) -> BTreeMap<NumaNode, u64> {
    let maps = read_table_text(&root.path(format!("/proc/{pid}/numa_maps"))).unwrap_or_default();
    let mut default = None;
    let mut is_small = |line: &&str| match line.split_once(" kernelpagesize_kB=") {
        Some((_, size)) => size.split(' ').next() == Some("2048"),
        // Kernels before 4.0 do not show the size. Most pages there are of the default one.
        None if line.contains(" huge ") => {
            *default.get_or_insert_with(|| default_page_size(root)) == Some(PageSize::MIB_2)
        }
        None => false,
    };
    let mut pages = BTreeMap::new();
    for word in maps.lines().filter(|line| is_small(line)).flat_map(str::split_whitespace) {
        // `N0=256` stands for 256 pages on node 0.
        let on_node = word.strip_prefix('N').and_then(|word| word.split_once('='));
        let read =
            on_node.and_then(|(node, count)| Some((node.parse().ok()?, count.parse().ok()?)));
        if let Some((node, count)) = read {
            let _: &mut u64 =
                pages.entry(NumaNode(node)).and_modify(|it| *it += count).or_insert(count);
        }
    }
    pages
}

/// Triggers memory compaction on `node`, or on the whole machine if the kernel has no such file for the node. Blocks
/// while the compaction runs.
///
/// # Errors
/// When the file cannot be written.
pub fn compact(root: &Root, node: NumaNode) -> Result<(), HostError> {
    let near = numa::path(root, format!("{node}/compact"));
    let path = if near.exists() { near } else { root.path("/proc/sys/vm/compact_memory") };
    write_value(&path, "1")
}

/// Drops the clean page cache of the whole machine. The value 1 drops neither dentries nor inodes.
///
/// # Errors
/// When the file cannot be written.
pub fn drop_page_cache(root: &Root) -> Result<(), HostError> {
    write_value(&root.path("/proc/sys/vm/drop_caches"), "1")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pages_of_a_process_are_counted_with_and_without_their_size() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/proc/7")).unwrap();
        let counted = |line: &str| {
            let other =
                "7f0000000000 default file=/usr/lib/a\\040N9=1 mapped=3 N0=3 kernelpagesize_kB=4";
            fs::write(root.path("/proc/7/numa_maps"), format!("{other}\n{line}\n")).unwrap();
            hugepages_of(&root, 7)
                .into_iter()
                .map(|(node, pages)| (node.0, pages))
                .collect::<Vec<_>>()
        };
        // Lines as fs/proc/task_mmu.c writes them since Linux 4.0, and in 3.10.
        let mapped =
            "7f1000000000 default file=/anon_hugepage\\040(deleted) huge anon=6 dirty=6 N0=2 N1=4";
        assert_eq!(counted(&format!("{mapped} kernelpagesize_kB=2048")), [(0, 2), (1, 4)]);
        assert_eq!(counted(&format!("{mapped} kernelpagesize_kB=20480")), []);
        assert_eq!(counted(mapped), [], "the default size is unknown");
        fs::write(root.path("/proc/meminfo"), "Hugepagesize: 2048 kB\n").unwrap();
        assert_eq!(counted(mapped), [(0, 2), (1, 4)]);
        fs::write(root.path("/proc/meminfo"), "Hugepagesize: 1048576 kB\n").unwrap();
        assert_eq!(counted(mapped), []);
    }
}
