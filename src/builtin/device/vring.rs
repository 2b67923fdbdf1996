//! Frontend's settings of one ring, collected until it can be started.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use vhost::vhost_user::{Error, Result};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::config::RING;
use super::guest::GuestMemory;
use super::inflight::Record;
use super::ring::{CallFd, Ring, RingState};

/// Frontend's settings of one ring.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: u16,
    /// Descriptor table, used ring, available ring, as addresses of the frontend.
    pub(super) addresses: Option<[u64; 3]>,
    pub(super) base: u16,
    pub(super) kick: Option<Arc<File>>,
    /// Set once there is a kick; without a descriptor the ring is only polled.
    pub(super) started: bool,
    pub(super) call: CallFd,
    pub(super) error: Option<Arc<File>>,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

impl Vring {
    /// Creates the ring, at the in-flight record's position or at the frontend's base.
    ///
    /// # Errors
    /// When something is missing, not aligned or not in the guest's memory.
    pub(super) fn ring(
        &self,
        index: u16,
        guest: Arc<GuestMemory>,
        record: Option<&Record>,
        event_idx: bool,
        in_flight: Arc<AtomicUsize>,
    ) -> Result<Ring> {
        let ring = Ring {
            index,
            queue: self.queue(&guest, event_idx)?,
            guest,
            kick: self.kick.clone(),
            call: Arc::clone(&self.call),
            error: self.error.clone(),
            record: record.and_then(|record| record.queue(index, self.size)),
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

/// Checks a number of entries.
///
/// # Errors
/// When a ring cannot have so many entries.
pub(super) fn ring_size(size: u32) -> Result<u16> {
    let size = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= RING);
    size.ok_or(Error::InvalidParam)
}
