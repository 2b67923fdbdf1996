//! Disks, as a guest sees them.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

use serde_json::json;

use super::guest::{
    Ask, DATA, DISCARD, FLUSH, GET_ID, Guest, IN, IOERR, OK, OUT, SLOTS, TIMEOUT, UNSUPP,
    WRITE_ZEROES, readable,
};
use super::process::Target;

/// Bytes that differ from place to place and from `seed` to `seed`.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| byte()).collect()
}

/// A target with one disk of 32 MiB under the name `disk`, and a guest on it.
fn served(target: &Target, kind: &str, block_size: u32, read_only: bool) -> Guest {
    let blocks = (32 << 20) / block_size;
    match kind {
        "malloc" => drop(target.call(
            "bdev_malloc_create",
            json!({"name": "d", "num_blocks": blocks, "block_size": block_size}),
        )),
        "aio" => {
            let file = target.image("d.img", 32 << 20);
            let params = json!({"name": "d", "filename": file, "block_size": block_size});
            target.call("bdev_aio_create", params);
        }
        _ => unreachable!(),
    }
    let params = json!({"ctrlr": "disk", "dev_name": "d", "readonly": read_only});
    target.call("vhost_create_blk_controller", params);
    let mut guest = Guest::new(4);
    guest.connect(&target.path("disk"));
    guest
}

fn what_is_written_is_read(kind: &str, flags: &[&str], block_size: u32) {
    let target = Target::new(flags);
    let mut guest = served(&target, kind, block_size, false);
    assert_eq!(guest.capacity(), (32 << 20) / 512);
    assert_eq!(guest.config()[20..24], block_size.to_le_bytes());
    for (ring, (sector, length)) in
        [(0, 4096), (8, 131_072), (65_528, 4096), (1024, 1 << 20)].into_iter().enumerate()
    {
        let data = pattern(sector, length);
        assert_eq!(guest.write(ring, sector, &data), OK);
        assert_eq!(guest.ask(ring, Ask { kind: FLUSH, sector: 0, data: 0, length: 0 }), OK);
        assert_eq!(guest.read((ring + 1) % 4, sector, length as u32), (OK, data));
    }
    let beyond = guest.read(0, 65_536, 4096).0;
    assert_eq!(beyond, IOERR);
    if block_size == 4096 {
        assert_eq!(guest.read(0, 0, 512).0, IOERR);
        assert_eq!(guest.read(0, 1, 4096).0, IOERR);
    }
}

#[test]
fn a_malloc_disk_keeps_what_is_written() {
    what_is_written_is_read("malloc", &["-m", "0x1"], 512);
}

#[test]
fn a_file_keeps_what_is_written() {
    what_is_written_is_read("aio", &[], 512);
}

#[test]
fn a_file_of_large_blocks_keeps_what_is_written() {
    what_is_written_is_read("aio", &["-m", "[0]"], 4096);
}

#[test]
fn a_zbs_volume_keeps_what_is_written() {
    let volumes = tempfile::tempdir().unwrap();
    let folder = volumes.path().display().to_string();
    let target = Target::new(&["--zbs-dir", &folder]);
    std::fs::File::create(format!("{folder}/v")).unwrap().set_len(1 << 20).unwrap();
    target.call("bdev_zbs_create", json!({"name": "d", "file": "zbs://v"}));
    target.call("vhost_create_blk_controller", json!({"ctrlr": "disk", "dev_name": "d"}));
    let mut guest = Guest::new(1);
    guest.connect(&target.path("disk"));
    let data = pattern(1, 4096);
    assert_eq!(guest.write(0, 0, &data), OK);
    assert_eq!(std::fs::read(format!("{folder}/v")).unwrap()[..4096], data);
    let notices = guest.notices.as_ref().unwrap().as_raw_fd();
    target.call("bdev_zbs_resize", json!({"name": "d", "new_size": 4}));
    assert!(readable(notices, TIMEOUT));
    assert_eq!(guest.capacity(), 8192);
    let smaller = target.fault("bdev_zbs_resize", json!({"name": "d", "new_size": 2}));
    assert_eq!(smaller, (-22, "Invalid argument".into()));
}

#[test]
fn buffers_that_are_not_aligned_are_served_as_well() {
    let target = Target::new(&[]);
    let mut guest = served(&target, "aio", 512, false);
    let data = pattern(7, 8192);
    let (write, read) = (DATA + 3, DATA + (1 << 20) + 7);
    guest.fill(write, &data);
    assert_eq!(guest.ask(0, Ask { kind: OUT, sector: 16, data: write, length: 8192 }), OK);
    assert_eq!(guest.ask(0, Ask { kind: IN, sector: 16, data: read, length: 8192 }), OK);
    assert_eq!(guest.bytes(read, 8192), data);
}

#[test]
fn many_requests_on_many_rings_are_each_answered_once() {
    for kind in ["malloc", "aio"] {
        many_requests(&Target::new(&[]), kind);
    }
}

#[test]
fn where_asynchronous_io_is_forbidden_requests_are_served_one_by_one() {
    let mut target = Target::unstarted(&[]);
    let mut command = target.command();
    // SAFETY: the child calls nothing but prctl before it becomes the target.
    unsafe { command.pre_exec(without_io_setup) };
    target.start_as(command);
    many_requests(&target, "aio");
    let (_, said) = target.end(nix::sys::signal::Signal::SIGTERM);
    assert!(said.contains("no asynchronous I/O"), "{said}");
}

/// Forbids this process io_setup(2), as a seccomp profile of a container may.
fn without_io_setup() -> std::io::Result<()> {
    use nix::libc::{
        BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, EPERM, PR_SET_NO_NEW_PRIVS,
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SYS_io_setup,
        prctl, sock_filter, sock_fprog,
    };
    let step = |code: u32, jt: u8, jf: u8, k: u32| sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_io_setup as u32),
        step(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM as u32),
        step(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
    ];
    let program = sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    // SAFETY: the program lives until the kernel has copied it.
    let done = unsafe {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn many_requests(target: &Target, kind: &str) {
    let mut guest = served(target, kind, 512, false);
    let place = |ring: usize, slot: u16| ring as u64 * 64 + u64::from(slot);
    for (kind, area) in [(OUT, 0), (IN, 16 << 20)] {
        for ring in 0..4 {
            let before = guest.offered(ring);
            for slot in 0..SLOTS {
                let (at, nth) = (DATA + area + 4096 * place(ring, slot), place(ring, slot));
                if kind == OUT {
                    guest.fill(at, &pattern(nth, 4096));
                }
                guest.offer(ring, slot, Ask { kind, sector: nth * 8, data: at, length: 4096 });
            }
            guest.kick(ring, before);
        }
        for ring in 0..4 {
            let answers = guest.finish(ring);
            assert_eq!(answers.len(), usize::from(SLOTS));
            assert!(answers.iter().all(|(_, status)| *status == OK));
        }
    }
    for nth in 0..256 {
        let read = guest.bytes(DATA + (16 << 20) + 4096 * nth, 4096);
        assert_eq!(read, pattern(nth, 4096), "block {nth}");
    }
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes() {
    for kind in ["malloc", "aio"] {
        let target = Target::new(&[]);
        let mut guest = served(&target, kind, 512, false);
        let data = pattern(3, 65_536);
        assert_eq!(guest.write(0, 0, &data), OK);
        let mut range = |kind: u32, sector: u64, sectors: u32, flags: u32| {
            let mut bytes = sector.to_le_bytes().to_vec();
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            guest.fill(DATA, &bytes);
            guest.ask(0, Ask { kind, sector: 0, data: DATA, length: 16 })
        };
        assert_eq!(range(DISCARD, 8, 8, 0), OK);
        assert_eq!(range(WRITE_ZEROES, 32, 1, 0), OK);
        assert_eq!(range(WRITE_ZEROES, 40, 8, 1), OK);
        assert_eq!(range(DISCARD, 8, 8, 1), UNSUPP);
        assert_eq!(range(DISCARD, 65_536, 8, 0), IOERR);
        let mut expected = data;
        for (first, sectors) in [(8, 8), (32, 1), (40, 8)] {
            expected[first * 512..(first + sectors) * 512].fill(0);
        }
        assert_eq!(guest.read(0, 0, 65_536), (OK, expected));
    }
}

#[test]
fn a_disk_returns_its_serial_and_refuses_unknown_requests() {
    let target = Target::new(&[]);
    let mut guest = served(&target, "malloc", 512, false);
    assert_eq!(guest.ask(0, Ask { kind: GET_ID, sector: 0, data: DATA, length: 20 }), OK);
    assert_eq!(guest.bytes(DATA, 2), b"d\0");
    assert_eq!(guest.ask(0, Ask { kind: 99, sector: 0, data: 0, length: 0 }), UNSUPP);
}

#[test]
fn a_read_only_disk_is_read_and_refuses_writes() {
    let target = Target::new(&[]);
    let mut guest = served(&target, "aio", 512, true);
    assert_eq!(guest.read(0, 0, 512), (OK, vec![0; 512]));
    assert_eq!(guest.write(0, 0, &[1; 512]), IOERR);
    assert_eq!(std::fs::read(target.path("d.img")).unwrap()[..512], [0; 512]);
}

#[test]
fn a_ring_of_nonsense_is_stopped_and_the_other_rings_go_on() {
    let target = Target::new(&[]);
    let mut guest = served(&target, "malloc", 512, false);
    let before = guest.offered(1);
    guest.push(1, 60_000);
    guest.kick(1, before);
    assert_eq!(guest.read(0, 0, 512), (OK, vec![0; 512]));
    assert!(guest.answers(1).is_empty());
    drop(guest.frontend.take());
    assert_eq!(target.call("bdev_get_bdevs", json!(null)).as_array().unwrap().len(), 1);
}

#[test]
fn a_second_vm_is_turned_away_and_the_first_one_is_unharmed() {
    use std::io::Read;
    let target = Target::new(&[]);
    let mut guest = served(&target, "malloc", 512, false);
    // On the same controller, and on another one of the same disk.
    target.call("vhost_create_blk_controller", json!({"ctrlr": "other", "dev_name": "d"}));
    for socket in ["disk", "other"] {
        let mut second = std::os::unix::net::UnixStream::connect(target.path(socket)).unwrap();
        second.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "{socket} kept a second VM");
    }
    assert_eq!(guest.write(0, 0, &[1; 512]), OK);
    // Once the first is gone, the next one is taken.
    drop(guest);
    super::rpc::wait_for_no_session(&target, "disk");
    let mut next = Guest::new(2);
    next.connect(&target.path("other"));
    assert_eq!(next.read(0, 0, 512), (OK, vec![1; 512]));
}

#[test]
fn a_grown_file_is_announced_to_the_guest_and_usable() {
    let target = Target::new(&[]);
    let mut guest = served(&target, "aio", 512, false);
    std::fs::File::options()
        .write(true)
        .open(target.path("d.img"))
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    target.call("bdev_aio_rescan", json!({"name": "d"}));
    assert!(readable(guest.notices.as_ref().unwrap().as_raw_fd(), TIMEOUT), "no notice");
    let mut notice = [0; 12];
    std::io::Read::read_exact(guest.notices.as_mut().unwrap(), &mut notice).unwrap();
    assert_eq!(notice, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.capacity(), (64 << 20) / 512);
    let data = pattern(9, 4096);
    assert_eq!(guest.write(0, 100_000, &data), OK);
    assert_eq!(guest.read(0, 100_000, 4096), (OK, data));
}

#[test]
fn a_deleted_bdev_fails_requests_and_nothing_else() {
    let target = Target::new(&[]);
    let mut guest = served(&target, "malloc", 512, false);
    target.call("bdev_malloc_delete", json!({"name": "d"}));
    assert_eq!(guest.read(0, 0, 512).0, IOERR);
    let controllers = target.call("vhost_get_controllers", json!({"name": "disk"}));
    assert_eq!(controllers[0]["backend_specific"]["block"]["bdev"], json!(null));
}

#[test]
fn what_was_done_is_counted() {
    let target = Target::new(&[]);
    let mut guest = served(&target, "malloc", 512, false);
    guest.write(0, 0, &[1; 4096]);
    guest.read(0, 0, 512);
    guest.read(0, 65_536, 512);
    let stats = target.call("bdev_get_iostat", json!({"name": "d"}));
    let stats = &stats["bdevs"][0];
    assert_eq!((&stats["num_write_ops"], &stats["bytes_written"]), (&json!(1), &json!(4096)));
    assert_eq!((&stats["num_read_ops"], &stats["bytes_read"]), (&json!(1), &json!(512)));
    assert_eq!(stats["num_io_errors"], json!(1));
}
