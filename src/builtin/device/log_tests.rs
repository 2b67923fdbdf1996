use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

fn file(bytes: u64, seals: SealFlag) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"log", flags).unwrap());
    file.set_len(bytes).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file
}

fn log(bytes: u64) -> DirtyLog {
    let file = file(bytes, SealFlag::F_SEAL_SHRINK);
    DirtyLog::open(&VhostUserLog::new(bytes, 0), file).unwrap()
}

fn marked(log: &DirtyLog) -> Vec<usize> {
    let byte = |at: usize| log.region.get_atomic_ref::<AtomicU8>(at).unwrap();
    let is_set = |page: &usize| byte(page / 8).load(Ordering::SeqCst) >> (page % 8) & 1 == 1;
    (0..log.region.size() * 8).filter(is_set).collect()
}

#[test]
fn pages_are_marked_from_the_first_byte_to_the_last() {
    let cases: [(u64, u64, &[usize]); 6] = [
        (0, 0, &[]),
        (4095, 1, &[0]),
        (4095, 2, &[0, 1]),
        (4096 * 7, 4096, &[7]),
        (4096 * 7 + 1, 4096, &[7, 8]),
        (4096 * 15, 8193, &[15, 16, 17]),
    ];
    for (address, length, pages) in cases {
        let log = log(16);
        log.mark(address, length);
        assert_eq!(marked(&log), pages, "{length} bytes at {address}");
    }
}

#[test]
fn marks_beyond_the_log_are_ignored() {
    let log = log(1);
    log.mark(4096 * 8, 4096);
    log.mark(u64::MAX, u64::MAX);
    assert!(marked(&log).is_empty());
    log.mark(4096 * 7, u64::MAX);
    assert_eq!(marked(&log), [7]);
}

#[test]
fn log_covers_memory_up_to_its_last_bit() {
    let log = log(2);
    assert!(log.check_covers(GuestAddress(16 * 4096 - 1)).is_ok());
    let error = log.check_covers(GuestAddress(16 * 4096)).unwrap_err().to_string();
    assert!(error.contains("has 2 bytes") && error.contains("needs 3"), "{error}");
}

#[test]
fn log_that_is_short_or_may_shrink_is_refused() {
    let sealed = || file(4096, SealFlag::F_SEAL_SHRINK);
    assert!(DirtyLog::open(&VhostUserLog::new(4097, 0), sealed()).is_err());
    assert!(DirtyLog::open(&VhostUserLog::new(4096, 4096), sealed()).is_err());
    assert!(DirtyLog::open(&VhostUserLog::new(0, 0), sealed()).is_err());
    assert!(DirtyLog::open(&VhostUserLog::new(u64::MAX, 1), sealed()).is_err());
    let open = file(4096, SealFlag::F_SEAL_GROW);
    assert!(DirtyLog::open(&VhostUserLog::new(4096, 0), open).is_err());
    assert!(DirtyLog::open(&VhostUserLog::new(1, 0), tempfile::tempfile().unwrap()).is_err());
}

#[test]
fn request_marks_only_what_was_written_and_its_status() {
    let pages = Arc::new(log(16));
    let segment = |page: u64, length| Segment { address: GuestAddress(page * 4096), length };
    let data = [segment(2, 4096), segment(4, 8192), segment(8, 4096)];
    RingLog::default().mark_request(&data, 8192, GuestAddress(0));
    assert!(marked(&pages).is_empty());
    let ring = RingLog { pages: Some(Arc::clone(&pages)), used: None };
    ring.mark_request(&data, 8192, GuestAddress(10 * 4096));
    ring.mark_used(3);
    assert_eq!(marked(&pages), [2, 4, 10]);
}

#[test]
fn used_ring_is_marked_at_its_own_address() {
    let pages = Arc::new(log(16));
    let ring = RingLog { pages: Some(Arc::clone(&pages)), used: Some(20 * 4096) };
    ring.mark_used(1023);
    // The last element lies across the border of two pages.
    assert_eq!(marked(&pages), [20, 21, 22]);
    ring.mark_kicks(2048, true);
    assert_eq!(marked(&pages), [20, 21, 22, 24]);
}
