//! Results on their way to the controller, and the tasks that will have one.
//!
//! ```text
//! admit ──▶ Slot (at work) ──finish──▶ Outbox (waits) ──offer──▶ taken | 404 | too old: gone
//! ```
//! The book is a plain value: what is admitted, what is due, when to try again. Who is due first is
//! offered first, and an address that did not take the last result gets one attempt at a time, so that
//! a dead controller does not hold back the results for another. It is kept in memory;
//! `Outbox::finish` is the one door through which every result passes, and the place where it is
//! to be put on disk before the work is reported done.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::model::fault::Fault;
use crate::model::task::{TaskId, TaskResult};

/// How results are offered.
#[derive(Debug, Clone)]
pub struct Offering {
    /// How long a result is offered.
    pub max_age: Duration,
    /// Before the second attempt; doubled with each one after.
    pub first_delay: Duration,
    /// The longest time between two attempts.
    pub max_delay: Duration,
    /// Tasks at work at one time.
    pub max_tasks: usize,
    /// Results that may wait.
    pub max_pending: usize,
}

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

/// One result that waits.
#[derive(Debug)]
struct Waiting {
    result: TaskResult,
    since: Instant,
    attempts: u32,
    /// `None` while an attempt is under way.
    due: Option<Instant>,
}

/// Tasks and results, as a plain value.
#[derive(Debug)]
struct Book {
    offering: Offering,
    at_work: HashSet<TaskId>,
    /// Work that goes on after its result was given early.
    going_on: usize,
    waiting: BTreeMap<TaskId, Waiting>,
    /// Addresses that did not take what they were offered last.
    failing: BTreeSet<String>,
    jitter: RandomState,
}

/// What became of a call that wants to be admitted.
#[derive(Debug)]
pub enum Admission {
    /// Do the work and finish the slot.
    Work(Slot),
    /// The same task is at work, or its result is on its way: do nothing.
    Known,
    /// There are too many: refuse it.
    Full(Fault),
}

/// The handle of the outbox.
#[derive(Debug, Clone)]
pub struct Outbox {
    book: Arc<Mutex<Book>>,
    news: Arc<Notify>,
    /// Told whenever a result was settled, or work ended whose result was given early.
    settled: Arc<Notify>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(offering: Offering) -> Outbox {
        let book = Book {
            offering,
            at_work: HashSet::new(),
            going_on: 0,
            waiting: BTreeMap::new(),
            failing: BTreeSet::new(),
            jitter: RandomState::new(),
        };
        Outbox { book: Arc::new(Mutex::new(book)), news: Arc::default(), settled: Arc::default() }
    }

    /// Takes a task in.
    pub fn admit(&self, task: &TaskId, callback_url: &str) -> Admission {
        let mut book = self.book();
        if book.at_work.contains(task) || book.waiting.contains_key(task) {
            return Admission::Known;
        }
        if book.at_work.len() + book.going_on >= book.offering.max_tasks {
            let most = book.offering.max_tasks;
            return Admission::Full(Fault::new(
                "too-many-tasks",
                format!("{most} calls are at work already (http.max_tasks): call again later"),
            ));
        }
        if book.at_work.len() + book.waiting.len() >= book.offering.max_pending {
            let most = book.offering.max_pending;
            return Admission::Full(Fault::new(
                "outbox-full",
                format!(
                    "{most} results wait for the controller already (callbacks.max_pending): its callback \
                     address must answer before more work is taken in"
                ),
            ));
        }
        book.at_work.insert(task.clone());
        let slot = Slot {
            outbox: self.clone(),
            task: Some(task.clone()),
            callback_url: callback_url.to_string(),
        };
        Admission::Work(slot)
    }

    /// Tasks at work, those that go on after their result with them, and results that wait.
    pub fn load(&self) -> (usize, usize) {
        let book = self.book();
        (book.at_work.len() + book.going_on, book.waiting.len())
    }

    /// Results that are due now, each with the number of its attempt, from 1; each is under way until
    /// [`Outbox::settle`] is called for it.
    pub fn take_due(&self, now: Instant, most: usize) -> Vec<(TaskResult, u32)> {
        self.book().take_due(now, most)
    }

    /// When the next result that may be offered is due.
    pub fn next_due(&self) -> Option<Instant> {
        let book = self.book();
        let held_back = book.held_back();
        let may = book.waiting.values().filter(|w| !held_back.contains(address(&w.result)));
        may.filter_map(|waiting| waiting.due).min()
    }

    /// Notes what became of an attempt.
    pub fn settle(&self, task: &TaskId, verdict: Verdict, now: Instant) -> Settled {
        let settled = self.book().settle(task, verdict, now);
        self.settled.notify_waiters();
        settled
    }

    /// Returns when no task is at work and no result waits. Cancel-safe.
    pub async fn empty(&self) {
        loop {
            // Listening before looking: what is settled in between is heard.
            let settled = self.settled.notified();
            if self.load() == (0, 0) {
                return;
            }
            settled.await;
        }
    }

    /// Returns when a result was added since the last call. Cancel-safe.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    fn finish(&self, result: TaskResult) {
        let mut book = self.book();
        book.at_work.remove(&result.task);
        let now = Instant::now();
        let waiting = Waiting { since: now, attempts: 0, due: Some(now), result };
        book.waiting.insert(waiting.result.task.clone(), waiting);
        drop(book);
        self.news.notify_one();
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Book {
    /// Failing addresses that have an attempt under way.
    fn held_back(&self) -> BTreeSet<String> {
        let under_way = self.waiting.values().filter(|waiting| waiting.due.is_none());
        let addresses = under_way.map(|waiting| address(&waiting.result));
        addresses.filter(|a| self.failing.contains(*a)).map(str::to_string).collect()
    }

    fn take_due(&mut self, now: Instant, most: usize) -> Vec<(TaskResult, u32)> {
        let mut held_back = self.held_back();
        let waiting = self.waiting.values_mut().filter(|w| w.due.is_some_and(|due| due <= now));
        let mut due: Vec<&mut Waiting> = waiting.collect();
        due.sort_by_key(|waiting| waiting.due);
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

    fn settle(&mut self, task: &TaskId, verdict: Verdict, now: Instant) -> Settled {
        let Some(waiting) = self.waiting.get(task) else { return Settled::Gone };
        let to = address(&waiting.result).to_string();
        let settled = self.judge(task, verdict, now);
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
        if now + delay >= waiting.since + self.offering.max_age {
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

/// A task at work. It always ends in a result: when it is dropped unfinished, the controller hears
/// that the agent broke.
#[derive(Debug)]
pub struct Slot {
    outbox: Outbox,
    task: Option<TaskId>,
    callback_url: String,
}

impl Slot {
    /// The work is done; `error` is for work that broke outside its own error handling.
    pub fn finish(mut self, body: String, error: Option<String>) {
        self.end(body, error);
    }

    /// The result is due before the work is done: it is offered now, and the work keeps its place
    /// among the tasks until the returned value is dropped.
    pub fn finish_early(mut self, body: String) -> GoesOn {
        self.outbox.book().going_on += 1;
        let goes_on = GoesOn { outbox: self.outbox.clone() };
        self.end(body, None);
        goes_on
    }

    fn end(&mut self, body: String, error: Option<String>) {
        let Some(task) = self.task.take() else { return };
        let callback_url = std::mem::take(&mut self.callback_url);
        self.outbox.finish(TaskResult { task, callback_url, body, error });
    }
}

/// The place of work whose result was given already.
#[derive(Debug)]
pub struct GoesOn {
    outbox: Outbox,
}

impl Drop for GoesOn {
    fn drop(&mut self) {
        self.outbox.book().going_on -= 1;
        self.outbox.settled.notify_waiters();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let text = "the agent broke off this call".to_string();
        self.end(format!("{{\"success\":false,\"error\":\"{text}\"}}"), Some(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(max_tasks: usize, max_pending: usize) -> Outbox {
        Outbox::new(Offering {
            max_age: Duration::from_secs(3600),
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            max_tasks,
            max_pending,
        })
    }

    fn id(n: u32) -> TaskId {
        TaskId::try_from(format!("{n:032x}")).unwrap()
    }

    fn slot(outbox: &Outbox, n: u32) -> Slot {
        match outbox.admit(&id(n), "http://c/") {
            Admission::Work(slot) => slot,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_known_until_its_result_was_taken() {
        let outbox = outbox(8, 8);
        let work = slot(&outbox, 1);
        assert!(matches!(outbox.admit(&id(1), "http://c/"), Admission::Known));
        work.finish("{}".into(), None);
        assert!(matches!(outbox.admit(&id(1), "http://c/"), Admission::Known));
        let due = outbox.take_due(Instant::now(), 9);
        assert_eq!(due.len(), 1);
        assert!(outbox.take_due(Instant::now(), 9).is_empty(), "it is under way");
        assert_eq!(outbox.settle(&id(1), Verdict::Taken, Instant::now()), Settled::Gone);
        assert!(matches!(outbox.admit(&id(1), "http://c/"), Admission::Work(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_and_results_have_bounds() {
        let outbox = outbox(2, 3);
        let (first, _second) = (slot(&outbox, 1), slot(&outbox, 2));
        assert!(
            matches!(outbox.admit(&id(3), "http://c/"), Admission::Full(f) if f.code == "too-many-tasks")
        );
        first.finish("{}".into(), None);
        slot(&outbox, 3).finish("{}".into(), None);
        assert!(
            matches!(outbox.admit(&id(4), "http://c/"), Admission::Full(f) if f.code == "outbox-full")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_come_later_and_later_and_end_at_the_age() {
        let outbox = outbox(8, 8);
        slot(&outbox, 1).finish("{}".into(), None);
        let began = Instant::now();
        let mut delays = Vec::new();
        loop {
            tokio::time::sleep_until(outbox.next_due().unwrap()).await;
            assert_eq!(outbox.take_due(Instant::now(), 9).len(), 1);
            match outbox.settle(&id(1), Verdict::Again, Instant::now()) {
                Settled::After(delay) => delays.push(delay.as_secs_f64()),
                Settled::TooOld => break,
                Settled::Gone => panic!("nobody took it"),
            }
        }
        assert!(began.elapsed() > Duration::from_secs(3500), "offered for the hour");
        assert!((0.8..=1.0).contains(&delays[0]) && (1.6..=2.0).contains(&delays[1]), "{delays:?}");
        assert!(delays.iter().all(|delay| *delay <= 60.0));
        assert_eq!(outbox.load(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_due_first_goes_first_and_a_failing_address_has_one_attempt_at_a_time() {
        let outbox = outbox(64, 64);
        let admit = |n: u32, url: &str| match outbox.admit(&id(n), url) {
            Admission::Work(slot) => slot.finish("{}".into(), None),
            other => panic!("{other:?}"),
        };
        let due = |most| {
            let due = outbox.take_due(Instant::now(), most);
            due.into_iter().map(|(result, _)| result.task).collect::<Vec<_>>()
        };
        for n in 1..=5 {
            admit(n, "http://dead:80/x");
        }
        assert_eq!(due(2), [id(1), id(2)]);
        outbox.settle(&id(1), Verdict::Again, Instant::now());
        assert!(due(9).is_empty() && outbox.next_due().is_none(), "2 is still under way");
        outbox.settle(&id(2), Verdict::Again, Instant::now());
        tokio::time::advance(Duration::from_secs(10)).await;
        admit(0, "http://alive:80/x");
        assert_eq!(due(9), [id(3), id(0)], "the oldest of the failing ones, and the other's");
        assert_eq!(outbox.next_due(), None);
        outbox.settle(&id(0), Verdict::Taken, Instant::now());
        outbox.settle(&id(3), Verdict::Taken, Instant::now());
        assert_eq!(due(9).len(), 4, "it takes results again");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_goes_on_after_its_result_keeps_its_place() {
        let outbox = outbox(1, 8);
        let goes_on = slot(&outbox, 1).finish_early("{}".into());
        assert_eq!(outbox.take_due(Instant::now(), 9).len(), 1, "the result is offered");
        outbox.settle(&id(1), Verdict::Taken, Instant::now());
        assert_eq!(outbox.load(), (1, 0));
        assert!(
            matches!(outbox.admit(&id(2), "http://c/"), Admission::Full(f) if f.code == "too-many-tasks")
        );
        let empty = tokio::time::timeout(Duration::from_secs(9), outbox.empty());
        assert!(empty.await.is_err(), "a drain waits for it");
        let (empty, ()) = tokio::join!(outbox.empty(), async { drop(goes_on) });
        assert_eq!(empty, ());
        assert!(matches!(outbox.admit(&id(2), "http://c/"), Admission::Work(_)));
    }

    #[test]
    fn work_that_is_dropped_still_ends_in_a_result() {
        let outbox = outbox(8, 8);
        drop(slot(&outbox, 1));
        let due = outbox.take_due(Instant::now(), 9);
        let (result, _) = &due[0];
        assert!(result.error.is_some() && result.body.contains("\"success\":false"));
    }
}
