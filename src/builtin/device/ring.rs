//! Running ring of a guest.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{Chain, InvalidChain, walk};
use super::guest::GuestMemory;
use super::inflight::QueueRecord;
use super::log::RingLog;

/// Descriptor by which the guest is interrupted; the frontend may replace it while the ring runs.
pub(super) type CallFd = Arc<Mutex<Option<File>>>;

/// Signals the eventfd `file`. A failed write is ignored, because it affects only the frontend.
pub(super) fn signal(file: Option<&File>) {
    if let Some(mut file) = file {
        let _ = file.write(&1u64.to_ne_bytes());
    }
}

pub(super) fn interrupt(call: &CallFd) {
    signal(call.lock().unwrap_or_else(PoisonError::into_inner).as_ref());
}

/// Ring with all that is needed to serve it.
pub(super) struct Ring {
    pub(super) index: u16,
    pub(super) queue: Queue,
    pub(super) guest: Arc<GuestMemory>,
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: CallFd,
    pub(super) error: Option<Arc<File>>,
    pub(super) record: Option<QueueRecord>,
    pub(super) log: RingLog,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) state: RingState,
}

/// State of a ring in service.
#[derive(Default)]
pub(super) struct RingState {
    /// Heads of chains to serve again, before new ones are taken.
    resumed: std::vec::IntoIter<u16>,
    /// Number of requests that are taken and not answered. The same requests count in the session's `in_flight`.
    pub(super) outstanding: usize,
    /// Set if the guest broke the ring's rules: no requests are taken from it any more.
    broken: bool,
    /// Set if the ring is to stop once no request is outstanding.
    pub(super) stopping: bool,
    used: bool,
}

impl Ring {
    /// Prepares the ring for service, at the position of the in-flight record, or without one at the base that the
    /// frontend has set.
    ///
    /// # Errors
    /// When a part of the ring is not in the guest's memory.
    pub(super) fn begin(mut self) -> Result<Self, InvalidChain> {
        if !self.queue.is_valid(&self.guest.memory) {
            return Err(InvalidChain::Table);
        }
        let used = self.queue.used_idx(&self.guest.memory, Ordering::Acquire);
        let used = used.map_err(|_| InvalidChain::Table)?.0;
        self.queue.set_next_used(used);
        if let Some(record) = &mut self.record {
            let found = record.resume(used);
            self.queue.set_next_avail(found.next_avail);
            self.state.resumed = found.heads.into_iter();
        }
        Ok(self)
    }

    pub(super) fn kick_fd(&self) -> Option<RawFd> {
        self.kick.as_ref().map(|kick| kick.as_raw_fd())
    }

    /// Consumes a kick. Must be called only if the descriptor is readable: it may block.
    pub(super) fn take_kick(&self) {
        if let Some(mut kick) = self.kick.as_deref() {
            let _ = kick.read(&mut [0; 8]);
        }
    }

    /// Takes the next request that the guest offers: the head of its chain, and the chain.
    pub(super) fn take(&mut self) -> Option<(u16, Chain)> {
        if self.state.broken || self.state.stopping {
            return None;
        }
        let head = match self.state.resumed.next() {
            Some(head) => head,
            None => self.next_head()?,
        };
        match walk(&self.guest, &self.queue, head) {
            Ok(chain) => {
                if let Some(record) = &mut self.record {
                    record.begin(head);
                }
                self.state.outstanding += 1;
                self.in_flight.fetch_add(1, Ordering::Relaxed);
                Some((head, chain))
            }
            Err(broken) => {
                self.break_off(broken);
                None
            }
        }
    }

    fn next_head(&mut self) -> Option<u16> {
        let guest = Arc::clone(&self.guest);
        let head = match self.queue.iter(&guest.memory) {
            Ok(mut heads) => Ok(heads.next()?.head_index()),
            Err(_) => Err(InvalidChain::Ring),
        };
        head.map_err(|broken| self.break_off(broken)).ok()
    }

    /// Stops the ring for good, and signals an error to the frontend.
    pub(super) fn break_off(&mut self, broken: InvalidChain) {
        tracing::error!(
            ring = self.index, reason = %broken,
            "ring {} was stopped until the guest resets the device, because it is invalid: {broken}", self.index
        );
        self.state.broken = true;
        signal(self.error.as_deref());
    }

    /// Drops an outstanding request that cannot be answered, and stops the ring.
    pub(super) fn abandon(&mut self, broken: InvalidChain) {
        self.state.outstanding -= 1;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.break_off(broken);
    }

    /// Returns the chain at `head` to the guest; the device has written `written` bytes to it.
    pub(super) fn give_back(&mut self, head: u16, written: u32) {
        self.state.outstanding -= 1;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(record) = &self.record {
            record.before_used(head);
        }
        let slot = self.queue.next_used() % self.queue.size();
        if self.queue.add_used(&self.guest.memory, head, written).is_err() {
            return self.break_off(InvalidChain::Table);
        }
        self.log.mark_used(slot);
        if let Some(record) = &self.record {
            record.after_used(head, self.queue.next_used());
        }
        self.state.used = true;
    }

    /// Interrupts the guest if requests were returned since the last call and the guest wants to know.
    pub(super) fn announce(&mut self) {
        if std::mem::take(&mut self.state.used)
            && self.queue.needs_notification(&self.guest.memory).unwrap_or(true)
        {
            interrupt(&self.call);
        }
    }

    /// Enables kicks for new requests; `true` if the guest has already offered some.
    pub(super) fn sleep(&mut self) -> bool {
        let idle = self.state.broken || self.state.stopping;
        if idle {
            return false;
        }
        let more = self.queue.enable_notification(&self.guest.memory).unwrap_or(false);
        self.log.mark_kicks(self.queue.size(), self.queue.event_idx_enabled());
        more
    }

    /// Disables kicks, because the ring is polled from now on.
    pub(super) fn wake(&mut self) {
        let _ = self.queue.disable_notification(&self.guest.memory);
        // With event indexes nothing is written: the field in the ring is only outdated.
        if !self.queue.event_idx_enabled() {
            self.log.mark_kicks(self.queue.size(), false);
        }
    }
}
