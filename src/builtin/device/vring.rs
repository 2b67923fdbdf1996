//! Settings of one ring from the frontend, collected until the ring can be started.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use vhost::vhost_user::{Error, Result};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::config::RING;
use super::guest::GuestMemory;
use super::inflight::Record;
use super::log::RingLog;
use super::ring::{CallFd, Ring, RingState};

/// Settings of one ring from the frontend, and its state.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: u16,
    /// Addresses of the descriptor table, the used ring and the available ring, in the frontend's address space.
    pub(super) addresses: Option<[u64; 3]>,
    /// Guest address at which writes to the used ring are logged; `None` if they are not.
    pub(super) used_log: Option<u64>,
    pub(super) base: u16,
    pub(super) kick: Option<Arc<File>>,
    /// Set once the frontend has sent a kick message. If that has no descriptor, the ring is only polled.
    pub(super) started: bool,
    pub(super) call: CallFd,
    pub(super) error: Option<Arc<File>>,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

impl Vring {
    /// Creates the ring, at the position of the in-flight record, or without one at the base that the frontend has set.
    ///
    /// # Errors
    /// When the size or an address is missing, or an address is not aligned or not in the guest's memory.
    pub(super) fn ring(
        &self,
        index: u16,
        guest: Arc<GuestMemory>,
        record: Option<&Record>,
        event_idx: bool,
        in_flight: Arc<AtomicUsize>,
        log: RingLog,
    ) -> Result<Ring> {
        let ring = Ring {
            index,
            queue: self.queue(&guest, event_idx)?,
            guest,
            kick: self.kick.clone(),
            call: Arc::clone(&self.call),
            error: self.error.clone(),
            record: record.and_then(|record| record.queue(index, self.size)),
            log,
            in_flight,
            state: RingState::default(),
        };
        ring.begin().map_err(|_| Error::InvalidParam)
    }

    fn queue(&self, guest: &GuestMemory, event_idx: bool) -> Result<Queue> {
        let addresses = self.addresses.ok_or(Error::InvalidParam)?;
        let [table, used, available] =
            addresses.map(|user| guest.translate(user).map(GuestAddress));
        let (Some(table), Some(used), Some(available)) = (table, used, available) else {
            return Err(Error::InvalidParam);
        };
        let mut queue = Queue::new(RING).map_err(|_| Error::InvalidParam)?;
        queue.try_set_size(self.size).map_err(|_| Error::InvalidParam)?;
        queue.try_set_desc_table_address(table).map_err(|_| Error::InvalidParam)?;
        queue.try_set_used_ring_address(used).map_err(|_| Error::InvalidParam)?;
        queue.try_set_avail_ring_address(available).map_err(|_| Error::InvalidParam)?;
        queue.set_next_avail(self.base);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

/// Converts `size`, the number of entries of a ring.
///
/// # Errors
/// When a ring cannot have `size` entries: it must be a power of two, and at most [`RING`].
pub(super) fn ring_size(size: u32) -> Result<u16> {
    let size = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= RING);
    size.ok_or(Error::InvalidParam)
}
