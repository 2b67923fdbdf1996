//! Service of a worker's rings: takes requests, executes and answers them.

use std::collections::VecDeque;
use std::sync::Arc;

use nix::errno::Errno;
use vm_memory::{GuestAddress, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use super::super::bdev::{AlignedBuffer, OperationKind, Transfer, iovecs};
use super::aio::{Aio, AioOperation};
use super::chain::Segment;
use super::disk::ControllerDisk;
use super::guest::GuestMemory;
use super::request::{BlockRequest, Operation, Range, RequestStatus};
use super::ring::Ring;

/// Maximum bytes copied for a request whose buffers the disk cannot take as they are.
const COPIED: u64 = 64 << 20;
/// Maximum requests taken from one ring before the other rings get their turn.
const TURN: usize = 128;
/// IOV_MAX: maximum number of buffers that the kernel takes in one call.
const VECTORS: usize = 1024;

/// Request that is being served.
struct Job {
    ring: u16,
    head: u16,
    status: GuestAddress,
    /// Number of bytes that the request has to transfer.
    length: u64,
    /// Number of bytes to report to the guest as written, without the status byte.
    written: u32,
    /// Guest memory of the transfer, which stays mapped as long as this is held.
    guest: Arc<GuestMemory>,
    /// Segments that the device writes, without the status byte; there are none for a write to the disk.
    data: Vec<Segment>,
    /// Buffer with a copy of the data, which is copied to the segments afterwards.
    copy: Option<AlignedBuffer>,
}

type Completion = Vec<(Job, Result<u64, Errno>)>;

/// Service of requests on one disk.
pub(super) struct DiskService {
    disk: Arc<ControllerDisk>,
    aio: Option<Aio<Job>>,
    /// Requests for which the kernel has no room yet.
    waiting: VecDeque<(AioOperation, Job)>,
    done: Completion,
}

impl DiskService {
    /// Creates a service for `disk`; the kernel signals each completion on `completions`.
    pub(super) fn new(disk: Arc<ControllerDisk>, completions: EventFd) -> Self {
        let wants = disk.bdev.direct_fd().is_some();
        let aio = if wants {
            Aio::new(completions).map_err(|errno| {
            tracing::warn!(
                disk = disk.bdev.name, %errno,
                "disk {} has no asynchronous I/O and is served one request at a time: {errno}", disk.bdev.name
            );
        }).ok()
        } else {
            None
        };
        Self { disk, aio, waiting: VecDeque::new(), done: Vec::new() }
    }

    /// Takes, executes and answers requests of all `rings` once; `false` if there was nothing to do.
    pub(super) fn turn(&mut self, rings: &mut [Ring]) -> bool {
        let mut worked = false;
        for ring in rings.iter_mut() {
            for _ in 0..TURN {
                let Some((head, chain)) = ring.take() else { break };
                worked = true;
                match BlockRequest::parse(&ring.guest, &self.disk, chain) {
                    Ok(request) => self.begin(ring, head, request),
                    Err(broken) => ring.abandon(broken),
                }
            }
        }
        if let Some(aio) = &mut self.aio {
            while aio.has_room()
                && let Some((work, job)) = self.waiting.pop_front()
            {
                prepare(&self.disk, aio, work, job);
            }
            aio.submit(&mut self.done);
            aio.reap(&mut self.done);
        }
        worked |= !self.done.is_empty();
        for (job, result) in std::mem::take(&mut self.done) {
            self.finish(rings, job, result);
        }
        rings.iter_mut().for_each(Ring::announce);
        worked
    }

    /// `true` if requests have completed that are not answered yet.
    pub(super) fn has_completions(&mut self) -> bool {
        if let Some(aio) = &mut self.aio {
            aio.reap(&mut self.done);
        }
        !self.done.is_empty()
    }

    fn begin(&mut self, ring: &Ring, head: u16, request: BlockRequest) {
        let BlockRequest { operation, status } = request;
        let guest = Arc::clone(&ring.guest);
        let (ring, data) = (ring.index, Vec::new());
        let mut job = Job { ring, head, status, length: 0, written: 0, guest, data, copy: None };
        let stats = &self.disk.bdev.stats;
        match operation {
            Operation::Transfer { write, offset, length, data } => {
                stats.count(if write { OperationKind::Write } else { OperationKind::Read }, length);
                job.length = length;
                job.written = if write { 0 } else { length as u32 };
                self.transfer(write, offset, data, job);
            }
            Operation::Flush => {
                stats.count(OperationKind::Flush, 0);
                if self.aio.is_some() {
                    return self.queue(AioOperation::Sync, job);
                }
                let flushed = self.disk.bdev.flush().map(|()| 0);
                self.done.push((job, flushed));
            }
            Operation::Identify(data) => {
                let id = serial(&self.disk.bdev.name);
                job.written = id.len() as u32;
                let put = scatter(&job.guest, &data, &id);
                job.data = data;
                self.done.push((job, if put { Ok(0) } else { Err(Errno::EFAULT) }));
            }
            Operation::Zero(ranges) => {
                stats.count(OperationKind::Unmap, ranges.iter().map(|range| range.length).sum());
                let zeroed = self.zero(&ranges);
                self.done.push((job, zeroed));
            }
            Operation::Refuse(RequestStatus::Unsupported) => {
                self.done.push((job, Err(Errno::ENOTSUP)))
            }
            Operation::Refuse(_) => self.done.push((job, Err(Errno::EINVAL))),
        }
    }

    fn zero(&self, ranges: &[Range]) -> Result<u64, Errno> {
        for range in ranges {
            self.disk.bdev.zero(range.offset, range.length, range.unmap)?;
        }
        Ok(0)
    }

    fn transfer(&mut self, write: bool, offset: u64, data: Vec<Segment>, mut job: Job) {
        let guest = Arc::clone(&job.guest);
        let mut slices = Vec::with_capacity(data.len());
        if !data.iter().all(|part| guest.slices(part.address, part.length, &mut slices)) {
            return self.done.push((job, Err(Errno::EFAULT)));
        }
        job.data = if write { Vec::new() } else { data };
        let Some(alignment) = self.disk.bdev.direct_alignment() else {
            let moved =
                self.disk.bdev.transfer(Transfer { write, offset }, &slices).map(|()| job.length);
            return self.done.push((job, moved));
        };
        let fits = |slice: &VolatileSlice<'_>| {
            let start = slice.ptr_guard().as_ptr() as usize;
            start.is_multiple_of(alignment) && slice.len().is_multiple_of(alignment)
        };
        let mut vectors = iovecs(&slices);
        if slices.len() > VECTORS || !slices.iter().all(fits) {
            let Some(buffer) = copied(write, &slices, job.length) else {
                return self.done.push((job, Err(Errno::ENOMEM)));
            };
            vectors = iovecs(&[buffer.slice()]);
            job.copy = Some(buffer);
        }
        if self.aio.is_none() {
            let own = job.copy.as_ref().map(|buffer| vec![buffer.slice()]);
            let parts = own.as_deref().unwrap_or(&slices);
            let moved =
                self.disk.bdev.transfer(Transfer { write, offset }, parts).map(|()| job.length);
            return self.done.push((job, moved));
        }
        let work = if write {
            AioOperation::Write { offset, iovecs: vectors }
        } else {
            AioOperation::Read { offset, iovecs: vectors }
        };
        self.queue(work, job);
    }

    fn queue(&mut self, work: AioOperation, job: Job) {
        match &mut self.aio {
            Some(aio) if self.waiting.is_empty() && aio.has_room() => {
                prepare(&self.disk, aio, work, job);
            }
            _ => self.waiting.push_back((work, job)),
        }
    }

    fn finish(&self, rings: &mut [Ring], job: Job, result: Result<u64, Errno>) {
        let result =
            result.and_then(|moved| if moved == job.length { Ok(()) } else { Err(Errno::EIO) });
        let put = job.copy.as_ref().is_none_or(|buffer| {
            let mut bytes = vec![0; if job.data.is_empty() { 0 } else { buffer.slice().len() }];
            buffer.slice().copy_to(&mut bytes[..]);
            result.is_err() || scatter(&job.guest, &job.data, &bytes)
        });
        let status = match result {
            Ok(()) if put => RequestStatus::Ok,
            Err(Errno::ENOTSUP) => RequestStatus::Unsupported,
            _ => RequestStatus::Failed,
        };
        if status == RequestStatus::Failed {
            self.disk.bdev.stats.count_error();
            let why = result.err().map_or("the guest's memory cannot be reached", Errno::desc);
            tracing::debug!(
                disk = self.disk.bdev.name,
                why,
                "a request to disk {} failed: {why}",
                self.disk.bdev.name
            );
        }
        let Some(ring) = rings.iter_mut().find(|ring| ring.index == job.ring) else { return };
        let written = if status == RequestStatus::Ok { job.written.saturating_add(1) } else { 1 };
        let answered = job.guest.put(job.status, &[status as u8]);
        ring.log.mark_request(&job.data, job.written, job.status);
        if !answered {
            return ring.abandon(super::chain::InvalidChain::NoRequest);
        }
        ring.give_back(job.head, written);
    }
}

fn prepare(disk: &ControllerDisk, aio: &mut Aio<Job>, work: AioOperation, job: Job) {
    // Always present: only a disk with such a descriptor has asynchronous I/O.
    if let Some(file) = disk.bdev.direct_fd() {
        aio.prepare(file, work, job);
    }
}

/// Serial number of a disk: the first 20 bytes of `name`, padded with zeroes.
fn serial(name: &str) -> [u8; 20] {
    let mut id = [0; 20];
    let length = name.len().min(id.len());
    id[..length].copy_from_slice(&name.as_bytes()[..length]);
    id
}

/// Writes `bytes` to `segments`, one after the other; `false` if a part is not mapped.
fn scatter(guest: &GuestMemory, segments: &[Segment], mut bytes: &[u8]) -> bool {
    for segment in segments {
        let part = bytes.len().min(segment.length as usize);
        if !guest.put(segment.address, &bytes[..part]) {
            return false;
        }
        bytes = &bytes[part..];
    }
    true
}

/// Aligned buffer of `length` bytes, with the data of `slices` if `write` is set; `None` if `length` is too large or
/// there is no memory.
fn copied(write: bool, slices: &[VolatileSlice<'_>], length: u64) -> Option<AlignedBuffer> {
    let bytes = usize::try_from(length).ok().filter(|_| length <= COPIED)?;
    let buffer = AlignedBuffer::zeroed(bytes)?;
    let mut at = 0;
    for slice in slices.iter().filter(|_| write) {
        let part = buffer.slice().subslice(at, slice.len()).ok()?;
        slice.copy_to_volatile_slice(part);
        at += slice.len();
    }
    Some(buffer)
}
