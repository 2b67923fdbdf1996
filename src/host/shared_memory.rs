//! Memory shared with a target by a file descriptor, as QEMU shares a guest's memory.
//!
//! A memfd (memfd_create(2)) has no path that could be left behind, and its pages return to the pool when the last
//! process that maps them exits. Everything is allocated at the start: a lack of pages is reported here, not by a
//! SIGBUS later.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::HostError;

/// Kind of pages that back shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Pages of the 2 MiB hugepage pool; no hugetlbfs need be mounted.
    Huge2M,
    Ordinary,
}

/// Memory mapped in this process, which any process that receives the descriptor can map.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: MmapRegion<()>,
    file: File,
}

impl SharedMemory {
    /// Allocates `bytes` bytes, which must be a multiple of the page size.
    ///
    /// # Errors
    /// [`HostError::NoPages`] when too few pages are free, or the kernel has no such pages.
    pub fn take(pages: Pages, bytes: usize) -> Result<SharedMemory, HostError> {
        SharedMemory::taken(pages, bytes).map_err(|source| HostError::NoPages {
            what: match pages {
                Pages::Huge2M => "2 MiB hugepages",
                Pages::Ordinary => "memory",
            },
            bytes,
            source,
        })
    }

    fn taken(pages: Pages, bytes: usize) -> io::Result<SharedMemory> {
        let huge = match pages {
            Pages::Huge2M => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
            Pages::Ordinary => MFdFlags::empty(),
        };
        let file = File::from(memfd_create(c"vhost-agent-probe", MFdFlags::MFD_CLOEXEC | huge)?);
        file.set_len(bytes as u64)?;
        // Without MAP_NORESERVE, the crate's default, the mapping fails when the pool has too few pages.
        let mapping = MmapRegionBuilder::new(bytes)
            .with_file_offset(FileOffset::new(file.try_clone()?, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .build()
            .map_err(|e| match e {
                vm_memory::mmap::MmapRegionError::Mmap(e) => e,
                other => io::Error::other(other),
            })?;
        // A page that is reserved may still be refused, by a cgroup's limit. `fallocate` finds that out now, not when
        // the page is touched.
        let length = i64::try_from(bytes).map_err(io::Error::other)?;
        fallocate(&file, FallocateFlags::empty(), 0, length)?;
        Ok(SharedMemory { mapping, file })
    }

    pub fn slice(&self) -> VolatileSlice<'_> {
        self.mapping.as_volatile_slice()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.mapping.size() as u64
    }

    /// Address of the memory in this process, by which vhost-user messages refer to it.
    pub fn address(&self) -> u64 {
        self.mapping.as_ptr() as u64
    }

    /// Descriptor of the memory, open until this value is dropped.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_holds_what_is_written_and_a_second_mapping_sees_it() {
        let memory = SharedMemory::take(Pages::Ordinary, 2 << 20).unwrap();
        memory.slice().write_slice(b"pattern", 4096).unwrap();
        let mut seen = [0; 7];
        std::os::unix::fs::FileExt::read_exact_at(&memory.file, &mut seen, 4096).unwrap();
        assert_eq!((&seen, memory.bytes()), (b"pattern", 2 << 20));
    }

    #[test]
    fn missing_pages_are_reported_at_allocation() {
        let refused = SharedMemory::take(Pages::Huge2M, 1 << 40).unwrap_err();
        let text = crate::model::fault::chain(&refused);
        assert!(text.contains("2 MiB hugepages") && text.contains("vhost-agent prepare"), "{text}");
    }
}
