//! Use of a disk as a virtual machine's driver uses it: one ring of virtio-blk over vhost-user.
//!
//! The crate `vhost` implements the protocol; the ring is implemented here and serves one request at a time. These
//! functions block, so they run on a blocking thread. The crate waits for a reply for as long as the connection is
//! open, so the code that started the thread shuts the connection down at the deadline.
//!
//! ```text
//! 0x0000 descriptors  0x1000 available  0x2000 used  0x3000 header, status  0x100000 data (1 MiB)
//! ```

use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vhost::VringConfigData;
use vhost::vhost_user::Frontend;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::handshake::{HandshakeError, negotiate, share, start_ring};
use crate::host::shared_memory::SharedMemory;
use crate::model::sizing::PROBE_PAGES;

/// Size in bytes of the memory shared with the target.
pub(super) const MEMORY: usize = (2 << 20) * PROBE_PAGES as usize;
/// Size of the disk in bytes; a probe writes and reads all of them.
pub(super) const DISK: usize = 1 << 20;
/// Size of a virtio sector in bytes.
pub(super) const SECTOR: usize = 512;

const RING: u16 = 128;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
const HEADER: usize = 0x3000;
const STATUS: usize = 0x3010;
const DATA: usize = MEMORY - DISK;
/// Data bytes of one request.
const PART: usize = 128 << 10;
/// Value of the status byte until the device writes it.
const NO_STATUS: u8 = 0xff;
/// Number of polls for an answer that are made without a pause; each later poll is followed by [`PAUSE`].
const SPINS: usize = 2000;
const PAUSE: Duration = Duration::from_micros(50);

/// Failed I/O of a probe.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// Failure to set up the connection.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The memory is too small for the ring, or an eventfd could not be created.
    #[error("the ring could not be made")]
    Ring(#[source] std::io::Error),
    /// The device did not answer in time.
    #[error("a {what} request of {bytes} bytes at byte {at} was not answered in time")]
    NoAnswer {
        /// Kind of the request: `read`, `write` or `flush`.
        what: &'static str,
        /// Offset of the request on the disk, in bytes.
        at: usize,
        bytes: usize,
    },
    /// The device answered with an error.
    #[error("a {what} request of {bytes} bytes at byte {at} failed with status {status}")]
    Failed {
        /// Kind of the request: `read`, `write` or `flush`.
        what: &'static str,
        /// Offset of the request on the disk, in bytes.
        at: usize,
        bytes: usize,
        /// The device's status (virtio 1.2, 5.2.6).
        status: u8,
    },
    /// The data read differs from the data written.
    #[error("byte {at} was written as {written:#04x} and read as {read:#04x}")]
    Differs {
        /// Offset of the first byte that differs.
        at: usize,
        written: u8,
        read: u8,
    },
}

/// Durations of the write and the read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) write: Duration,
    pub(super) read: Duration,
}

/// Writes a pattern over the whole disk, flushes, reads it back and compares. Disconnects at the end, also after an
/// error.
pub(super) fn prove(
    stream: UnixStream,
    memory: &SharedMemory,
    deadline: Instant,
) -> Result<Times, DiskError> {
    let pattern = pattern();
    let mut disk = ProbeDisk::connect(stream, memory, deadline)?;
    let began = Instant::now();
    disk.write(&pattern)?;
    disk.flush()?;
    let write = began.elapsed();
    let began = Instant::now();
    let read = disk.read()?;
    let times = Times { write, read: began.elapsed() };
    match pattern.iter().zip(&read).position(|(written, read)| written != read) {
        None => Ok(times),
        Some(at) => Err(DiskError::Differs { at, written: pattern[at], read: read[at] }),
    }
}

/// Pseudo-random bytes for the whole disk, different from those of earlier probes.
fn pattern() -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // The state is never zero: xorshift would stay at zero.
    let mut state = now.map_or(1, |since| since.as_nanos() as u64) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..DISK / 8).flat_map(|_| next()).collect()
}

struct ProbeDisk<'a> {
    memory: &'a SharedMemory,
    /// Frontend of the connection, kept because dropping it disconnects.
    _frontend: Frontend,
    kick: EventFd,
    _call: EventFd,
    offered: u16,
    flushes: bool,
    deadline: Instant,
}

fn event() -> Result<EventFd, DiskError> {
    EventFd::new(nix::libc::EFD_NONBLOCK | nix::libc::EFD_CLOEXEC).map_err(DiskError::Ring)
}

fn ring_error(error: impl std::error::Error + Send + Sync + 'static) -> DiskError {
    DiskError::Ring(std::io::Error::other(error))
}

/// Layout of a ring in memory that begins at the address `memory`.
fn ring_at(memory: u64) -> VringConfigData {
    VringConfigData {
        queue_max_size: RING,
        queue_size: RING,
        flags: 0,
        desc_table_addr: memory,
        used_ring_addr: memory + USED as u64,
        avail_ring_addr: memory + AVAILABLE as u64,
        log_addr: None,
    }
}

impl<'a> ProbeDisk<'a> {
    fn connect(
        stream: UnixStream,
        memory: &'a SharedMemory,
        deadline: Instant,
    ) -> Result<ProbeDisk<'a>, DiskError> {
        let mut frontend = Frontend::from_stream(stream, 1);
        let features = negotiate(&mut frontend)?;
        let (kick, call) = (event()?, event()?);
        share(&frontend, memory)?;
        start_ring(&mut frontend, &ring_at(memory.address()), &kick, &call)?;
        let flushes = features & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        Ok(ProbeDisk {
            memory,
            _frontend: frontend,
            kick,
            _call: call,
            offered: 0,
            flushes,
            deadline,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.memory.slice().write_slice(bytes, DATA).map_err(ring_error)?;
        (0..DISK).step_by(PART).try_for_each(|at| self.request(VIRTIO_BLK_T_OUT, "write", at, PART))
    }

    /// Flushes the disk, if the device offers that.
    fn flush(&mut self) -> Result<(), DiskError> {
        match self.flushes {
            true => self.request(VIRTIO_BLK_T_FLUSH, "flush", 0, 0),
            false => Ok(()),
        }
    }

    fn read(&mut self) -> Result<Vec<u8>, DiskError> {
        // The data area is cleared first, so that bytes left there by the write are not taken for bytes read.
        let mut bytes = vec![0; DISK];
        self.memory.slice().write_slice(&bytes, DATA).map_err(ring_error)?;
        (0..DISK)
            .step_by(PART)
            .try_for_each(|at| self.request(VIRTIO_BLK_T_IN, "read", at, PART))?;
        self.memory.slice().read_slice(&mut bytes, DATA).map_err(ring_error)?;
        Ok(bytes)
    }

    /// Makes one request and waits for its answer (virtio 1.2, 2.7 and 5.2.6).
    fn request(
        &mut self,
        kind: u32,
        what: &'static str,
        at: usize,
        bytes: usize,
    ) -> Result<(), DiskError> {
        self.put_chain(kind, at, bytes).map_err(ring_error)?;
        self.kick.write(1).map_err(DiskError::Ring)?;
        if !self.answered().map_err(ring_error)? {
            return Err(DiskError::NoAnswer { what, at, bytes });
        }
        let status: u8 = self.memory.slice().read_obj(STATUS).map_err(ring_error)?;
        match u32::from(status) == VIRTIO_BLK_S_OK {
            true => Ok(()),
            false => Err(DiskError::Failed { what, at, bytes, status }),
        }
    }

    fn put_chain(
        &mut self,
        kind: u32,
        at: usize,
        bytes: usize,
    ) -> Result<(), vm_memory::VolatileMemoryError> {
        let memory = self.memory.slice();
        memory.write_obj(kind.to_le(), HEADER)?;
        memory.write_obj(0u32, HEADER + 4)?;
        memory.write_obj(((at / SECTOR) as u64).to_le(), HEADER + 8)?;
        memory.write_obj(NO_STATUS, STATUS)?;
        let to_memory = if kind == VIRTIO_BLK_T_IN { VRING_DESC_F_WRITE } else { 0 };
        let parts = [
            (HEADER, 16, VRING_DESC_F_NEXT),
            (DATA + at, bytes, VRING_DESC_F_NEXT | to_memory),
            (STATUS, 1, VRING_DESC_F_WRITE),
        ];
        let used = parts.iter().filter(|(_, length, _)| *length > 0);
        for (number, (place, length, flags)) in used.enumerate() {
            let descriptor = number * 16;
            memory.write_obj((*place as u64).to_le(), descriptor)?;
            memory.write_obj((*length as u32).to_le(), descriptor + 8)?;
            memory.write_obj((*flags as u16).to_le(), descriptor + 12)?;
            memory.write_obj((number as u16 + 1).to_le(), descriptor + 14)?;
        }
        // The entry in the available ring is not written: the head is always descriptor 0, and the ring is zeroed.
        self.offered = self.offered.wrapping_add(1);
        memory.store(self.offered.to_le(), AVAILABLE + 2, Ordering::Release)?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// `true` if the device has answered the request, `false` if the deadline came first. The number of written bytes
    /// that it reports is ignored: devices differ in it, and the data itself is compared.
    fn answered(&self) -> Result<bool, vm_memory::VolatileMemoryError> {
        let memory = self.memory.slice();
        let mut looks = 0;
        loop {
            let used: u16 = memory.load(USED + 2, Ordering::Acquire)?;
            if u16::from_le(used) == self.offered {
                return Ok(true);
            }
            if Instant::now() >= self.deadline {
                return Ok(false);
            }
            looks += 1;
            match looks < SPINS {
                true => std::thread::yield_now(),
                false => std::thread::sleep(PAUSE),
            }
        }
    }
}
