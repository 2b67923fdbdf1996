//! Log of dirty pages: a bitmap shared with the frontend, in which each write to the guest's memory is marked while the
//! guest is being migrated.
//!
//! A write is marked after it is done: a page that is copied between the two is then copied once more. Layout and order
//! are those of the vhost-user specification, "Migration":
//! <https://qemu-project.gitlab.io/qemu/interop/vhost-user.html#migration>.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use vhost::vhost_user::message::VhostUserLog;
use vhost::vhost_user::{Error, Result};
use vm_memory::{FileOffset, GuestAddress, MmapRegion, VolatileMemory};

use super::chain::Segment;

/// Size in bytes of the page that one bit stands for, on every architecture.
const PAGE: u64 = 4096;
const PAGES_PER_BYTE: u64 = 8;
/// Size in bytes of an element of the used ring.
const ELEMENT: u64 = 8;
/// Offset in bytes of the first element of the used ring, behind its flags and index.
const ELEMENTS: u64 = 4;
const INDEX: u64 = 2;
const WORD: u64 = 2;

fn refused(reason: String) -> Error {
    Error::ReqHandlerError(std::io::Error::other(reason))
}

/// Bitmap with one bit for each page of the guest.
#[derive(Debug)]
pub(super) struct DirtyLog {
    region: MmapRegion,
}

impl DirtyLog {
    /// Maps the log that the frontend hands over.
    ///
    /// # Errors
    /// When the file is smaller than `layout` says, may still shrink, or cannot be mapped: an access behind the end of
    /// a file ends the process.
    pub(super) fn open(layout: &VhostUserLog, file: File) -> Result<Self> {
        let (size, offset) = (layout.mmap_size, layout.mmap_offset);
        let bytes = usize::try_from(size).map_err(|_| Error::InvalidParam)?;
        let end = offset.checked_add(size).filter(|_| size > 0).ok_or(Error::InvalidParam)?;
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap_or(0);
        if !SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(refused(
                "the log of dirty pages may shrink: the VM must pass a memfd with F_SEAL_SHRINK"
                    .into(),
            ));
        }
        let length = file.metadata().map_err(Error::ReqHandlerError)?.len();
        if end > length {
            return Err(refused(format!(
                "the log of dirty pages ends at byte {end}, but its file has {length} bytes"
            )));
        }
        let region = MmapRegion::from_file(FileOffset::new(file, offset), bytes);
        let region = region.map_err(|error| {
            refused(format!("map {size} bytes at {offset} as the log of dirty pages: {error}"))
        })?;
        Ok(Self { region })
    }

    /// Checks that the log has a bit for each page up to the guest address `last`.
    ///
    /// # Errors
    /// When it is too small: a page without a bit would be lost in the migration.
    pub(super) fn check_covers(&self, last: GuestAddress) -> Result<()> {
        let (bytes, needed) = (self.region.size() as u64, last.0 / PAGE / PAGES_PER_BYTE + 1);
        if bytes >= needed {
            return Ok(());
        }
        Err(refused(format!(
            "the log of dirty pages has {bytes} bytes, but memory up to {:#x} needs {needed}",
            last.0
        )))
    }

    /// Marks the pages of the `length` bytes at `address`. Those beyond the log are ignored.
    fn mark(&self, address: u64, length: u64) {
        if length == 0 {
            return;
        }
        let end = (self.region.size() as u64).saturating_mul(PAGES_PER_BYTE);
        let last = (address.saturating_add(length - 1) / PAGE).min(end - 1);
        for page in address / PAGE..=last {
            let byte = (page / PAGES_PER_BYTE) as usize;
            if let Ok(byte) = self.region.get_atomic_ref::<AtomicU8>(byte) {
                byte.fetch_or(1 << (page % PAGES_PER_BYTE), Ordering::SeqCst);
            }
        }
    }
}

/// Log as one ring uses it; marks nothing while logging is off.
#[derive(Debug, Clone, Default)]
pub(super) struct RingLog {
    /// Log of the session; `None` while logging is off.
    pub(super) pages: Option<Arc<DirtyLog>>,
    /// Guest address at which writes to the used ring are marked; `None` if the frontend does not want that.
    pub(super) used: Option<u64>,
}

impl RingLog {
    /// Marks what the device wrote for a request: the first `written` bytes of `data`, and the status byte.
    pub(super) fn mark_request(&self, data: &[Segment], written: u32, status: GuestAddress) {
        let Some(pages) = &self.pages else { return };
        let mut left = written;
        for segment in data {
            let part = left.min(segment.length);
            pages.mark(segment.address.0, u64::from(part));
            left -= part;
        }
        pages.mark(status.0, 1);
    }

    /// Marks the element `slot` of the used ring, and the ring's index.
    pub(super) fn mark_used(&self, slot: u16) {
        self.mark_ring(ELEMENTS + ELEMENT * u64::from(slot), ELEMENT);
        self.mark_ring(INDEX, WORD);
    }

    /// Marks the field by which the device asks for kicks, in a used ring of `size` entries: behind the elements with
    /// `event_idx`, else the flags.
    pub(super) fn mark_kicks(&self, size: u16, event_idx: bool) {
        let field = if event_idx { ELEMENTS + ELEMENT * u64::from(size) } else { 0 };
        self.mark_ring(field, WORD);
    }

    fn mark_ring(&self, offset: u64, length: u64) {
        if let (Some(pages), Some(used)) = (&self.pages, self.used) {
            pages.mark(used.saturating_add(offset), length);
        }
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
