//! Block devices: the storage behind a controller's disk.
//!
//! The thread that owns the target and the workers that serve a VM share a [`BuiltinBdev`]. Its size can change during
//! that, and it can be deleted: from then on each request fails.

mod buffer;
mod file;
mod memory;
mod registry;
mod stats;

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use uuid::Uuid;
use vm_memory::VolatileSlice;

pub(super) use buffer::AlignedBuffer;
pub(super) use file::{DiskFile, Folder, errno, iovecs};
pub(super) use memory::MemoryDisk;
pub(super) use registry::Bdevs;
pub(super) use stats::{OperationKind, Stats};

/// Direction and start of a transfer between a disk and memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    /// `true` for a write to the disk.
    pub(super) write: bool,
    /// Start on the disk, in bytes.
    pub(super) offset: u64,
}

/// Storage of a bdev.
#[derive(Debug)]
pub(super) enum BdevBacking {
    /// Memory of this process, lost when the process exits.
    Malloc(MemoryDisk),
    /// File or block device.
    Aio(DiskFile),
    /// File that stands in for a ZBS volume.
    Zbs(DiskFile),
    /// No storage: writes are discarded, reads leave the buffer as it is.
    Null,
}

#[derive(Debug)]
pub(super) struct BuiltinBdev {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    pub(super) block_size: u32,
    pub(super) backing: BdevBacking,
    pub(super) stats: Stats,
    blocks: AtomicU64,
    removed: AtomicBool,
    in_use: AtomicBool,
}

impl BuiltinBdev {
    pub(super) fn new(
        name: String,
        uuid: Option<Uuid>,
        block_size: u32,
        blocks: u64,
        backing: BdevBacking,
    ) -> Self {
        Self {
            name,
            uuid: uuid.unwrap_or_else(Uuid::new_v4),
            block_size,
            backing,
            stats: Stats::default(),
            blocks: AtomicU64::new(blocks),
            removed: AtomicBool::new(false),
            in_use: AtomicBool::new(false),
        }
    }

    /// File of an AIO or ZBS bdev; `None` for the others.
    pub(super) fn file(&self) -> Option<&DiskFile> {
        match &self.backing {
            BdevBacking::Aio(file) | BdevBacking::Zbs(file) => Some(file),
            BdevBacking::Malloc(_) | BdevBacking::Null => None,
        }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.blocks() * u64::from(self.block_size)
    }

    pub(super) fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Release);
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(super) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// Claims the disk for one VM; `false` if a VM has it already. Two VMs that write to one disk destroy its data.
    pub(super) fn take(&self) -> bool {
        !self.in_use.swap(true, Ordering::AcqRel)
    }

    pub(super) fn give_back(&self) {
        self.in_use.store(false, Ordering::Release);
    }

    /// Copies between `slices` and the disk from `at.offset` on: to the disk if `at.write` is set. Blocks.
    ///
    /// # Errors
    /// The kernel's error on the file.
    pub(super) fn transfer(&self, at: Transfer, slices: &[VolatileSlice<'_>]) -> Result<(), Errno> {
        match &self.backing {
            BdevBacking::Malloc(memory) => memory.transfer(at, slices),
            BdevBacking::Aio(file) | BdevBacking::Zbs(file) => file.transfer(at, slices),
            BdevBacking::Null => Ok(()),
        }
    }

    /// Flushes written data to the medium. Does nothing without a file.
    ///
    /// # Errors
    /// The kernel's error on the file.
    pub(super) fn flush(&self) -> Result<(), Errno> {
        self.file().map_or(Ok(()), DiskFile::flush)
    }

    /// Makes `length` bytes from `offset` on read as zeroes; frees their space if `unmap` is set and the storage can.
    ///
    /// # Errors
    /// The kernel's error on the file.
    pub(super) fn zero(&self, offset: u64, length: u64, unmap: bool) -> Result<(), Errno> {
        match &self.backing {
            BdevBacking::Malloc(memory) => memory.zero(offset, length),
            BdevBacking::Aio(file) | BdevBacking::Zbs(file) => file.zero(offset, length, unmap),
            BdevBacking::Null => Ok(()),
        }
    }

    /// Alignment in bytes of the buffers for requests past the page cache; `None` if there is no such file.
    pub(super) fn direct_alignment(&self) -> Option<usize> {
        self.file().filter(|file| file.is_direct()).map(DiskFile::alignment)
    }

    /// Descriptor for asynchronous requests; `None` unless the file is opened past the page cache. The kernel would
    /// complete requests to any other file before the submission returns.
    pub(super) fn direct_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file().and_then(DiskFile::direct_fd)
    }
}

/// `true` if a disk can have blocks of `size` bytes.
pub(super) fn is_block_size(size: u64) -> bool {
    matches!(size, 512 | 1024 | 2048 | 4096)
}
