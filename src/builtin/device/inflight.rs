//! In-flight record: memory shared with the frontend, in which each request is recorded while it is being served. After
//! the process was killed, another one finishes the recorded requests.
//!
//! Layout and order of the stores are those of the vhost-user specification, "Inflight I/O tracking", for split rings:
//! <https://qemu-project.gitlab.io/qemu/interop/vhost-user.html#inflight-i-o-tracking>.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Error, Result};
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::config::{QUEUES, RING};

const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const ENTRIES: usize = 16;
const ENTRY: usize = 16;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// Size in bytes of the part of one queue with `queue_size` entries, as libvhost-user lays it out.
fn part(queue_size: u16) -> usize {
    (ENTRIES + usize::from(queue_size) * ENTRY).next_multiple_of(64)
}

/// Creates an empty record, for a frontend that has none.
///
/// # Errors
/// When `asked` has more or larger queues than a guest can have, or there is no memory.
pub(super) fn make(asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
    let (queues, size) = (asked.num_queues, asked.queue_size);
    if queues == 0 || queues > QUEUES || size == 0 || size > RING {
        return Err(Error::InvalidParam);
    }
    let bytes = part(size) * usize::from(queues);
    let name = c"vhost-inflight";
    let file = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(|_| Error::MemFdCreateError)?;
    let file = File::from(file);
    file.set_len(bytes as u64).map_err(|_| Error::FileTruncateError)?;
    Ok((VhostUserInflight::new(bytes as u64, 0, queues, size), file))
}

/// Record of all queues.
#[derive(Debug, Clone)]
pub(super) struct Record {
    region: Arc<MmapRegion>,
    queues: u16,
    queue_size: u16,
}

impl Record {
    /// Maps the record that the frontend hands over.
    ///
    /// # Errors
    /// When the record is smaller than its queues need, or cannot be mapped.
    pub(super) fn open(layout: &VhostUserInflight, file: File) -> Result<Self> {
        let (queues, queue_size) = (layout.num_queues, layout.queue_size);
        let bytes = usize::try_from(layout.mmap_size).map_err(|_| Error::InvalidParam)?;
        let end = layout.mmap_offset.checked_add(layout.mmap_size).ok_or(Error::InvalidParam)?;
        let length = file.metadata().map_err(Error::ReqHandlerError)?.len();
        if bytes < part(queue_size) * usize::from(queues) || end > length || bytes == 0 {
            return Err(Error::InvalidParam);
        }
        let region = MmapRegion::from_file(FileOffset::new(file, layout.mmap_offset), bytes)
            .map_err(|e| Error::ReqHandlerError(std::io::Error::other(e)))?;
        Ok(Self { region: Arc::new(region), queues, queue_size })
    }

    /// Part of the queue `index`; `None` if the record has none for a ring of `ring_size` entries.
    pub(super) fn queue(&self, index: u16, ring_size: u16) -> Option<QueueRecord> {
        let fits = index < self.queues && ring_size <= self.queue_size;
        let base = part(self.queue_size) * usize::from(index);
        fits.then(|| QueueRecord {
            region: Arc::clone(&self.region),
            base,
            size: ring_size,
            counter: 0,
        })
    }
}

/// Position from which a ring is served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resumed {
    /// Heads of the chains to serve again, in the order in which they were first taken.
    pub(super) heads: Vec<u16>,
    /// Index of the next entry to take from the available ring.
    pub(super) next_avail: u16,
}

/// Record of one queue.
#[derive(Debug)]
pub(super) struct QueueRecord {
    region: Arc<MmapRegion>,
    base: usize,
    size: u16,
    counter: u64,
}

impl QueueRecord {
    // Both `load` and `store` cannot fail, because the offsets are within the mapping by construction. An unreadable
    // record would only count as empty.
    fn load<T: AtomicAccess + Default>(&self, offset: usize) -> T {
        let slice = self.region.as_volatile_slice();
        slice.load(self.base + offset, Ordering::Acquire).unwrap_or_default()
    }

    fn store<T: AtomicAccess>(&self, offset: usize, value: T) {
        let _ = self.region.as_volatile_slice().store(value, self.base + offset, Ordering::Release);
    }

    fn entry(head: u16) -> usize {
        ENTRIES + usize::from(head) * ENTRY
    }

    /// Updates the record to `used`, the index of the used ring; returns the position from which to serve.
    pub(super) fn resume(&mut self, used: u16) -> Resumed {
        if self.load::<u16>(VERSION) != 1 {
            self.store(DESC_NUM, self.size);
            self.store(USED_IDX, used);
            self.store(VERSION, 1u16);
            return Resumed { heads: Vec::new(), next_avail: used };
        }
        self.finish_last_batch(used);
        let in_flight = (0..self.size).filter(|head| self.load::<u8>(Self::entry(*head)) == 1);
        let counter = |head: u16| self.load::<u64>(Self::entry(head) + COUNTER);
        let mut heads: Vec<(u64, u16)> = in_flight.map(|head| (counter(head), head)).collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let next_avail = used.wrapping_add(heads.len() as u16);
        Resumed { heads: heads.into_iter().map(|(_, head)| head).collect(), next_avail }
    }

    /// Records the end of the last batch, if it was published in the used ring and the process was killed before it
    /// recorded that.
    fn finish_last_batch(&self, used: u16) {
        let batch = used.wrapping_sub(self.load(USED_IDX)).min(self.size);
        let mut head: u16 = self.load(LAST_BATCH_HEAD);
        for _ in 0..batch {
            if head >= self.size {
                break;
            }
            self.store(Self::entry(head), 0u8);
            head = self.load(Self::entry(head) + NEXT);
        }
        self.store(USED_IDX, used);
    }

    /// Records that the chain at `head` is being served.
    pub(super) fn begin(&mut self, head: u16) {
        self.store(Self::entry(head) + COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.store(Self::entry(head), 1u8);
    }

    /// Records the chain at `head` as a batch of one. Must be called before the chain is returned to the guest.
    pub(super) fn before_used(&self, head: u16) {
        self.store(Self::entry(head) + NEXT, self.load::<u16>(LAST_BATCH_HEAD));
        self.store(LAST_BATCH_HEAD, head);
        // The batch must be in the record before the used ring's index publishes it.
        fence(Ordering::SeqCst);
    }

    /// Records the end of the batch. Must be called once the used ring's index is `used`.
    pub(super) fn after_used(&self, head: u16, used: u16) {
        fence(Ordering::SeqCst);
        self.store(Self::entry(head), 0u8);
        self.store(USED_IDX, used);
    }
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;
