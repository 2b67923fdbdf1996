//! Guests over the death of their target.

use nix::sys::signal::Signal;
use serde_json::json;

use super::disks::pattern;
use super::guest::{Ask, DATA, Guest, OK, OUT, SLOTS};
use super::process::Target;

const LENGTH: u32 = 128 << 10;

fn provide(target: &Target) {
    let params = json!({"name": "d", "filename": target.path("d.img"), "block_size": 512});
    target.call("bdev_aio_create", params);
    target.call("vhost_create_blk_controller", json!({"ctrlr": "disk", "dev_name": "d"}));
}

/// Offers a write on every slot of both rings and returns while they are under way.
fn offer(guest: &mut Guest, round: u64) {
    for ring in 0..2usize {
        let before = guest.offered(ring);
        for slot in 0..SLOTS {
            let nth = ring as u64 * u64::from(SLOTS) + u64::from(slot);
            let data = DATA + nth * u64::from(LENGTH);
            guest.fill(data, &pattern(round * 1000 + nth, LENGTH as usize));
            let sector = nth * u64::from(LENGTH) / 512;
            guest.offer(ring, slot, Ask { kind: OUT, sector, data, length: LENGTH });
        }
        guest.kick(ring, before);
    }
}

#[test]
fn a_killed_target_resumes_without_a_lost_or_doubled_request() {
    let mut target = Target::new(&[]);
    let bytes = 2 * u64::from(SLOTS) * u64::from(LENGTH);
    target.image("d.img", bytes);
    provide(&target);
    let mut guest = Guest::new(2);
    guest.connect(&target.path("disk"));
    let mut resumed = 0;
    for round in 0..64 {
        if round >= 8 && resumed > 0 {
            break;
        }
        offer(&mut guest, round);
        // Killed at one time or another: before it has looked, in the middle, after its first answer.
        let mut answers = 0;
        match round % 4 {
            0 => answers += guest.wait(0).len(),
            nth => std::thread::sleep(std::time::Duration::from_micros(nth * round * 10)),
        }
        target.end(Signal::SIGKILL);
        drop(guest.frontend.take());
        // What the guest was given before the death counts once; the record has the rest.
        answers += guest.answers(0).len() + guest.answers(1).len();
        resumed += guest.recorded();
        target.start();
        provide(&target);
        guest.connect(&target.path("disk"));
        for ring in 0..2 {
            let more = guest.finish(ring);
            assert!(more.iter().all(|(_, status)| *status == OK));
            answers += more.len();
        }
        assert_eq!(answers, 2 * usize::from(SLOTS), "round {round}");
        assert_eq!(guest.recorded(), 0, "round {round}");
        for nth in 0..2 * u64::from(SLOTS) {
            let (status, read) = guest.read(1, nth * u64::from(LENGTH) / 512, LENGTH);
            assert_eq!(status, OK);
            assert!(read == pattern(round * 1000 + nth, LENGTH as usize), "round {round}, {nth}");
        }
    }
    assert!(resumed > 0, "no request was in flight at any of the deaths");
}

#[test]
fn a_target_that_is_stopped_with_a_guest_ends_quickly_and_the_guest_goes_on_with_the_next() {
    let mut target = Target::new(&[]);
    target.image("d.img", 2 * u64::from(SLOTS) * u64::from(LENGTH));
    provide(&target);
    let mut guest = Guest::new(2);
    guest.connect(&target.path("disk"));
    offer(&mut guest, 1);
    let begun = std::time::Instant::now();
    let (status, said) = target.end(Signal::SIGTERM);
    assert!(status.success(), "{said}");
    assert!(begun.elapsed().as_millis() < 900, "{:?}", begun.elapsed());
    assert!(!target.path("disk").exists() && !target.path("rpc.sock").exists());
    drop(guest.frontend.take());
    let mut answers = guest.answers(0).len() + guest.answers(1).len();
    target.start();
    provide(&target);
    guest.connect(&target.path("disk"));
    answers += guest.finish(0).len() + guest.finish(1).len();
    assert_eq!(answers, 2 * usize::from(SLOTS));
}
