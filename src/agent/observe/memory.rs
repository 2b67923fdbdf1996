//! Observation of pools, memory and hugetlbfs mounts. Blocking: called from blocking threads.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::host::facts::Meminfo;
use crate::host::pidfd::WatchedProcess;
use crate::host::pools::PoolFiles;
use crate::host::process::started;
use crate::host::{Root, facts, mounts};
use crate::model::fault::Fault;
use crate::model::mounts::HugetlbMount;
use crate::model::pools::{NodeMemory, PoolsSeen};
use crate::model::reservation::Holder;
use crate::model::units::PageSize;

/// Observer of the memory of one machine.
#[derive(Debug, Clone)]
pub struct MemoryObserver {
    root: Root,
    files: PoolFiles,
    meminfo: Arc<Meminfo>,
}

impl MemoryObserver {
    /// Finds the pools of the machine.
    ///
    /// # Errors
    /// When sysfs cannot be listed.
    pub fn new(root: &Root) -> Result<MemoryObserver, Fault> {
        Ok(MemoryObserver {
            root: root.clone(),
            files: PoolFiles::find(root)?,
            meminfo: Arc::new(Meminfo::new(root)),
        })
    }

    /// Page sizes that this kernel has pools for.
    pub fn sizes(&self) -> BTreeSet<PageSize> {
        self.files.sizes()
    }

    /// Observes the whole input of the pool planner.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn pools(&self) -> Result<PoolsSeen, Fault> {
        self.pools_of(&self.sizes(), self.memory()?)
    }

    /// Reads the counters of all pools, for reports only. Their files are held open: the call waits for
    /// nothing else of the machine.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn counters(&self) -> Result<PoolsSeen, Fault> {
        let pools = self.files.read_all()?;
        let reserved = self.files.reserved(&self.sizes())?;
        Ok(PoolsSeen { pools, reserved, ..PoolsSeen::default() })
    }

    /// Observes only the pools of these `sizes`, as [`MemoryObserver::pools`] does, and takes over `memory` from an
    /// earlier observation.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn pools_of(
        &self,
        sizes: &BTreeSet<PageSize>,
        memory: NodeMemory,
    ) -> Result<PoolsSeen, Fault> {
        Ok(PoolsSeen {
            pools: self.files.read_sizes(sizes)?,
            reserved: self.files.reserved(sizes)?,
            cpu_nodes: self.files.cpu_nodes()?,
            memory_nodes: self.files.memory_nodes(),
            memory,
        })
    }

    /// Reads the machine's memory.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn memory(&self) -> Result<NodeMemory, Fault> {
        Ok(self.meminfo.read()?)
    }

    /// Lists the hugetlbfs mounts.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn mounts(&self) -> Result<Vec<HugetlbMount>, Fault> {
        Ok(mounts::hugetlb_mounts(&self.root)?)
    }

    /// Reads the default size of hugepages; `None` if the kernel has none.
    pub fn default_size(&self) -> Option<PageSize> {
        facts::default_page_size(&self.root)
    }

    /// `true` if `path` leads to a usable hugetlbfs with pages of that size.
    pub fn is_usable(&self, path: &str, size: PageSize) -> bool {
        mounts::is_usable(&self.root, path, size)
    }

    /// Reads the time since the boot, in seconds; a suspended machine's time counts.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn since_boot(&self) -> Result<u64, Fault> {
        Ok(facts::since_boot(&self.root)?.as_secs())
    }

    /// Process that has `pid` now; `None` if there is none.
    pub fn holder(&self, pid: u32) -> Option<Holder> {
        started(&self.root, pid).map(|started| Holder { pid, started })
    }

    /// Returns when `holder` has exited. Must be called within the tokio runtime. Cancel-safe.
    pub async fn ended(&self, holder: Holder) {
        let watched = WatchedProcess::of(&self.root, holder.pid);
        if let Some(watched) = watched.filter(|_| self.holder(holder.pid) == Some(holder)) {
            watched.ended().await;
        }
    }

    /// Reads the id of this boot.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn boot_id(&self) -> Result<String, Fault> {
        Ok(facts::boot_id(&self.root)?)
    }
}
