//! Bdev in a file or block device.
//!
//! The file is opened past the page cache (`O_DIRECT`) if the file system and the block size allow it: then
//! acknowledged data is not held in this node's memory, and many requests can be submitted to the kernel at once.
//! Otherwise it is opened through the page cache.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use vm_memory::VolatileSlice;

use super::{AlignedBuffer, Transfer};

/// Size in bytes of the file that is created for a missing ZBS volume.
pub(in crate::builtin) const IMAGE_BYTES: u64 = 1 << 30;

/// Folder with files in place of ZBS volumes.
#[derive(Debug, Clone)]
pub(in crate::builtin) struct Folder(pub(in crate::builtin) PathBuf);

impl Folder {
    /// Path of the file for the ZBS volume `name`, such as `zbs://pool/volume`: the name without its scheme, below the
    /// folder. EINVAL for a name that would lead out of the folder.
    pub(in crate::builtin) fn path(&self, name: &str) -> Result<PathBuf, Errno> {
        let name = name.split_once("://").map_or(name, |(_, rest)| rest);
        let name = name.trim_start_matches('/');
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if name.contains('\0') || !name.split('/').all(plain) {
            return Err(Errno::EINVAL);
        }
        Ok(self.0.join(name))
    }

    /// Opens the file for the ZBS volume `name`. A missing file is created, sparse and [`IMAGE_BYTES`] long.
    pub(in crate::builtin) fn open(&self, name: &str, block_size: u32) -> Result<DiskFile, Errno> {
        let path = self.path(name)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| errno(&e))?;
        }
        // The folder of the file is checked with links followed: a link could lead out.
        let inside = path.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
        let folder = std::fs::canonicalize(&self.0).map_err(|e| errno(&e))?;
        if !inside.is_some_and(|inside| inside.starts_with(&folder)) {
            return Err(Errno::EINVAL);
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        match options.open(&path) {
            Ok(file) => file.set_len(IMAGE_BYTES).map_err(|e| errno(&e))?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(errno(&e)),
        }
        DiskFile::open(&path, block_size, false)
    }
}

/// Error number of `error`; EIO if it has none.
pub(in crate::builtin) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Open file or block device.
#[derive(Debug)]
pub(in crate::builtin) struct DiskFile {
    path: PathBuf,
    file: File,
    direct: bool,
    /// Alignment in bytes of the buffers for requests past the page cache; 1 if the file is in the page cache.
    alignment: usize,
    regular: bool,
    read_only: bool,
}

impl DiskFile {
    /// Opens a file or block device.
    ///
    /// # Errors
    /// EISDIR for a folder, ENOENT for a missing file, EINVAL for any other kind of file, else the kernel's error.
    pub(in crate::builtin) fn open(
        path: &Path,
        block_size: u32,
        read_only: bool,
    ) -> Result<Self, Errno> {
        let kind = std::fs::metadata(path).map_err(|e| errno(&e))?.file_type();
        if kind.is_dir() {
            return Err(Errno::EISDIR);
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Errno::EINVAL);
        }
        let open = |flags| {
            let mut options = OpenOptions::new();
            options.read(true).write(!read_only).custom_flags(flags | libc::O_CLOEXEC);
            options.open(path).map_err(|e| errno(&e))
        };
        let direct = open(libc::O_DIRECT).ok();
        let direct = direct.and_then(|file| alignment(&file, block_size).map(|a| (file, a)));
        let (file, direct, alignment) = match direct {
            Some((file, alignment)) => (file, true, alignment),
            None => (open(0)?, false, 1),
        };
        let path = path.to_path_buf();
        Ok(Self { path, file, direct, alignment, regular: kind.is_file(), read_only })
    }

    /// `true` if `path` leads to a regular file, which has no block size of its own.
    pub(in crate::builtin) fn is_regular(path: &Path) -> Result<bool, Errno> {
        Ok(std::fs::metadata(path).map_err(|e| errno(&e))?.file_type().is_file())
    }

    pub(in crate::builtin) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::builtin) fn is_direct(&self) -> bool {
        self.direct
    }

    pub(in crate::builtin) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Current size in bytes, of a file or a block device.
    pub(in crate::builtin) fn bytes(&self) -> Result<u64, Errno> {
        (&self.file).seek(SeekFrom::End(0)).map_err(|e| errno(&e))
    }

    /// Sets the length of a regular file to `bytes`.
    pub(in crate::builtin) fn grow(&self, bytes: u64) -> Result<(), Errno> {
        self.file.set_len(bytes).map_err(|e| errno(&e))
    }

    pub(super) fn direct_fd(&self) -> Option<BorrowedFd<'_>> {
        self.direct.then(|| self.file.as_fd())
    }

    /// Alignment in bytes of the buffers for requests past the page cache; 1 if the file is in the page cache.
    pub(in crate::builtin) fn alignment(&self) -> usize {
        self.alignment
    }

    pub(super) fn transfer(&self, at: Transfer, slices: &[VolatileSlice<'_>]) -> Result<(), Errno> {
        let Transfer { write, offset: mut at } = at;
        // 1024 is IOV_MAX: the kernel takes no more buffers in one call.
        for part in slices.chunks(1024) {
            let mut left = iovecs(part);
            while !left.is_empty() {
                let done = vectored(self.file.as_fd(), write, at, &left)?;
                if done == 0 {
                    return Err(Errno::EIO);
                }
                at += done as u64;
                advance(&mut left, done);
            }
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), Errno> {
        self.file.sync_data().map_err(|e| errno(&e))
    }

    pub(super) fn zero(&self, offset: u64, length: u64, unmap: bool) -> Result<(), Errno> {
        let (Ok(at), Ok(long)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(Errno::EINVAL);
        };
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | keep;
        let first = if unmap { hole } else { zero };
        let done = fallocate(&self.file, first, at, long)
            .or_else(|_| fallocate(&self.file, if unmap { zero } else { hole }, at, long));
        match done {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::EPERM) => {
                self.write_zeroes(offset, length)
            }
            done => done,
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let part = 1 << 20;
        let buffer = AlignedBuffer::zeroed(usize::try_from(length.min(part)).unwrap_or(1 << 20))
            .ok_or(Errno::ENOMEM)?;
        let mut done = 0;
        while done < length {
            let now = part.min(length - done) as usize;
            let slice = buffer.slice().subslice(0, now).map_err(|_| Errno::EINVAL)?;
            self.transfer(Transfer { write: true, offset: offset + done }, &[slice])?;
            done += now as u64;
        }
        Ok(())
    }

    /// `true` if the file can be extended, which only a regular file can.
    pub(in crate::builtin) fn can_grow(&self) -> bool {
        self.regular
    }
}

/// Alignment in bytes that buffers of one block need for requests past the page cache to `file`. `None` when the file
/// system or the device beneath needs more than one block. Found by test reads, because not every kernel reports it.
fn alignment(file: &File, block_size: u32) -> Option<usize> {
    let buffer = AlignedBuffer::zeroed(3 * 4096)?;
    let block = block_size as usize;
    let reads = |start: usize, offset: u64| {
        let slice = buffer.slice().subslice(start, block).ok();
        slice.is_some_and(|s| vectored(file.as_fd(), false, offset, &iovecs(&[s])).is_ok())
    };
    if !reads(0, u64::from(block_size)) {
        return None;
    }
    Some(if reads(512, u64::from(block_size)) { 512 } else { 4096 })
}

/// Addresses and lengths of `slices`, in the kernel's form.
pub(in crate::builtin) fn iovecs(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let iovec = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().map(iovec).collect()
}

fn advance(left: &mut Vec<libc::iovec>, mut done: usize) {
    let whole = left.iter().take_while(|iovec| {
        let passed = done >= iovec.iov_len;
        if passed {
            done -= iovec.iov_len;
        }
        passed
    });
    let whole = whole.count();
    left.drain(..whole);
    if let Some(first) = left.first_mut() {
        first.iov_base = first.iov_base.cast::<u8>().wrapping_add(done).cast();
        first.iov_len -= done;
    }
}

fn vectored(
    file: BorrowedFd<'_>,
    write: bool,
    offset: u64,
    iovecs: &[libc::iovec],
) -> Result<usize, Errno> {
    let at = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let count = iovecs.len() as libc::c_int;
    loop {
        // SAFETY: the iovecs are made of slices that are borrowed by the caller until this returns; the
        // kernel checks the descriptor and the offset.
        #[allow(unsafe_code)]
        let done = unsafe {
            if write {
                libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count, at)
            } else {
                libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, at)
            }
        };
        match usize::try_from(done) {
            Ok(done) => return Ok(done),
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(Errno::last()),
        }
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
