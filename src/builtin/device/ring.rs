//! One ring of the guest, while it runs.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{Broken, Chain, walk};
use super::guest::Guest;
use super::inflight::QueueRecord;

/// The descriptor that interrupts the guest; the frontend changes it while the ring runs.
pub(super) type Call = Arc<Mutex<Option<File>>>;

/// Adds one to an eventfd. One that cannot be written is the frontend's loss alone.
pub(super) fn signal(file: Option<&File>) {
    if let Some(mut file) = file {
        let _ = file.write(&1u64.to_ne_bytes());
    }
}

/// Interrupts the guest.
pub(super) fn interrupt(call: &Call) {
    signal(call.lock().unwrap_or_else(PoisonError::into_inner).as_ref());
}

/// A ring and all that is needed to serve it.
pub(super) struct Ring {
    pub(super) index: u16,
    pub(super) queue: Queue,
    pub(super) guest: Arc<Guest>,
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Call,
    pub(super) error: Option<Arc<File>>,
    pub(super) record: Option<QueueRecord>,
    /// Heads to serve again before new ones are taken.
    pub(super) resumed: std::vec::IntoIter<u16>,
    /// Requests taken and not answered, and the same for whoever wants to know.
    pub(super) outstanding: usize,
    pub(super) in_flight: Arc<AtomicUsize>,
    /// The guest broke the ring's rules: nothing is taken from it any more.
    pub(super) broken: bool,
    /// It is to stop once nothing is outstanding.
    pub(super) stopping: bool,
    used: bool,
}

/// What a ring is made of when it starts.
pub(super) struct Parts {
    pub(super) index: u16,
    pub(super) queue: Queue,
    pub(super) guest: Arc<Guest>,
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Call,
    pub(super) error: Option<Arc<File>>,
    pub(super) record: Option<QueueRecord>,
    pub(super) in_flight: Arc<AtomicUsize>,
}

impl Ring {
    /// Begins where the in-flight record says, or at the base that the frontend told.
    ///
    /// # Errors
    /// When the rings are not in the guest's memory.
    pub(super) fn new(mut parts: Parts) -> Result<Self, Broken> {
        if !parts.queue.is_valid(&parts.guest.memory) {
            return Err(Broken::Table);
        }
        let used = parts.queue.used_idx(&parts.guest.memory, Ordering::Acquire);
        let used = used.map_err(|_| Broken::Table)?.0;
        parts.queue.set_next_used(used);
        let mut resumed = Vec::new();
        if let Some(record) = &mut parts.record {
            let found = record.resume(used);
            parts.queue.set_next_avail(found.next_avail);
            resumed = found.heads;
        }
        Ok(Self {
            index: parts.index,
            queue: parts.queue,
            guest: parts.guest,
            kick: parts.kick,
            call: parts.call,
            error: parts.error,
            record: parts.record,
            resumed: resumed.into_iter(),
            outstanding: 0,
            in_flight: parts.in_flight,
            broken: false,
            stopping: false,
            used: false,
        })
    }

    pub(super) fn kick_fd(&self) -> Option<RawFd> {
        self.kick.as_ref().map(|kick| kick.as_raw_fd())
    }

    /// Takes back a kick. The frontend's descriptor may block: only to be called when it is readable.
    pub(super) fn take_kick(&self) {
        if let Some(mut kick) = self.kick.as_deref() {
            let _ = kick.read(&mut [0; 8]);
        }
    }

    /// Takes the next request that the guest offers.
    pub(super) fn take(&mut self) -> Option<(u16, Chain)> {
        if self.broken || self.stopping {
            return None;
        }
        let head = match self.resumed.next() {
            Some(head) => head,
            None => self.next_head()?,
        };
        match walk(&self.guest, &self.queue, head) {
            Ok(chain) => {
                if let Some(record) = &mut self.record {
                    record.begin(head);
                }
                self.outstanding += 1;
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
            Err(_) => Err(Broken::Ring),
        };
        head.map_err(|broken| self.break_off(broken)).ok()
    }

    /// Stops the ring for good and tells the frontend.
    pub(super) fn break_off(&mut self, broken: Broken) {
        tracing::error!(ring = self.index, reason = %broken, "the guest broke a ring, it is stopped");
        self.broken = true;
        signal(self.error.as_deref());
    }

    /// A request that was taken has nowhere to be answered.
    pub(super) fn abandon(&mut self, broken: Broken) {
        self.outstanding -= 1;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.break_off(broken);
    }

    /// Gives a request back to the guest.
    pub(super) fn give_back(&mut self, head: u16, written: u32) {
        self.outstanding -= 1;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(record) = &self.record {
            record.before_used(head);
        }
        if self.queue.add_used(&self.guest.memory, head, written).is_err() {
            return self.break_off(Broken::Table);
        }
        if let Some(record) = &self.record {
            record.after_used(head, self.queue.next_used());
        }
        self.used = true;
    }

    /// Interrupts the guest once for all that was given back, if it wants that.
    pub(super) fn announce(&mut self) {
        if std::mem::take(&mut self.used)
            && self.queue.needs_notification(&self.guest.memory).unwrap_or(true)
        {
            interrupt(&self.call);
        }
    }

    /// Asks the guest to kick for new requests; true when there are some already.
    pub(super) fn sleep(&mut self) -> bool {
        let idle = self.broken || self.stopping;
        !idle && self.queue.enable_notification(&self.guest.memory).unwrap_or(false)
    }

    /// Asks the guest not to kick: its ring is being looked at.
    pub(super) fn wake(&mut self) {
        let _ = self.queue.disable_notification(&self.guest.memory);
    }
}
