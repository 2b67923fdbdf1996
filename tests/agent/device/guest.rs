//! A guest with a vhost-user frontend: memory, rings and a driver for virtio-blk, small and strict.
//!
//! Each slot of a ring has three descriptors of its own (header, data, status) and each answer is
//! counted, so that a lost or doubled one shows.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;

/// Longer than any answer takes.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
/// Slots of a ring.
pub(crate) const SLOTS: u16 = 64;
/// Where data begins; before it are the rings.
pub(crate) const DATA: u64 = 1 << 20;

const RING: u16 = 256;
const MEMORY: usize = 64 << 20;
/// Guest addresses are not offsets: a target that mixes them up shows.
const GUEST: u64 = 1 << 32;
const PART: u64 = 0x8000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x4000;
const EVENT_IDX: u64 = 1 << 29;
const LOG_ALL: u64 = 1 << 26;
const PAGE: u64 = 4096;

/// One ring and what the driver knows of it.
struct Ring {
    base: u64,
    kick: EventFd,
    call: EventFd,
    avail: u16,
    seen: u16,
    pending: Vec<bool>,
}

/// What a slot is asked to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) kind: u32,
    pub(crate) sector: u64,
    /// Offset in the guest's memory, and bytes there.
    pub(crate) data: u64,
    pub(crate) length: u32,
}

/// The guest.
pub(crate) struct Guest {
    memory: MmapRegion,
    file: File,
    rings: Vec<Ring>,
    pub(crate) frontend: Option<Frontend>,
    pub(crate) record: Option<(VhostUserInflight, File)>,
    pub(crate) notices: Option<UnixStream>,
}

fn part(index: usize) -> u64 {
    PART * index as u64
}

impl Guest {
    pub(crate) fn new(rings: usize) -> Self {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY as u64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = MmapRegion::from_file(offset, MEMORY).unwrap();
        let ring = |index| Ring {
            base: part(index),
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(nix::libc::EFD_NONBLOCK).unwrap(),
            avail: 0,
            seen: 0,
            pending: vec![false; usize::from(SLOTS)],
        };
        let rings = (0..rings).map(ring).collect();
        Self { memory, file, rings, frontend: None, record: None, notices: None }
    }

    fn store<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.as_volatile_slice().write_obj(value, at as usize).unwrap();
    }

    fn store_16(&self, at: u64, value: u16) {
        self.memory.as_volatile_slice().store(value, at as usize, Ordering::SeqCst).unwrap();
    }

    fn load_16(&self, at: u64) -> u16 {
        self.memory.as_volatile_slice().load(at as usize, Ordering::SeqCst).unwrap()
    }

    /// Writes bytes to the guest's memory.
    pub(crate) fn fill(&self, at: u64, bytes: &[u8]) {
        self.memory.as_volatile_slice().write_slice(bytes, at as usize).unwrap();
    }

    /// Bytes of the guest's memory.
    pub(crate) fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.as_volatile_slice().read_slice(&mut bytes, at as usize).unwrap();
        bytes
    }

    /// Connects, negotiates and starts every ring; again after a target's death, as QEMU does it.
    pub(crate) fn connect(&mut self, socket: &Path) {
        let stream = connected(socket);
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut frontend = Frontend::from_stream(stream, 16);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        assert!(features & EVENT_IDX != 0);
        let features = features & !LOG_ALL;
        // The crate's frontend only speaks of protocol features once they are acknowledged.
        frontend.set_features(features).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let records = protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD);
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let (ours, theirs) = UnixStream::pair().unwrap();
        frontend.set_backend_request_fd(&theirs).unwrap();
        ours.set_read_timeout(Some(TIMEOUT)).unwrap();
        self.notices = Some(ours);
        if records && self.record.is_none() {
            let asked = VhostUserInflight::new(0, 0, self.rings.len() as u16, RING);
            self.record = Some(frontend.get_inflight_fd(&asked).unwrap());
        }
        if let Some((layout, file)) = &self.record {
            frontend.set_inflight_fd(layout, file.as_raw_fd()).unwrap();
        }
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: MEMORY as u64,
            userspace_addr: self.memory.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        for index in 0..self.rings.len() {
            self.start(&mut frontend, index);
        }
        self.frontend = Some(frontend);
    }

    fn addresses(&self, index: usize, logged: bool) -> VringConfigData {
        let base = self.rings[index].base;
        let user = self.memory.as_ptr() as u64 + base;
        VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: u32::from(logged),
            desc_table_addr: user,
            used_ring_addr: user + USED,
            avail_ring_addr: user + AVAIL,
            log_addr: logged.then_some(GUEST + base + USED),
        }
    }

    /// Hands over an empty log of dirty pages.
    pub(crate) fn set_log(&self) -> File {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let log = File::from(memfd_create(c"log", flags).unwrap());
        let bytes = (GUEST + MEMORY as u64) / PAGE / 8;
        log.set_len(bytes).unwrap();
        fcntl(&log, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        let (mmap_size, mmap_offset, mmap_handle) = (bytes, 0, log.as_raw_fd());
        let region = VhostUserDirtyLogRegion { mmap_size, mmap_offset, mmap_handle };
        self.frontend.as_ref().unwrap().set_log_base(0, Some(region)).unwrap();
        log
    }

    /// Switches logging on or off while the rings run, in QEMU's order.
    pub(crate) fn switch_log(&self, on: bool) {
        let frontend = self.frontend.as_ref().unwrap();
        let features = frontend.get_features().unwrap() & !LOG_ALL;
        frontend.set_features(features | if on { LOG_ALL } else { 0 }).unwrap();
        for index in 0..self.rings.len() {
            frontend.set_vring_addr(index, &self.addresses(index, on)).unwrap();
        }
    }

    /// Offsets in memory of the pages that `log` marks.
    pub(crate) fn marked(log: &File) -> Vec<u64> {
        let mut bytes = vec![0; log.metadata().unwrap().len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(log, &mut bytes, 0).unwrap();
        let is_set = |page: &u64| bytes[*page as usize / 8] >> (page % 8) & 1 == 1;
        let pages = (0..bytes.len() as u64 * 8).filter(is_set);
        pages.map(|page| (page * PAGE).checked_sub(GUEST).unwrap()).collect()
    }

    fn start(&self, frontend: &mut Frontend, index: usize) {
        let ring = &self.rings[index];
        frontend.set_vring_num(index, RING).unwrap();
        frontend.set_vring_addr(index, &self.addresses(index, false)).unwrap();
        frontend.set_vring_base(index, self.load_16(ring.base + USED + 2)).unwrap();
        frontend.set_vring_call(index, &ring.call).unwrap();
        frontend.set_vring_kick(index, &ring.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    /// The configuration space's first 60 bytes.
    pub(crate) fn config(&mut self) -> Vec<u8> {
        let frontend = self.frontend.as_mut().unwrap();
        let flags = VhostUserConfigFlags::WRITABLE;
        frontend.get_config(0, 60, flags, &[0; 60]).unwrap().1
    }

    /// The disk's size in sectors, as its configuration space tells.
    pub(crate) fn capacity(&mut self) -> u64 {
        u64::from_le_bytes(self.config()[..8].try_into().unwrap())
    }

    /// Puts a request into a slot that is free.
    pub(crate) fn offer(&mut self, index: usize, slot: u16, ask: Ask) {
        let base = self.rings[index].base;
        assert!(!std::mem::replace(&mut self.rings[index].pending[usize::from(slot)], true));
        let place = HEADERS + 32 * u64::from(slot);
        self.store(base + place, ask.kind.to_le());
        self.store(base + place + 8, ask.sector.to_le());
        self.store(base + place + 16, 0xffu8);
        let head = slot * 3;
        let from_device = matches!(ask.kind, IN | GET_ID);
        let data =
            (ask.length > 0).then_some((ask.data, ask.length, if from_device { 2 } else { 0 }));
        let parts = [Some((base + place, 16, 0)), data, Some((base + place + 16, 1, 2u16))];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        for (nth, (at, length, flags)) in parts.iter().enumerate() {
            let number = head + nth as u16;
            let last = nth + 1 == parts.len();
            let descriptor = base + 16 * u64::from(number);
            self.store(descriptor, GUEST + at);
            self.store(descriptor + 8, *length);
            self.store(descriptor + 12, flags | u16::from(!last));
            self.store(descriptor + 14, number + 1);
        }
        self.push(index, head);
    }

    /// Puts any head into the available ring.
    pub(crate) fn push(&mut self, index: usize, head: u16) {
        let (base, avail) = (self.rings[index].base, self.rings[index].avail);
        self.store_16(base + AVAIL + 4 + 2 * u64::from(avail % RING), head);
        self.rings[index].avail = avail.wrapping_add(1);
        self.store_16(base + AVAIL + 2, self.rings[index].avail);
    }

    /// Tells the device, if it wants to be told since `before`.
    pub(crate) fn kick(&mut self, index: usize, before: u16) {
        let ring = &self.rings[index];
        std::sync::atomic::fence(Ordering::SeqCst);
        let event = self.load_16(ring.base + USED + 4 + 8 * u64::from(RING));
        if ring.avail.wrapping_sub(event).wrapping_sub(1) < ring.avail.wrapping_sub(before) {
            ring.kick.write(1).unwrap();
        }
    }

    /// Entries put into the available ring so far.
    pub(crate) fn offered(&self, index: usize) -> u16 {
        self.rings[index].avail
    }

    /// Answers that have come in: slot and status. Each must have been pending.
    pub(crate) fn answers(&mut self, index: usize) -> Vec<(u16, u8)> {
        let base = self.rings[index].base;
        let used = self.load_16(base + USED + 2);
        let mut answers = Vec::new();
        while self.rings[index].seen != used {
            let at = base + USED + 4 + 8 * u64::from(self.rings[index].seen % RING);
            let slot = self.load_16(at) / 3;
            let pending = &mut self.rings[index].pending[usize::from(slot)];
            assert!(std::mem::replace(pending, false), "slot {slot} was answered twice");
            answers.push((slot, self.bytes(base + HEADERS + 32 * u64::from(slot) + 16, 1)[0]));
            self.rings[index].seen = self.rings[index].seen.wrapping_add(1);
        }
        answers
    }

    /// Waits for at least one answer.
    pub(crate) fn wait(&mut self, index: usize) -> Vec<(u16, u8)> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let ring = &self.rings[index];
            self.store_16(ring.base + AVAIL + 4 + 2 * u64::from(RING), ring.seen);
            std::sync::atomic::fence(Ordering::SeqCst);
            let answers = self.answers(index);
            if !answers.is_empty() {
                return answers;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer on ring {index}");
            let call = &self.rings[index].call;
            readable(call.as_raw_fd(), left);
            let _ = call.read();
        }
    }

    /// Waits until nothing is pending on a ring; tells the answers.
    pub(crate) fn finish(&mut self, index: usize) -> Vec<(u16, u8)> {
        let mut answers = self.answers(index);
        while self.rings[index].pending.contains(&true) {
            answers.extend(self.wait(index));
        }
        answers
    }

    /// One request, and its answer.
    pub(crate) fn ask(&mut self, index: usize, ask: Ask) -> u8 {
        let before = self.offered(index);
        self.offer(index, 0, ask);
        self.kick(index, before);
        let answers = self.finish(index);
        assert_eq!(answers.len(), 1);
        answers[0].1
    }

    /// Writes `bytes` to the disk from one place in memory, reads them back to another.
    pub(crate) fn write(&mut self, index: usize, sector: u64, bytes: &[u8]) -> u8 {
        self.fill(DATA, bytes);
        self.ask(index, Ask { kind: OUT, sector, data: DATA, length: bytes.len() as u32 })
    }

    /// Reads from the disk.
    pub(crate) fn read(&mut self, index: usize, sector: u64, length: u32) -> (u8, Vec<u8>) {
        let data = DATA + (32 << 20);
        self.fill(data, &vec![0xa5; length as usize]);
        let status = self.ask(index, Ask { kind: IN, sector, data, length });
        (status, self.bytes(data, length as usize))
    }

    /// Requests that the in-flight record tells of, on all rings.
    pub(crate) fn recorded(&self) -> usize {
        let (layout, file) = self.record.as_ref().unwrap();
        let mut bytes = vec![0; layout.mmap_size as usize];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
        let per_ring = bytes.len() / self.rings.len();
        let entries = |ring: &[u8]| ring[16..].chunks(16).filter(|entry| entry[0] == 1).count();
        bytes.chunks(per_ring).map(entries).sum()
    }
}

/// Connects; a socket may be there a moment before its process listens.
fn connected(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a descriptor can be read; false when it could not be in time.
pub(crate) fn readable(fd: i32, within: Duration) -> bool {
    // SAFETY: the descriptor is open while this runs: its owner has lent it.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(within.as_millis()).unwrap();
    poll(&mut fds, timeout).unwrap_or(0) > 0
}
