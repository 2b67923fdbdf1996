//! Log of dirty pages, as a frontend that migrates its guest uses it.

use serde_json::json;

use super::guest::{Ask, DATA, GET_ID, Guest, IN, OK, OUT};
use super::process::Target;

/// Pages of the first ring that each answer changes: its used ring, and the page of the first slot's status.
const RING_PAGES: [u64; 2] = [0x2000, 0x4000];

fn logged_are(kind: u32, data: u64, length: u32, pages: &[u64]) {
    let target = Target::new(&[]);
    let file = target.image("d.img", 32 << 20);
    let params = json!({"name": "d", "filename": file, "block_size": 512});
    target.call("bdev_aio_create", params);
    target.call("vhost_create_blk_controller", json!({"ctrlr": "disk", "dev_name": "d"}));
    let mut guest = Guest::new(1);
    guest.connect(&target.path("disk"));
    let ask = Ask { kind, sector: 0, data, length };
    let log = guest.set_log();
    assert_eq!(guest.ask(0, ask), OK);
    assert!(Guest::marked(&log).is_empty());
    guest.switch_log(true);
    assert_eq!(guest.ask(0, ask), OK);
    let expected: Vec<u64> = RING_PAGES.iter().chain(pages).copied().collect();
    assert_eq!(Guest::marked(&log), expected);
    let next = guest.set_log();
    assert_eq!(guest.ask(0, ask), OK);
    assert_eq!(Guest::marked(&next), expected);
    guest.switch_log(false);
    let last = guest.set_log();
    assert_eq!(guest.ask(0, ask), OK);
    assert!(Guest::marked(&last).is_empty());
}

#[test]
fn a_read_marks_the_pages_of_its_data() {
    logged_are(IN, DATA, 8192, &[DATA, DATA + 4096]);
}

#[test]
fn a_read_that_is_not_aligned_marks_the_pages_of_its_data() {
    logged_are(IN, DATA + 4095, 512, &[DATA, DATA + 4096]);
}

#[test]
fn a_write_marks_no_data() {
    logged_are(OUT, DATA, 8192, &[]);
}

#[test]
fn a_serial_number_is_marked() {
    logged_are(GET_ID, DATA + 4090, 20, &[DATA, DATA + 4096]);
}
