//! The book: who is taken in, what is due, and when it is tried again.

use super::*;
use crate::model::caller::Caller;

fn queue(max_tasks: usize, max_pending: usize) -> TaskQueue {
    TaskQueue::new(Offering::bounded(max_tasks, max_pending))
}

fn id(n: u32) -> TaskId {
    TaskId::try_from(format!("{n:032x}")).unwrap()
}

fn begin(queue: &mut TaskQueue, n: u32) {
    assert_eq!(queue.admit(&id(n), "ensure", LOCAL), QueueAdmission::New);
    queue.begins(&id(n));
}

fn result(n: u32, url: &str) -> TaskResult {
    TaskResult {
        task: id(n),
        callback_url: url.to_string(),
        caller: None,
        body: "{}".to_string(),
        error: None,
    }
}

fn finish(queue: &mut TaskQueue, n: u32, url: &str, age: Duration, now: Instant) {
    queue.finish((result(n, url), age), (LOCAL, Keep::OnDisk), now, now);
}

const LOCAL: Origin =
    Origin { changes: true, client: QuotaClient::V4(std::net::Ipv4Addr::LOCALHOST) };
const URL: &str = "http://c:80/x";
const NEW: Duration = Duration::ZERO;

#[test]
fn a_task_is_known_until_its_result_was_taken() {
    let (mut queue, now) = (queue(8, 8), Instant::now());
    assert_eq!(queue.admit(&id(1), "ensure", LOCAL), QueueAdmission::New);
    assert_eq!(queue.admit(&id(1), "ensure", LOCAL), QueueAdmission::BeingWritten);
    queue.begins(&id(1));
    assert_eq!(queue.admit(&id(1), "ensure", LOCAL), QueueAdmission::Known);
    finish(&mut queue, 1, URL, NEW, now);
    assert_eq!(queue.admit(&id(1), "ensure", LOCAL), QueueAdmission::Known);
    assert_eq!(queue.take_due(now, 9).len(), 1);
    assert!(queue.take_due(now, 9).is_empty(), "it is under way");
    assert_eq!(queue.record_attempt(&id(1), DeliveryOutcome::Taken, now), AfterAttempt::Gone);
    assert_eq!(queue.admit(&id(1), "ensure", LOCAL), QueueAdmission::New);
    queue.refuse(&id(1), Code::StateUnwritable);
    assert_eq!((queue.load(), queue.admit(&id(1), "ensure", LOCAL)), ((0, 0), QueueAdmission::New));
}

#[test]
fn tasks_and_results_have_bounds() {
    let (mut queue, now) = (queue(2, 3), Instant::now());
    begin(&mut queue, 1);
    begin(&mut queue, 2);
    assert!(matches!(
        queue.admit(&id(3), "ensure", LOCAL),
        QueueAdmission::Full(Code::TooManyTasks, _)
    ));
    finish(&mut queue, 1, URL, NEW, now);
    begin(&mut queue, 3);
    finish(&mut queue, 3, URL, NEW, now);
    assert!(matches!(
        queue.admit(&id(4), "ensure", LOCAL),
        QueueAdmission::Full(Code::OutboxFull, _)
    ));
}

#[test]
fn a_result_is_due_when_it_is_written_and_at_the_latest_when_the_disk_had_its_time() {
    let (mut queue, now) = (queue(8, 8), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    for n in [1, 2] {
        queue.finish((result(n, URL), NEW), (LOCAL, Keep::OnDisk), now, after(10));
    }
    assert!(queue.take_due(after(9), 9).is_empty());
    queue.written(&id(2), after(9));
    assert_eq!(queue.take_due(after(9), 9)[0].0.task, id(2));
    assert_eq!(queue.take_due(after(10), 9)[0].0.task, id(1));
    // What is written late does not hurry an attempt, nor makes a second one.
    queue.record_attempt(&id(1), DeliveryOutcome::Again, after(10));
    let due = queue.next_due();
    queue.written(&id(1), after(10));
    queue.written(&id(2), after(10));
    assert!(queue.next_due() == due && queue.take_due(after(10), 9).is_empty());
}

#[test]
fn attempts_come_later_and_later_and_end_at_the_age() {
    for already in [0, 3000] {
        let (mut queue, began) = (queue(8, 8), Instant::now());
        finish(&mut queue, 1, URL, Duration::from_secs(already), began);
        let mut delays = Vec::new();
        let ended = loop {
            let now = queue.next_due().unwrap();
            assert_eq!(queue.take_due(now, 9).len(), 1);
            match queue.record_attempt(&id(1), DeliveryOutcome::Again, now) {
                AfterAttempt::After(delay) => delays.push(delay.as_secs_f64()),
                AfterAttempt::TooOld => break now,
                AfterAttempt::Gone => panic!("nobody took it"),
            }
        };
        let age = (ended - began).as_secs() + already;
        assert!((3500..3600).contains(&age), "offered for the hour: {age}");
        assert!((0.8..=1.0).contains(&delays[0]), "{delays:?}");
        assert!((1.6..=2.0).contains(&delays[1]), "{delays:?}");
        assert!(delays.iter().all(|delay| *delay <= 60.0));
        assert_eq!(queue.load(), (0, 0));
    }
}

#[test]
fn one_that_is_too_old_after_a_restart_is_offered_once() {
    let (mut queue, now) = (queue(8, 8), Instant::now());
    finish(&mut queue, 1, URL, Duration::from_secs(90_000), now);
    assert_eq!(queue.take_due(now, 9).len(), 1);
    assert_eq!(queue.record_attempt(&id(1), DeliveryOutcome::Again, now), AfterAttempt::TooOld);
}

#[test]
fn of_those_that_are_due_together_the_oldest_goes_first() {
    let (mut queue, now) = (queue(8, 8), Instant::now());
    for (n, age) in [(1, 5), (2, 60), (3, 0)] {
        finish(&mut queue, n, URL, Duration::from_secs(age), now);
    }
    let order: Vec<TaskId> = queue.take_due(now, 9).into_iter().map(|(r, _)| r.task).collect();
    assert_eq!(order, [id(2), id(1), id(3)]);
}

/// The tasks whose results are offered now.
fn due(queue: &mut TaskQueue, now: Instant, most: usize) -> Vec<TaskId> {
    let due = queue.take_due(now, most);
    due.into_iter().map(|(result, _)| result.task).collect()
}

#[test]
fn who_is_due_first_goes_first_and_a_failing_address_leaves_attempts_to_others() {
    let mut offering = Offering::bounded(64, 64);
    offering.callbacks.parallel = 4;
    let (mut queue, mut now) = (TaskQueue::new(offering), Instant::now());
    for n in 1..=5 {
        finish(&mut queue, n, "http://dead:80/x", NEW, now);
    }
    assert_eq!(due(&mut queue, now, 2), [id(1), id(2)]);
    queue.record_attempt(&id(1), DeliveryOutcome::Again, now);
    assert_eq!(due(&mut queue, now, 9), [id(3)], "one that was not offered yet");
    assert!(queue.next_due().is_none(), "2 and 3 are under way");
    queue.record_attempt(&id(2), DeliveryOutcome::Again, now);
    queue.record_attempt(&id(3), DeliveryOutcome::Again, now);
    now += Duration::from_secs(10);
    finish(&mut queue, 0, "http://alive:80/x", NEW, now);
    let first = due(&mut queue, now, 9);
    assert_eq!(first, [id(4), id(5), id(0)], "half for the failing one, and the other's");
    queue.record_attempt(&id(0), DeliveryOutcome::Taken, now);
    queue.record_attempt(&id(4), DeliveryOutcome::Again, now);
    assert_eq!(due(&mut queue, now, 9).len(), 1, "of those that were offered before a quarter");
    assert_eq!(queue.next_due(), None);
}

#[test]
fn an_address_that_failed_waits_for_none_at_which_others_hang() {
    let (mut queue, mut now) = (queue(64, 64), Instant::now());
    for n in 1..=50 {
        finish(&mut queue, n, "http://silent:80/x", NEW, now);
    }
    finish(&mut queue, 60, URL, NEW, now);
    finish(&mut queue, 61, URL, NEW, now);
    while let Some(task) = due(&mut queue, now, 1).first() {
        queue.record_attempt(task, DeliveryOutcome::Again, now);
    }
    now += Duration::from_secs(2);
    // What was due first, and hangs, takes all that such results share; one for the other address is left.
    let offered = due(&mut queue, now, 64);
    assert!(offered.contains(&id(60)) || offered.contains(&id(61)), "{offered:?}");
    assert!(offered.len() < 50, "{}", offered.len());
}

#[test]
fn a_result_that_hangs_holds_back_none_of_the_same_controller() {
    let (mut queue, mut now) = (queue(64, 64), Instant::now());
    for n in 1..=3 {
        finish(&mut queue, n, URL, NEW, now);
    }
    assert_eq!(due(&mut queue, now, 9).len(), 3);
    queue.record_attempt(&id(1), DeliveryOutcome::Again, now);
    queue.record_attempt(&id(2), DeliveryOutcome::Again, now);
    now += Duration::from_secs(2);
    let mut again = due(&mut queue, now, 9);
    again.sort();
    assert_eq!(again, [id(1), id(2)], "3 hangs all the time");
    finish(&mut queue, 4, URL, NEW, now);
    assert_eq!(due(&mut queue, now, 9), [id(4)]);
}

#[test]
fn when_an_address_takes_results_again_all_that_wait_for_it_are_due() {
    let (mut queue, began) = (queue(64, 64), Instant::now());
    let mut now = began;
    for n in 1..=4 {
        finish(&mut queue, n, URL, NEW, now);
    }
    while now < began + Duration::from_secs(30) {
        for task in due(&mut queue, now, 9) {
            queue.record_attempt(&task, DeliveryOutcome::Again, now);
        }
        now += Duration::from_millis(100);
    }
    now = queue.next_due().unwrap();
    let first = due(&mut queue, now, 1);
    queue.record_attempt(&first[0], DeliveryOutcome::Taken, now);
    assert_eq!(due(&mut queue, now + Duration::from_secs(1), 9).len(), 3);
    // One that is refused alone is not offered with each that is taken.
    let (mut queue, mut now) = (self::queue(64, 64), began);
    finish(&mut queue, 1, URL, NEW, now);
    let mut offered = 0;
    for n in 2..102 {
        finish(&mut queue, n, URL, NEW, now);
        for task in due(&mut queue, now, 9) {
            let verdict =
                if task == id(1) { DeliveryOutcome::Again } else { DeliveryOutcome::Taken };
            offered += u32::from(task == id(1));
            queue.record_attempt(&task, verdict, now);
        }
        now += Duration::from_millis(100);
    }
    assert!((3..=11).contains(&offered), "{offered} times in 10 s");
}

#[test]
fn an_address_is_one_with_its_scheme_and_port() {
    let of = |url: &str| address(&result(1, url)).to_string();
    assert_eq!(of("http://c:80/x/y?z"), "http://c:80");
    assert_ne!(of("https://c:80/x"), of("http://c:80/x"));
    assert_eq!(of("http://c"), "http://c");
}

/// One more of a caller; the code of its refusal, and its text.
fn admit(queue: &mut TaskQueue, n: u32, changes: bool, caller: &str) -> Result<(), (Code, String)> {
    let origin = Origin::new(changes, Some(caller.parse().unwrap()));
    match queue.admit(&id(n), "ensure", origin) {
        QueueAdmission::New => Ok(()),
        QueueAdmission::Full(code, text) => Err((code, text)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn calls_that_only_look_take_no_place_of_those_that_change_the_node() {
    let mut queue = queue(4, 4);
    for n in 0..4 {
        admit(&mut queue, n, false, ["10.0.0.1", "10.0.0.2"][n as usize % 2]).unwrap();
    }
    let (code, text) = admit(&mut queue, 9, false, "10.0.0.3").unwrap_err();
    assert_eq!(code, Code::TooManyTasks);
    assert_eq!(
        text,
        "there are all of the 4 calls that only look at work (http.max_tasks): call again later"
    );
    for n in 10..13 {
        admit(&mut queue, n, true, "10.0.0.1").unwrap();
    }
    let now = Instant::now();
    let looks = Origin::new(false, Some(Caller::Here));
    for n in 0..4 {
        queue.finish((result(n, URL), NEW), (looks, Keep::InMemory), now, now);
    }
    let (code, _) = admit(&mut queue, 9, false, "10.0.0.3").unwrap_err();
    assert_eq!(code, Code::OutboxFull);
    admit(&mut queue, 13, true, "10.0.0.3").unwrap();
}

#[test]
fn one_caller_alone_fills_no_bound() {
    let mut queue = queue(8, 64);
    for n in 0..6 {
        admit(&mut queue, n, true, "10.0.0.1").unwrap();
    }
    let (code, text) = admit(&mut queue, 6, true, "10.0.0.1").unwrap_err();
    assert_eq!(code, Code::TooManyTasks);
    assert!(text.starts_with("10.0.0.1 has its share of 6 of the 8 calls that change"), "{text}");
    admit(&mut queue, 6, true, "10.0.0.2").unwrap();
    admit(&mut queue, 7, true, "local").unwrap();
    let (_, text) = admit(&mut queue, 8, true, "10.0.0.3").unwrap_err();
    assert!(text.starts_with("there are all of the 8 calls"), "{text}");
}

#[test]
fn the_results_of_a_network_of_ipv6_count_together() {
    let (mut queue, now) = (queue(64, 4), Instant::now());
    for (n, caller) in ["fd00::1", "fd00::2", "fd00:0:0:0:ffff::"].iter().enumerate() {
        let n = u32::try_from(n).unwrap();
        admit(&mut queue, n, true, caller).unwrap();
        let origin = Origin::new(true, Some(caller.parse().unwrap()));
        queue.finish((result(n, URL), NEW), (origin, Keep::OnDisk), now, now);
    }
    let (code, text) = admit(&mut queue, 3, true, "fd00::9").unwrap_err();
    assert_eq!(code, Code::OutboxFull);
    assert!(text.starts_with("fd00::/64 has its share of 3 of the 4 results"), "{text}");
    admit(&mut queue, 3, true, "fd00:0:0:1::1").unwrap();
}

#[test]
fn a_caller_with_many_addresses_that_hang_has_its_share_of_the_attempts_at_one_time() {
    let mut offering = Offering::bounded(8, 64);
    offering.callbacks.parallel = 4;
    let (mut queue, now) = (TaskQueue::new(offering), Instant::now());
    let of = |caller: &str| Origin::new(true, Some(caller.parse().unwrap()));
    for n in 1..=6 {
        let url = format!("http://silent:{n}/");
        queue.finish((result(n, &url), NEW), (of("10.0.0.1"), Keep::OnDisk), now, now);
    }
    assert_eq!(due(&mut queue, now, 4), [id(1), id(2), id(3)]);
    assert_eq!(queue.next_due(), None, "nothing is due that may be offered");
    queue.finish((result(9, URL), NEW), (of("10.0.0.2"), Keep::OnDisk), now, now);
    assert_eq!(queue.next_due(), Some(now));
    assert_eq!(due(&mut queue, now, 1), [id(9)]);
    queue.record_attempt(&id(2), DeliveryOutcome::Taken, now);
    assert_eq!(due(&mut queue, now, 4), [id(4)]);
}

#[test]
fn what_became_of_calls_and_results_is_counted() {
    let (mut queue, now) = (queue(2, 9), Instant::now());
    begin(&mut queue, 1);
    assert_eq!(queue.admit(&id(2), "activate", LOCAL), QueueAdmission::New);
    let at_work = BTreeMap::from([("ensure", 1), ("activate", 1)]);
    assert_eq!(queue.census(now).at_work, at_work);
    assert_eq!(queue.admit(&id(1), "ensure", LOCAL), QueueAdmission::Known);
    assert!(matches!(queue.admit(&id(3), "ensure", LOCAL), QueueAdmission::Full(..)));
    queue.refuse(&id(2), Code::StateUnwritable);
    finish(&mut queue, 1, URL, Duration::from_secs(90), now);
    finish(&mut queue, 4, URL, NEW, now);
    finish(&mut queue, 5, URL, NEW, now);
    finish(&mut queue, 6, URL, Duration::from_secs(90_000), now);
    let later = now + Duration::from_secs(7);
    let census = queue.census(later);
    assert_eq!((census.at_work.len(), census.waiting), (0, 4));
    assert_eq!(census.oldest, Some(Duration::from_secs(90_007)));
    queue.take_due(later, 9);
    queue.record_attempt(&id(1), DeliveryOutcome::Taken, later);
    queue.record_attempt(&id(4), DeliveryOutcome::NotWaiting, later);
    queue.record_attempt(&id(5), DeliveryOutcome::Again, later);
    queue.record_attempt(&id(6), DeliveryOutcome::Again, later);
    queue.goes_on(LOCAL);
    let expected = Counts {
        taken_in: BTreeMap::from([("ensure", 1)]),
        repeated: 1,
        refused: BTreeMap::from([(Code::StateUnwritable, 1), (Code::TooManyTasks, 1)]),
        taken: 1,
        not_waited_for: 1,
        failed: 2,
        given_up: 1,
    };
    let census = queue.census(later);
    assert_eq!(census.counts, expected);
    assert_eq!((census.waiting, census.going_on), (1, 1));
    assert_eq!(census.oldest, Some(Duration::from_secs(7)));
}
