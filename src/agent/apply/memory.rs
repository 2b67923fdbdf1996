//! Steps on pools and mounts. Blocking: called from a blocking thread.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::runtime::Handle;

use super::cancel::CancelHandle;
use crate::host::Root;
use crate::host::mounts::{self, NewMount};
use crate::host::pools::{PoolFiles, compact, drop_page_cache};
use crate::host::systemd::Systemd;
use crate::model::fault::Fault;
use crate::model::policy::MountPolicy;
use crate::model::pools::{Pool, PoolKey};
use crate::model::units::{NumaNode, PageSize};

/// Applier of steps on the memory of one machine.
#[derive(Debug, Clone)]
pub struct MemoryApplier {
    root: Root,
    files: PoolFiles,
    mount: MountPolicy,
    /// Set where systemd is PID 1; systemd then makes the mounts.
    systemd: Option<Arc<Systemd>>,
}

/// Pool before and after a write, both read from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    pub before: Pool,
    pub after: Pool,
}

impl Resized {
    /// Persistent pages gained.
    pub fn gained(&self) -> u64 {
        self.after.persistent().saturating_sub(self.before.persistent())
    }

    /// Persistent pages given back.
    pub fn lost(&self) -> u64 {
        self.before.persistent().saturating_sub(self.after.persistent())
    }
}

impl MemoryApplier {
    /// Finds the pools of the machine.
    ///
    /// # Errors
    /// When sysfs cannot be listed.
    pub fn new(root: &Root, mount: MountPolicy) -> Result<MemoryApplier, Fault> {
        let files = PoolFiles::find(root)?;
        Ok(MemoryApplier { root: root.clone(), files, mount, systemd: None })
    }

    /// Sets the systemd that makes the mounts; with `None` the agent makes them itself.
    pub fn with_systemd(self, systemd: Option<Arc<Systemd>>) -> MemoryApplier {
        MemoryApplier { systemd, ..self }
    }

    /// Makes a handle that cancels the current growth and, by `stopping`, all further growth.
    pub fn cancel_handle(&self, stopping: Arc<AtomicBool>) -> CancelHandle {
        CancelHandle::new(stopping, self.files.cut())
    }

    /// Reads one pool.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn pool(&self, key: PoolKey) -> Result<Pool, Fault> {
        Ok(self.files.read(key)?)
    }

    /// Sets the pool's persistent pages and reads back the kernel's result. Surplus pages count as
    /// persistent ones when a pool is raised: the kernel converts them first.
    ///
    /// # Errors
    /// When the knob cannot be written or a counter cannot be read.
    pub fn resize(&self, before: Pool, persistent: u64) -> Result<Resized, Fault> {
        self.files.write(before.key, persistent)?;
        Ok(Resized { before, after: self.files.read(before.key)? })
    }

    /// Has the kernel compact free memory on a node.
    ///
    /// # Errors
    /// When the knob cannot be written.
    pub fn compact(&self, node: NumaNode) -> Result<(), Fault> {
        Ok(compact(&self.root, node)?)
    }

    /// Drops the page cache.
    ///
    /// # Errors
    /// When the knob cannot be written.
    pub fn drop_page_cache(&self) -> Result<(), Fault> {
        Ok(drop_page_cache(&self.root)?)
    }

    /// Mounts a hugetlbfs. With systemd, call on a blocking thread of the runtime.
    ///
    /// # Errors
    /// When the mount cannot be made, or is not as requested.
    pub fn mount(&self, path: &str, size: PageSize) -> Result<(), Fault> {
        let owner = (self.mount.uid, self.mount.gid);
        let new = NewMount { at: path, size, owner, mode: self.mount.mode };
        let mounted = match &self.systemd {
            Some(systemd) => {
                Handle::current().block_on(mounts::mount_by_systemd(systemd, &self.root, new))
            }
            None => mounts::mount_hugetlbfs(&self.root, new),
        };
        Ok(mounted?)
    }
}
