//! Pools, memory and hugetlbfs mounts. Blocking: called from blocking threads.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::host::facts::Meminfo;
use crate::host::pools::PoolFiles;
use crate::host::{Root, facts, mounts};
use crate::model::fault::Fault;
use crate::model::mounts::HugetlbMount;
use crate::model::pools::{Memory, PoolsSeen};
use crate::model::units::PageSize;

/// Looks at the memory of one machine.
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

    /// Everything the pool planner looks at.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn pools(&self) -> Result<PoolsSeen, Fault> {
        self.pools_of(&self.sizes(), self.memory()?)
    }

    /// The counters of all pools, for who only tells of them. Their files are held open: nothing else of
    /// the machine is waited for.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn counters(&self) -> Result<PoolsSeen, Fault> {
        let pools = self.files.read_all()?;
        let reserved = self.files.reserved(&self.sizes())?;
        Ok(PoolsSeen { pools, reserved, ..PoolsSeen::default() })
    }

    /// What [`MemoryObserver::pools`] tells, of the pools of these sizes alone and with what was seen of the
    /// memory already.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn pools_of(&self, sizes: &BTreeSet<PageSize>, memory: Memory) -> Result<PoolsSeen, Fault> {
        Ok(PoolsSeen {
            pools: self.files.read_sizes(sizes)?,
            reserved: self.files.reserved(sizes)?,
            cpu_nodes: self.files.cpu_nodes()?,
            memory,
        })
    }

    /// The machine's memory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn memory(&self) -> Result<Memory, Fault> {
        Ok(self.meminfo.read()?)
    }

    /// All hugetlbfs mounts.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn mounts(&self) -> Result<Vec<HugetlbMount>, Fault> {
        Ok(mounts::hugetlb_mounts(&self.root)?)
    }

    /// Whether `path` leads to a hugetlbfs with such pages that can be used.
    pub fn is_usable(&self, path: &str, size: PageSize) -> bool {
        mounts::is_usable(&self.root, path, size)
    }

    /// The id of this boot.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn boot_id(&self) -> Result<String, Fault> {
        Ok(facts::boot_id(&self.root)?)
    }
}
