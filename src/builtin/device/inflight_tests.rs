//! A record that another process left behind, at each point where it can have been killed.

use super::*;

fn record() -> Record {
    let (layout, file) = make(&VhostUserInflight::new(0, 0, 2, 8)).unwrap();
    Record::open(&layout, file).unwrap()
}

fn queue(record: &Record) -> QueueRecord {
    record.queue(1, 8).unwrap()
}

#[test]
fn a_new_record_is_empty_and_begins_at_the_used_ring() {
    let resumed = queue(&record()).resume(5);
    assert_eq!(resumed, Resumed { heads: vec![], next_avail: 5 });
}

#[test]
fn requests_in_flight_come_back_in_the_order_in_which_they_were_taken() {
    let record = record();
    let mut first = queue(&record);
    first.resume(10);
    for head in [6, 2, 4] {
        first.begin(head);
    }
    first.before_used(2);
    first.after_used(2, 11);
    let mut second = queue(&record);
    assert_eq!(second.resume(11), Resumed { heads: vec![6, 4], next_avail: 13 });
    // And the count goes on behind them.
    second.begin(0);
    assert_eq!(queue(&record).resume(11).heads, [6, 4, 0]);
}

#[test]
fn a_request_that_the_guest_has_is_not_served_again() {
    let record = record();
    let mut first = queue(&record);
    first.resume(u16::MAX);
    first.begin(3);
    first.begin(1);
    first.before_used(3);
    // Killed here: the used ring's index is 0 already, the record was not updated.
    assert_eq!(queue(&record).resume(0), Resumed { heads: vec![1], next_avail: 1 });
}

#[test]
fn a_request_that_the_guest_does_not_have_is_served_again() {
    let record = record();
    let mut first = queue(&record);
    first.resume(0);
    first.begin(3);
    first.before_used(3);
    // Killed here: the used ring was not written.
    assert_eq!(queue(&record).resume(0), Resumed { heads: vec![3], next_avail: 1 });
}

#[test]
fn a_record_full_of_nonsense_is_read_within_its_bounds() {
    let record = record();
    let nonsense = queue(&record);
    nonsense.store(VERSION, 1u16);
    nonsense.store(LAST_BATCH_HEAD, 0xffffu16);
    assert_eq!(queue(&record).resume(40000).heads, Vec::<u16>::new());
}

#[test]
fn a_record_that_is_too_small_or_too_large_is_refused() {
    let (layout, file) = make(&VhostUserInflight::new(0, 0, 2, 8)).unwrap();
    let more = VhostUserInflight::new(layout.mmap_size, 0, 3, 128);
    assert!(Record::open(&more, file.try_clone().unwrap()).is_err());
    let beyond = VhostUserInflight::new(layout.mmap_size, 4096, 2, 8);
    assert!(Record::open(&beyond, file).is_err());
    assert!(make(&VhostUserInflight::new(0, 0, 17, 128)).is_err());
    assert!(make(&VhostUserInflight::new(0, 0, 1, 2048)).is_err());
    assert!(record().queue(2, 8).is_none() && record().queue(0, 16).is_none());
}
