//! Asynchronous requests through Linux's native I/O (`io_submit(2)`).
//!
//! io_uring is not used: Docker's default seccomp profile, under which a target runs, forbids it and allows
//! `io_submit`. Only files opened past the page cache are served here. For them both interfaces submit many requests in
//! one call and read completions from shared memory without a call; the limit measured in `benches/` is the disk. Files
//! in the page cache are served by preadv and pwritev: either interface would only do the same before it returns, with
//! more overhead.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::libc;
use vmm_sys_util::eventfd::EventFd;

const PREADV: u16 = 7;
const PWRITEV: u16 = 8;
const FDSYNC: u16 = 3;
const NOTIFY: u32 = 1;
/// Maximum number of requests in the kernel at a time; further ones are queued.
const DEPTH: usize = 256;
/// Value in the header of the completion ring by which the kernel marks the layout that is known here.
const MAGIC: u32 = 0xa10a_10a1;

/// `struct io_event` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// `struct aio_ring` of the kernel's fs/aio.c, the beginning of the completion ring.
#[repr(C)]
struct Header {
    id: u32,
    entries: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
}

/// Operation to submit to the kernel.
#[derive(Debug)]
pub(super) enum AioOperation {
    Read { offset: u64, iovecs: Vec<libc::iovec> },
    Write { offset: u64, iovecs: Vec<libc::iovec> },
    Sync,
}

struct AioSlot<J> {
    block: Box<libc::iocb>,
    iovecs: Vec<libc::iovec>,
    job: Option<J>,
}

/// Asynchronous I/O context. Each request carries a `J`, which is returned with the request's result.
pub(super) struct Aio<J> {
    context: libc::c_ulong,
    slots: Vec<AioSlot<J>>,
    free: Vec<usize>,
    prepared: Vec<*mut libc::iocb>,
    event: EventFd,
}

// SAFETY: the raw pointers are to the slots' own boxes, which move with the context.
#[allow(unsafe_code)]
unsafe impl<J: Send> Send for Aio<J> {}

#[allow(unsafe_code)]
fn call(number: libc::c_long, arguments: [usize; 5]) -> Result<usize, Errno> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: each caller passes what io_setup(2), io_submit(2), io_getevents(2) or io_destroy(2) asks
    // for, and keeps it alive: io_submit's blocks and iovecs live in slots until their completion.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    usize::try_from(result).map_err(|_| Errno::last())
}

impl<J> Aio<J> {
    /// Creates a context; the kernel signals completions on `event`.
    ///
    /// # Errors
    /// EAGAIN when `fs.aio-max-nr` is used up, ENOSYS or EPERM when the kernel or seccomp forbids the call.
    pub(super) fn new(event: EventFd) -> Result<Self, Errno> {
        let mut context: libc::c_ulong = 0;
        let place = &raw mut context as usize;
        call(libc::SYS_io_setup, [DEPTH, place, 0, 0, 0])?;
        let (slots, free, prepared) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { context, slots, free, prepared, event })
    }

    /// `true` if another request can be prepared.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < DEPTH
    }

    /// Prepares a request for the next [`submit`](Self::submit). The memory of its iovecs must live until `job` is
    /// returned.
    pub(super) fn prepare(&mut self, file: BorrowedFd<'_>, work: AioOperation, job: J) {
        let index = self.free.pop().unwrap_or(self.slots.len());
        let (opcode, offset, iovecs) = match work {
            AioOperation::Read { offset, iovecs } => (PREADV, offset, iovecs),
            AioOperation::Write { offset, iovecs } => (PWRITEV, offset, iovecs),
            AioOperation::Sync => (FDSYNC, 0, Vec::new()),
        };
        if index == self.slots.len() {
            // SAFETY: the block is plain numbers, for which zero is a value.
            #[allow(unsafe_code)]
            let block = Box::new(unsafe { std::mem::zeroed::<libc::iocb>() });
            self.slots.push(AioSlot { block, iovecs: Vec::new(), job: None });
        }
        let slot = &mut self.slots[index];
        slot.iovecs = iovecs;
        slot.job = Some(job);
        slot.block.aio_data = index as u64;
        slot.block.aio_lio_opcode = opcode;
        slot.block.aio_fildes = file.as_raw_fd() as u32;
        // A sync has no iovecs, and the kernel insists on a null address then.
        let vectors = if slot.iovecs.is_empty() { 0 } else { slot.iovecs.as_ptr() as u64 };
        slot.block.aio_buf = vectors;
        slot.block.aio_nbytes = slot.iovecs.len() as u64;
        slot.block.aio_offset = offset as i64;
        slot.block.aio_flags = NOTIFY;
        slot.block.aio_resfd = self.event.as_raw_fd() as u32;
        self.prepared.push(&raw mut *slot.block);
    }

    /// Submits the prepared requests. Requests that the kernel refuses are put into `done`; requests for which it has
    /// no room stay prepared.
    pub(super) fn submit(&mut self, done: &mut Vec<(J, Result<u64, Errno>)>) {
        let mut at = 0;
        while at < self.prepared.len() {
            let waiting = &self.prepared[at..];
            let (count, blocks) = (waiting.len(), waiting.as_ptr() as usize);
            match call(libc::SYS_io_submit, [self.context as usize, count, blocks, 0, 0]) {
                Ok(0) | Err(Errno::EAGAIN) => break,
                Ok(taken) => at += taken,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    let refused = self.prepared[at];
                    let is_it = |slot: &AioSlot<J>| std::ptr::eq(&*slot.block, refused);
                    if let Some(index) = self.slots.iter().position(is_it) {
                        self.finish(index, Err(errno), done);
                    }
                    at += 1;
                }
            }
        }
        self.prepared.drain(..at);
    }

    fn finish(
        &mut self,
        index: usize,
        result: Result<u64, Errno>,
        done: &mut Vec<(J, Result<u64, Errno>)>,
    ) {
        if let Some(job) = self.slots.get_mut(index).and_then(|slot| slot.job.take()) {
            self.free.push(index);
            done.push((job, result));
        }
    }

    /// `true` if requests may have completed. Reads the ring shared with the kernel, without a call.
    fn ready(&self) -> bool {
        // SAFETY: the context is the address of the ring's header, which the kernel maps, readable,
        // until io_destroy; head and tail are written by the kernel, hence atomic.
        #[allow(unsafe_code)]
        let header = unsafe { &*(self.context as *const Header) };
        header.magic != MAGIC
            || header.head.load(Ordering::Relaxed) != header.tail.load(Ordering::Acquire)
    }

    /// Moves completed requests into `done`, each with the number of bytes transferred.
    pub(super) fn reap(&mut self, done: &mut Vec<(J, Result<u64, Errno>)>) {
        if self.free.len() == self.slots.len() {
            return;
        }
        let mut events = [IoEvent::default(); 64];
        while self.ready() {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let place = events.as_mut_ptr() as usize;
            let context = self.context as usize;
            let arguments = [context, 0, events.len(), place, &raw const now as usize];
            let Ok(count) = call(libc::SYS_io_getevents, arguments) else { return };
            for event in &events[..count] {
                let failed = || Errno::from_raw((-event.result) as i32);
                let result = u64::try_from(event.result).map_err(|_| failed());
                self.finish(event.data as usize, result, done);
            }
            if count < events.len() {
                return;
            }
        }
    }
}

impl<J> Drop for Aio<J> {
    fn drop(&mut self) {
        // io_destroy waits for the requests in the kernel: after it nothing refers to the slots.
        let _ = call(libc::SYS_io_destroy, [self.context as usize, 0, 0, 0, 0]);
    }
}
