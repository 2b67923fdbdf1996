//! Pools, memory and hugetlbfs mounts. Blocking: called from blocking threads.

use crate::host::pools::PoolFiles;
use crate::host::{Root, facts, mounts};
use crate::model::fault::Fault;
use crate::model::mounts::HugetlbMount;
use crate::model::pools::PoolsSeen;
use crate::model::units::PageSize;

/// Looks at the memory of one machine.
#[derive(Debug, Clone)]
pub struct MemoryObserver {
    root: Root,
    files: PoolFiles,
}

impl MemoryObserver {
    /// Finds the pools of the machine.
    ///
    /// # Errors
    /// When sysfs cannot be listed.
    pub fn new(root: &Root) -> Result<MemoryObserver, Fault> {
        Ok(MemoryObserver { root: root.clone(), files: PoolFiles::find(root)? })
    }

    /// Everything the pool planner looks at.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn pools(&self) -> Result<PoolsSeen, Fault> {
        Ok(PoolsSeen {
            pools: self.files.read_all()?,
            reserved: self.files.reserved()?,
            cpu_nodes: self.files.cpu_nodes()?,
            memory: facts::memory(&self.root)?,
        })
    }

    /// The pools' counters alone, for who only tells of them.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn counters(&self) -> Result<PoolsSeen, Fault> {
        Ok(PoolsSeen { pools: self.files.read_all()?, ..PoolsSeen::default() })
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
