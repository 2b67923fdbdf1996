//! Who is at work, what waits, what is due, and when to try again: a plain value.
//!
//! Who is due first is offered first, and an address that did not take the last result gets one attempt
//! at a time, so that a dead controller does not hold back the results for another.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::Offering;
use super::census::{Census, Counts};
use crate::model::task::{TaskId, TaskResult};

/// What became of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The controller took it (any 2xx).
    Taken,
    /// The controller does not wait for it any more (404).
    NotWaiting,
    /// It has to be tried again.
    Again,
}

/// What became of a result after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It is gone from the outbox.
    Gone,
    /// It is offered again after this time.
    After(Duration),
    /// It is too old and was given up.
    TooOld,
}

/// What the book says to a call that wants to be taken in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has one, and is to be written down.
    New,
    /// The same task is just being written down: ask again when that has ended.
    BeingWritten,
    /// The same task is at work, or its result waits.
    Known,
    /// There is none: a code, and the text.
    Full(&'static str, String),
}

/// One result that waits.
#[derive(Debug)]
struct Waiting {
    result: TaskResult,
    /// How old it was when it came into the book, and when that was.
    came: (Duration, Instant),
    /// When it is too old.
    ends: Instant,
    attempts: u32,
    /// `None` while an attempt is under way.
    due: Option<Instant>,
}

/// A task that has no result yet.
#[derive(Debug)]
struct AtWork {
    /// Whether it is written down.
    written: bool,
    call: &'static str,
}

/// Tasks and results.
#[derive(Debug)]
pub(super) struct Book {
    offering: Offering,
    at_work: BTreeMap<TaskId, AtWork>,
    /// Work that goes on after its result was given early.
    going_on: usize,
    waiting: BTreeMap<TaskId, Waiting>,
    /// Addresses that did not take what they were offered last.
    failing: BTreeSet<String>,
    jitter: RandomState,
    counts: Counts,
}

impl Book {
    pub(super) fn new(offering: Offering) -> Book {
        Book {
            offering,
            at_work: BTreeMap::new(),
            going_on: 0,
            waiting: BTreeMap::new(),
            failing: BTreeSet::new(),
            jitter: RandomState::new(),
            counts: Counts::default(),
        }
    }

    /// Takes a task in, of a call of that name.
    pub(super) fn admit(&mut self, task: &TaskId, call: &'static str) -> Place {
        let place = self.place(task);
        match &place {
            Place::New => {
                self.at_work.insert(task.clone(), AtWork { written: false, call });
            }
            Place::Known => self.counts.repeated += 1,
            // It asks again.
            Place::BeingWritten => {}
            Place::Full(code, _) => Counts::one_more(&mut self.counts.refused, code),
        }
        place
    }

    fn place(&self, task: &TaskId) -> Place {
        if self.at_work.get(task).is_some_and(|work| !work.written) {
            return Place::BeingWritten;
        }
        if self.at_work.contains_key(task) || self.waiting.contains_key(task) {
            return Place::Known;
        }
        if self.at_work.len() + self.going_on >= self.offering.max_tasks {
            let most = self.offering.max_tasks;
            return Place::Full(
                "too-many-tasks",
                format!("{most} calls are at work already (http.max_tasks): call again later"),
            );
        }
        if self.at_work.len() + self.waiting.len() >= self.offering.max_pending {
            let most = self.offering.max_pending;
            return Place::Full(
                "outbox-full",
                format!(
                    "{most} results wait for the controller already (callbacks.max_pending): its callback \
                     address must answer before more work is taken in"
                ),
            );
        }
        Place::New
    }

    /// The task is written down: its work begins.
    pub(super) fn begins(&mut self, task: &TaskId) {
        if let Some(work) = self.at_work.get_mut(task) {
            work.written = true;
            Counts::one_more(&mut self.counts.taken_in, work.call);
        }
    }

    /// The task could not be written down: it was never there, and its caller is told this code.
    pub(super) fn refuse(&mut self, task: &TaskId, code: &'static str) {
        self.at_work.remove(task);
        Counts::one_more(&mut self.counts.refused, code);
    }

    /// The work has a result, of this age; it is due at `due`, or as soon as it is written.
    pub(super) fn finish(&mut self, result: TaskResult, age: Duration, now: Instant, due: Instant) {
        self.at_work.remove(&result.task);
        let ends = now + self.offering.max_age.saturating_sub(age);
        let waiting = Waiting { came: (age, now), ends, attempts: 0, due: Some(due), result };
        self.waiting.insert(waiting.result.task.clone(), waiting);
    }

    /// The result is written, or cannot be for now: it is due.
    pub(super) fn written(&mut self, task: &TaskId, now: Instant) {
        let waiting = self.waiting.get_mut(task).filter(|waiting| waiting.attempts == 0);
        if let Some(due) = waiting.and_then(|waiting| waiting.due.as_mut()) {
            *due = now.min(*due);
        }
    }

    /// Work whose result was given early goes on.
    pub(super) fn goes_on(&mut self) {
        self.going_on += 1;
    }

    /// Such work has ended.
    pub(super) fn went_on(&mut self) {
        self.going_on -= 1;
    }

    /// Tasks at work, those that go on after their result with them, and results that wait.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.at_work.len() + self.going_on, self.waiting.len())
    }

    /// How everything stands, and what has happened.
    pub(super) fn census(&self, now: Instant) -> Census {
        let mut at_work = BTreeMap::new();
        self.at_work.values().for_each(|work| Counts::one_more(&mut at_work, work.call));
        let age = |(age, since): (Duration, Instant)| age + now.saturating_duration_since(since);
        Census {
            at_work,
            going_on: self.going_on,
            waiting: self.waiting.len(),
            oldest: self.waiting.values().map(|waiting| age(waiting.came)).max(),
            counts: self.counts.clone(),
        }
    }

    /// When the next result that may be offered is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let held_back = self.held_back();
        let may = self.waiting.values().filter(|w| !held_back.contains(address(&w.result)));
        may.filter_map(|waiting| waiting.due).min()
    }

    /// Failing addresses that have an attempt under way.
    fn held_back(&self) -> BTreeSet<String> {
        let under_way = self.waiting.values().filter(|waiting| waiting.due.is_none());
        let addresses = under_way.map(|waiting| address(&waiting.result));
        addresses.filter(|a| self.failing.contains(*a)).map(str::to_string).collect()
    }

    pub(super) fn take_due(&mut self, now: Instant, most: usize) -> Vec<(TaskResult, u32)> {
        let mut held_back = self.held_back();
        let waiting = self.waiting.values_mut().filter(|w| w.due.is_some_and(|due| due <= now));
        let mut due: Vec<&mut Waiting> = waiting.collect();
        // After a restart all are due at once: then the oldest goes first.
        due.sort_by_key(|waiting| (waiting.due, waiting.ends));
        due.into_iter()
            .filter(|waiting| {
                let to = address(&waiting.result);
                !self.failing.contains(to) || held_back.insert(to.to_string())
            })
            .take(most)
            .map(|waiting| {
                waiting.due = None;
                waiting.attempts += 1;
                (waiting.result.clone(), waiting.attempts)
            })
            .collect()
    }

    pub(super) fn settle(&mut self, task: &TaskId, verdict: Verdict, now: Instant) -> Settled {
        let Some(waiting) = self.waiting.get(task) else { return Settled::Gone };
        let to = address(&waiting.result).to_string();
        let settled = self.judge(task, verdict, now);
        match verdict {
            Verdict::Taken => self.counts.taken += 1,
            Verdict::NotWaiting => self.counts.not_waited_for += 1,
            Verdict::Again => self.counts.failed += 1,
        }
        if settled == Settled::TooOld {
            self.counts.given_up += 1;
        }
        let others = self.waiting.values().any(|waiting| address(&waiting.result) == to);
        match verdict {
            Verdict::Again if others => self.failing.insert(to),
            _ => self.failing.remove(&to),
        };
        settled
    }

    fn judge(&mut self, task: &TaskId, verdict: Verdict, now: Instant) -> Settled {
        let Some(waiting) = self.waiting.get_mut(task) else { return Settled::Gone };
        if verdict != Verdict::Again {
            self.waiting.remove(task);
            return Settled::Gone;
        }
        let delay = delay_after(waiting.attempts, &self.offering);
        // Up to a fifth less, so that results that failed together do not come back together.
        let dice = self.jitter.hash_one((task, waiting.attempts)) % 200;
        let delay = delay.mul_f64(1.0 - f64::from(u32::try_from(dice).unwrap_or(0)) / 1000.0);
        if now + delay >= waiting.ends {
            self.waiting.remove(task);
            return Settled::TooOld;
        }
        waiting.due = Some(now + delay);
        Settled::After(delay)
    }
}

/// Who is called: the callback's address without its path.
fn address(result: &TaskResult) -> &str {
    result.callback_url.split('/').nth(2).unwrap_or_default()
}

/// The time before the next attempt, without jitter.
fn delay_after(attempts: u32, offering: &Offering) -> Duration {
    let doublings = attempts.saturating_sub(1).min(20);
    offering.first_delay.saturating_mul(1 << doublings).min(offering.max_delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(max_tasks: usize, max_pending: usize) -> Book {
        Book::new(Offering { max_tasks, max_pending, ..Offering::example() })
    }

    fn id(n: u32) -> TaskId {
        TaskId::try_from(format!("{n:032x}")).unwrap()
    }

    fn begin(book: &mut Book, n: u32) {
        assert_eq!(book.admit(&id(n), "ensure"), Place::New);
        book.begins(&id(n));
    }

    fn finish(book: &mut Book, n: u32, url: &str, age: Duration, now: Instant) {
        let result = TaskResult {
            task: id(n),
            callback_url: url.to_string(),
            body: "{}".to_string(),
            error: None,
        };
        book.finish(result, age, now, now);
    }

    const URL: &str = "http://c:80/x";
    const NEW: Duration = Duration::ZERO;

    #[test]
    fn a_task_is_known_until_its_result_was_taken() {
        let (mut book, now) = (book(8, 8), Instant::now());
        assert_eq!(book.admit(&id(1), "ensure"), Place::New);
        assert_eq!(book.admit(&id(1), "ensure"), Place::BeingWritten);
        book.begins(&id(1));
        assert_eq!(book.admit(&id(1), "ensure"), Place::Known);
        finish(&mut book, 1, URL, NEW, now);
        assert_eq!(book.admit(&id(1), "ensure"), Place::Known);
        assert_eq!(book.take_due(now, 9).len(), 1);
        assert!(book.take_due(now, 9).is_empty(), "it is under way");
        assert_eq!(book.settle(&id(1), Verdict::Taken, now), Settled::Gone);
        assert_eq!(book.admit(&id(1), "ensure"), Place::New);
        book.refuse(&id(1), "state-unwritable");
        assert_eq!((book.load(), book.admit(&id(1), "ensure")), ((0, 0), Place::New));
    }

    #[test]
    fn tasks_and_results_have_bounds() {
        let (mut book, now) = (book(2, 3), Instant::now());
        begin(&mut book, 1);
        begin(&mut book, 2);
        assert!(matches!(book.admit(&id(3), "ensure"), Place::Full("too-many-tasks", _)));
        finish(&mut book, 1, URL, NEW, now);
        begin(&mut book, 3);
        finish(&mut book, 3, URL, NEW, now);
        assert!(matches!(book.admit(&id(4), "ensure"), Place::Full("outbox-full", _)));
    }

    #[test]
    fn a_result_is_due_when_it_is_written_and_at_the_latest_when_the_disk_had_its_time() {
        let (mut book, now) = (book(8, 8), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        for n in [1, 2] {
            let result = TaskResult {
                task: id(n),
                callback_url: URL.to_string(),
                body: String::new(),
                error: None,
            };
            book.finish(result, NEW, now, after(10));
        }
        assert!(book.take_due(after(9), 9).is_empty());
        book.written(&id(2), after(9));
        assert_eq!(book.take_due(after(9), 9)[0].0.task, id(2));
        assert_eq!(book.take_due(after(10), 9)[0].0.task, id(1));
        // What is written late does not hurry an attempt, nor makes a second one.
        book.settle(&id(1), Verdict::Again, after(10));
        let due = book.next_due();
        book.written(&id(1), after(10));
        book.written(&id(2), after(10));
        assert!(book.next_due() == due && book.take_due(after(10), 9).is_empty());
    }

    #[test]
    fn attempts_come_later_and_later_and_end_at_the_age() {
        for already in [0, 3000] {
            let (mut book, began) = (book(8, 8), Instant::now());
            finish(&mut book, 1, URL, Duration::from_secs(already), began);
            let mut delays = Vec::new();
            let ended = loop {
                let now = book.next_due().unwrap();
                assert_eq!(book.take_due(now, 9).len(), 1);
                match book.settle(&id(1), Verdict::Again, now) {
                    Settled::After(delay) => delays.push(delay.as_secs_f64()),
                    Settled::TooOld => break now,
                    Settled::Gone => panic!("nobody took it"),
                }
            };
            let age = (ended - began).as_secs() + already;
            assert!((3500..3600).contains(&age), "offered for the hour: {age}");
            assert!((0.8..=1.0).contains(&delays[0]), "{delays:?}");
            assert!((1.6..=2.0).contains(&delays[1]), "{delays:?}");
            assert!(delays.iter().all(|delay| *delay <= 60.0));
            assert_eq!(book.load(), (0, 0));
        }
    }

    #[test]
    fn one_that_is_too_old_after_a_restart_is_offered_once() {
        let (mut book, now) = (book(8, 8), Instant::now());
        finish(&mut book, 1, URL, Duration::from_secs(90_000), now);
        assert_eq!(book.take_due(now, 9).len(), 1);
        assert_eq!(book.settle(&id(1), Verdict::Again, now), Settled::TooOld);
    }

    #[test]
    fn of_those_that_are_due_together_the_oldest_goes_first() {
        let (mut book, now) = (book(8, 8), Instant::now());
        for (n, age) in [(1, 5), (2, 60), (3, 0)] {
            finish(&mut book, n, URL, Duration::from_secs(age), now);
        }
        let order: Vec<TaskId> = book.take_due(now, 9).into_iter().map(|(r, _)| r.task).collect();
        assert_eq!(order, [id(2), id(1), id(3)]);
    }

    #[test]
    fn who_is_due_first_goes_first_and_a_failing_address_has_one_attempt_at_a_time() {
        let (mut book, mut now) = (book(64, 64), Instant::now());
        let due = |book: &mut Book, now, most| {
            let due = book.take_due(now, most);
            due.into_iter().map(|(result, _)| result.task).collect::<Vec<_>>()
        };
        for n in 1..=5 {
            finish(&mut book, n, "http://dead:80/x", NEW, now);
        }
        assert_eq!(due(&mut book, now, 2), [id(1), id(2)]);
        book.settle(&id(1), Verdict::Again, now);
        assert!(due(&mut book, now, 9).is_empty());
        assert!(book.next_due().is_none(), "2 is still under way");
        book.settle(&id(2), Verdict::Again, now);
        now += Duration::from_secs(10);
        finish(&mut book, 0, "http://alive:80/x", NEW, now);
        let first = due(&mut book, now, 9);
        assert_eq!(first, [id(3), id(0)], "the oldest of the failing ones, and the other's");
        assert_eq!(book.next_due(), None);
        book.settle(&id(0), Verdict::Taken, now);
        book.settle(&id(3), Verdict::Taken, now);
        assert_eq!(due(&mut book, now, 9).len(), 4, "it takes results again");
    }

    #[test]
    fn what_became_of_calls_and_results_is_counted() {
        let (mut book, now) = (book(2, 9), Instant::now());
        begin(&mut book, 1);
        assert_eq!(book.admit(&id(2), "activate"), Place::New);
        let at_work = BTreeMap::from([("ensure", 1), ("activate", 1)]);
        assert_eq!(book.census(now).at_work, at_work);
        assert_eq!(book.admit(&id(1), "ensure"), Place::Known);
        assert!(matches!(book.admit(&id(3), "ensure"), Place::Full(..)));
        book.refuse(&id(2), "state-unwritable");
        finish(&mut book, 1, URL, Duration::from_secs(90), now);
        finish(&mut book, 4, URL, NEW, now);
        finish(&mut book, 5, URL, NEW, now);
        finish(&mut book, 6, URL, Duration::from_secs(90_000), now);
        let later = now + Duration::from_secs(7);
        let census = book.census(later);
        assert_eq!((census.at_work.len(), census.waiting), (0, 4));
        assert_eq!(census.oldest, Some(Duration::from_secs(90_007)));
        book.take_due(later, 9);
        book.settle(&id(1), Verdict::Taken, later);
        book.settle(&id(4), Verdict::NotWaiting, later);
        book.settle(&id(5), Verdict::Again, later);
        book.settle(&id(6), Verdict::Again, later);
        book.goes_on();
        let expected = Counts {
            taken_in: BTreeMap::from([("ensure", 1)]),
            repeated: 1,
            refused: BTreeMap::from([("state-unwritable", 1), ("too-many-tasks", 1)]),
            taken: 1,
            not_waited_for: 1,
            failed: 2,
            given_up: 1,
        };
        let census = book.census(later);
        assert_eq!(census.counts, expected);
        assert_eq!((census.waiting, census.going_on), (1, 1));
        assert_eq!(census.oldest, Some(Duration::from_secs(7)));
    }
}
