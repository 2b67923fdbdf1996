//! Walk of a descriptor chain, with all checks.
//!
//! virtio-queue's own iterator is not used. It ends silently at the first invalid descriptor, and begins only at
//! entries of the available ring; but requests to be served again after a restart are in the in-flight record.

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::guest::GuestMemory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR: u64 = 16;

/// Range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) address: GuestAddress,
    pub(super) length: u32,
}

/// Ranges of a chain; those that the device reads come before those that it writes.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
}

/// Reason why a chain is invalid; the ring cannot be trusted after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidChain {
    #[error("descriptor {0} is beyond the table")]
    Index(u16),
    #[error("the chain has a loop")]
    Loop,
    #[error("a descriptor table is not in the guest's memory")]
    Table,
    #[error("an indirect table is in a place or has a size that is not allowed")]
    Indirect,
    #[error("a descriptor to read comes after one to write")]
    Order,
    #[error("the chain is longer than 4 GiB")]
    TooLong,
    #[error("the chain has no room for a header and a status")]
    NoRequest,
    #[error("the ring names more requests than it has room for")]
    Ring,
}

impl Chain {
    fn push(&mut self, descriptor: Descriptor) -> Result<(), InvalidChain> {
        let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
        if descriptor.flags() & WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(InvalidChain::Order);
        }
        Ok(())
    }
}

/// Walks the chain that begins at `head`.
///
/// # Errors
/// When the chain breaks the rules of the virtio specification for rings.
pub(super) fn walk(guest: &GuestMemory, queue: &Queue, head: u16) -> Result<Chain, InvalidChain> {
    let mut chain = Chain::default();
    let (mut table, mut entries) = (queue.desc_table(), u32::from(queue.size()));
    let (mut index, mut left, mut bytes) = (head, entries, 0u32);
    let mut indirect = false;
    loop {
        if u32::from(index) >= entries {
            return Err(InvalidChain::Index(index));
        }
        left = left.checked_sub(1).ok_or(InvalidChain::Loop)?;
        let address =
            table.checked_add(u64::from(index) * DESCRIPTOR).ok_or(InvalidChain::Table)?;
        let descriptor: Descriptor =
            guest.memory.read_obj(GuestAddress(address)).map_err(|_| InvalidChain::Table)?;
        if descriptor.flags() & INDIRECT != 0 {
            let length = u64::from(descriptor.len());
            if indirect || descriptor.flags() & NEXT != 0 || length % DESCRIPTOR != 0 {
                return Err(InvalidChain::Indirect);
            }
            (table, entries) = (descriptor.addr().0, (length / DESCRIPTOR) as u32);
            (index, left, indirect) = (0, entries, true);
            continue;
        }
        bytes = bytes.checked_add(descriptor.len()).ok_or(InvalidChain::TooLong)?;
        chain.push(descriptor)?;
        if descriptor.flags() & NEXT == 0 {
            return Ok(chain);
        }
        index = descriptor.next();
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
