//! Requests of the guest, parsed from a chain and validated (virtio 1.2, 5.2.6).
//!
//! The guest may cut header, data and status into descriptors as it likes: the header is the first 16 bytes that the
//! device reads, the status the last byte that it writes.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, InvalidChain, Segment};
use super::config::{RANGE_SECTORS, RANGES};
use super::disk::ControllerDisk;
use super::guest::GuestMemory;

const HEADER: usize = 16;
/// Size in bytes of a disk's serial number.
const ID: u64 = 20;
const RANGE: usize = 16;
const SECTOR: u64 = 512;
const UNMAP: u32 = 1;

/// Status with which a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RequestStatus {
    Ok = VIRTIO_BLK_S_OK as u8,
    Failed = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// Range of the disk to be zeroed, in bytes; its space is freed if `unmap` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) unmap: bool,
}

/// Operation that a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Transfer {
        write: bool,
        offset: u64,
        length: u64,
        data: Vec<Segment>,
    },
    Flush,
    Identify(Vec<Segment>),
    Zero(Vec<Range>),
    /// Invalid request, which is answered with this status.
    Refuse(RequestStatus),
}

/// Operation of a request, and the address of the status byte that answers it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BlockRequest {
    pub(super) operation: Operation,
    pub(super) status: GuestAddress,
}

fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.length)).sum()
}

/// Moves the first bytes of `segments` into `bytes`, until it is full; `false` if `segments` has too few bytes, or some
/// are not mapped.
fn take(guest: &GuestMemory, segments: &mut Vec<Segment>, bytes: &mut [u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        let Some(first) = segments.first_mut() else { return false };
        let part = (first.length as usize).min(bytes.len() - done);
        if guest.memory.read_slice(&mut bytes[done..done + part], first.address).is_err() {
            return false;
        }
        done += part;
        first.length -= part as u32;
        first.address.0 = first.address.0.wrapping_add(part as u64);
        if first.length == 0 {
            segments.remove(0);
        }
    }
    true
}

/// Removes the last byte of `segments` and returns its address.
fn take_last(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    while segments.last().is_some_and(|last| last.length == 0) {
        segments.pop();
    }
    let last = segments.last_mut()?;
    last.length -= 1;
    let address = last.address.0.checked_add(u64::from(last.length))?;
    if last.length == 0 {
        segments.pop();
    }
    Some(GuestAddress(address))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

impl BlockRequest {
    /// Parses the request in `chain`. A request that is not valid for `disk` becomes [`Operation::Refuse`].
    ///
    /// # Errors
    /// When the chain has no byte for the status, or no readable header.
    pub(super) fn parse(
        guest: &GuestMemory,
        disk: &ControllerDisk,
        mut chain: Chain,
    ) -> Result<Self, InvalidChain> {
        let status = take_last(&mut chain.writable).ok_or(InvalidChain::NoRequest)?;
        let mut header = [0; HEADER];
        if !take(guest, &mut chain.readable, &mut header) {
            return Err(InvalidChain::NoRequest);
        }
        let sector = long(&header, 8);
        let operation = if disk.bdev.is_removed() {
            Operation::Refuse(RequestStatus::Failed)
        } else {
            operation(guest, disk, word(&header, 0), sector, chain)
        };
        Ok(Self { operation, status })
    }
}

fn operation(
    guest: &GuestMemory,
    disk: &ControllerDisk,
    kind: u32,
    sector: u64,
    chain: Chain,
) -> Operation {
    let (readable, writable) = (length(&chain.readable), length(&chain.writable));
    let writes =
        matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES);
    if writes && (disk.read_only || writable != 0) {
        return Operation::Refuse(RequestStatus::Failed);
    }
    match kind {
        VIRTIO_BLK_T_IN if readable == 0 => transfer(disk, false, sector, writable, chain.writable),
        VIRTIO_BLK_T_OUT => transfer(disk, true, sector, readable, chain.readable),
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID if readable == 0 && writable >= ID => {
            Operation::Identify(chain.writable)
        }
        VIRTIO_BLK_T_DISCARD => ranges(guest, disk, chain.readable, false),
        VIRTIO_BLK_T_WRITE_ZEROES => ranges(guest, disk, chain.readable, true),
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID => Operation::Refuse(RequestStatus::Failed),
        _ => Operation::Refuse(RequestStatus::Unsupported),
    }
}

/// Offset in bytes of the range of `length` bytes at `sector`; `None` unless it consists of whole blocks and lies on
/// the disk.
fn on_disk(disk: &ControllerDisk, sector: u64, length: u64) -> Option<u64> {
    let block = u64::from(disk.bdev.block_size);
    let offset = sector.checked_mul(SECTOR)?;
    let end = offset.checked_add(length)?;
    let whole = offset.is_multiple_of(block) && length.is_multiple_of(block);
    (whole && end <= disk.bdev.bytes()).then_some(offset)
}

fn transfer(
    disk: &ControllerDisk,
    write: bool,
    sector: u64,
    length: u64,
    data: Vec<Segment>,
) -> Operation {
    match on_disk(disk, sector, length) {
        Some(offset) if length > 0 => Operation::Transfer { write, offset, length, data },
        _ => Operation::Refuse(RequestStatus::Failed),
    }
}

fn ranges(
    guest: &GuestMemory,
    disk: &ControllerDisk,
    mut data: Vec<Segment>,
    zeroes: bool,
) -> Operation {
    let count = length(&data) / RANGE as u64;
    if count == 0 || count > u64::from(RANGES) || !length(&data).is_multiple_of(RANGE as u64) {
        return Operation::Refuse(RequestStatus::Failed);
    }
    let mut ranges = Vec::new();
    for _ in 0..count {
        let mut bytes = [0; RANGE];
        if !take(guest, &mut data, &mut bytes) {
            return Operation::Refuse(RequestStatus::Failed);
        }
        let (sector, sectors, flags) = (long(&bytes, 0), word(&bytes, 8), word(&bytes, 12));
        // A discard has no flags; write-zeroes has one, unmap.
        if flags & !UNMAP != 0 || (flags != 0 && !zeroes) {
            return Operation::Refuse(RequestStatus::Unsupported);
        }
        let length = u64::from(sectors) * SECTOR;
        let Some(offset) = on_disk(disk, sector, length).filter(|_| sectors <= RANGE_SECTORS)
        else {
            return Operation::Refuse(RequestStatus::Failed);
        };
        if length > 0 {
            ranges.push(Range { offset, length, unmap: !zeroes || flags & UNMAP != 0 });
        }
    }
    Operation::Zero(ranges)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
