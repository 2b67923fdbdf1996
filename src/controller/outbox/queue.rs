//! Ledger of running tasks and pending results: admission limits, due times and retries; a plain value.
//!
//! The result due first is offered first. An address that did not accept the last result is failing: it always gets one
//! attempt at a time. More attempts at failing addresses start only while fewer than half of all attempts go there; for
//! results that were offered before, also only while fewer than a quarter are such repeats. So a dead controller does
//! not hold back the results for another, nor does one result that hangs hold back the next one for the same address.
//! Once an address accepts a result again, all pending for it are due. A client that names many unresponsive addresses
//! has at most its quota of the attempts.
//!
//! Calls that change the node and read-only calls have limits of their own, each `Offering::max_tasks` and
//! `CallbackPolicy::max_pending`, and no client gets more than its quota of a limit (`model::quota`).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::census::{Census, Counts};
use super::origin::Origin;
use super::retry::retry_delay;
use super::{Keep, Offering};
use crate::model::code::Code;
use crate::model::quota::QuotaClient;
use crate::model::task::{TaskId, TaskResult};

/// Divisor of a result's delay: at least an eighth of the delay passes, even if the address accepts other results
/// meanwhile.
const HURRIED: u32 = 8;

/// Outcome of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// Accepted by the controller (any 2xx).
    Taken,
    /// Not awaited by the controller any more (404).
    NotWaiting,
    /// Failed, to be retried.
    Again,
}

/// State of a result after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterAttempt {
    /// Removed from the outbox.
    Gone,
    /// To be offered again after this time.
    After(Duration),
    /// Expired and dropped.
    TooOld,
}

/// Decision on a call's admission.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum QueueAdmission {
    /// Admitted, and to be written down.
    New,
    /// Duplicate of a task that is being written down: ask again when that write has ended.
    BeingWritten,
    /// Duplicate of a running task or of one whose result is pending.
    Known,
    /// Refused for lack of room, with code and text.
    Full(Code, String),
}

/// Pending result.
#[derive(Debug)]
struct PendingResult {
    result: TaskResult,
    /// Age of the result when it was added to the ledger, and the time at which it was added.
    came: (Duration, Instant),
    origin: Origin,
    keep: Keep,
    /// Time at which the result expires.
    ends: Instant,
    attempts: u32,
    /// Time of the next attempt; `None` while an attempt is under way.
    due: Option<Instant>,
    /// Earliest time of the next attempt, set by the last one.
    rests: Option<Instant>,
}

struct UnderWay {
    /// Clients of the results.
    clients: Vec<QuotaClient>,
    /// Failing addresses with an attempt under way, each with `true` if that is the first attempt of its result.
    failing: Vec<(String, bool)>,
}

impl UnderWay {
    /// `true` if an attempt may start for the result `waiting`, beside those under way.
    fn has_room(
        &self,
        waiting: &PendingResult,
        failing: &BTreeSet<String>,
        parallel: usize,
    ) -> bool {
        let (to, client) = (address(&waiting.result), waiting.origin.client);
        if times(&self.clients, client) >= client.quota(parallel) {
            return false;
        }
        if !failing.contains(to) {
            return true;
        }
        // Each failing address may have one attempt, so that none waits for an attempt that hangs at another.
        if self.failing.iter().all(|(at, _)| at != to) {
            return true;
        }
        let repeated = self.failing.iter().filter(|(_, first)| !first).count();
        self.failing.len() < parallel / 2 && (waiting.attempts == 0 || repeated < parallel / 4)
    }
}

/// Task without a result yet.
#[derive(Debug)]
struct RunningTask {
    /// `true` once its file is on the disk, or needs none.
    written: bool,
    call: &'static str,
    origin: Origin,
}

/// Running tasks and pending results, with the limits on both.
#[derive(Debug)]
pub(super) struct TaskQueue {
    offering: Offering,
    at_work: BTreeMap<TaskId, RunningTask>,
    /// Origins of tasks whose work goes on after a result was sent because the time limit of their caller passed.
    going_on: Vec<Origin>,
    waiting: BTreeMap<TaskId, PendingResult>,
    /// Addresses that did not accept the last result.
    failing: BTreeSet<String>,
    jitter: RandomState,
    counts: Counts,
}

impl TaskQueue {
    pub(super) fn new(offering: Offering) -> TaskQueue {
        TaskQueue {
            offering,
            at_work: BTreeMap::new(),
            going_on: Vec::new(),
            waiting: BTreeMap::new(),
            failing: BTreeSet::new(),
            jitter: RandomState::new(),
            counts: Counts::default(),
        }
    }

    /// Admits a task of the call that is named `call`.
    pub(super) fn admit(
        &mut self,
        task: &TaskId,
        call: &'static str,
        origin: Origin,
    ) -> QueueAdmission {
        let place = self.place(task, origin);
        match &place {
            QueueAdmission::New => {
                self.at_work.insert(task.clone(), RunningTask { written: false, call, origin });
            }
            QueueAdmission::Known => self.counts.repeated += 1,
            // Not counted: the caller asks again when the write has ended.
            QueueAdmission::BeingWritten => {}
            QueueAdmission::Full(code, _) => Counts::one_more(&mut self.counts.refused, *code),
        }
        place
    }

    fn place(&self, task: &TaskId, origin: Origin) -> QueueAdmission {
        match self.at_work.get(task) {
            Some(RunningTask { written: false, .. }) => return QueueAdmission::BeingWritten,
            Some(_) => return QueueAdmission::Known,
            None if self.waiting.contains_key(task) => return QueueAdmission::Known,
            None => {}
        }
        if let Some((code, text)) = self.too_many(origin) {
            return QueueAdmission::Full(code, text);
        }
        QueueAdmission::New
    }

    /// Reason to refuse one more task; `None` if there is room.
    fn too_many(&self, origin: Origin) -> Option<(Code, String)> {
        let at_work = || self.at_work.values().map(|work| work.origin);
        let waiting = self.waiting.values().map(|waiting| waiting.origin);
        let kind = origin.kind();
        let most = self.offering.max_tasks;
        let tasks = Taken::of(origin, at_work().chain(self.going_on.iter().copied()));
        if let Some(who) = tasks.full(origin, most) {
            let text =
                format!("{who} of the {most} {kind} at work (http.max_tasks): call again later");
            return Some((Code::TooManyTasks, text));
        }
        let most = self.offering.callbacks.max_pending;
        let who = Taken::of(origin, at_work().chain(waiting)).full(origin, most)?;
        let text = format!(
            "{who} of the {most} results of {kind} that may wait for the controller (callbacks.max_pending): its \
             callback address must answer before more work is taken in"
        );
        Some((Code::OutboxFull, text))
    }

    /// Marks the task as written down: its work begins.
    pub(super) fn begins(&mut self, task: &TaskId) {
        if let Some(work) = self.at_work.get_mut(task) {
            work.written = true;
            Counts::one_more(&mut self.counts.taken_in, work.call);
        }
    }

    /// Removes a task that could not be written down; its caller is refused with `code`.
    pub(super) fn refuse(&mut self, task: &TaskId, code: Code) {
        self.at_work.remove(task);
        Counts::one_more(&mut self.counts.refused, code);
    }

    /// Records a task's result, which is `age` old; it is due at `due`, or as soon as it is written.
    pub(super) fn finish(
        &mut self,
        (result, age): (TaskResult, Duration),
        (origin, keep): (Origin, Keep),
        now: Instant,
        due: Instant,
    ) {
        self.at_work.remove(&result.task);
        let ends = now + self.offering.callbacks.max_age.saturating_sub(age);
        let came = (age, now);
        let due = Some(due);
        let waiting =
            PendingResult { came, ends, attempts: 0, due, rests: None, origin, keep, result };
        self.waiting.insert(waiting.result.task.clone(), waiting);
    }

    /// Makes the result of `task` due, which is on the disk or cannot be written for now.
    pub(super) fn written(&mut self, task: &TaskId, now: Instant) {
        let waiting = self.waiting.get_mut(task).filter(|waiting| waiting.attempts == 0);
        if let Some(due) = waiting.and_then(|waiting| waiting.due.as_mut()) {
            *due = now.min(*due);
        }
    }

    /// Storage of a pending result.
    pub(super) fn kept(&self, task: &TaskId) -> Option<Keep> {
        self.waiting.get(task).map(|waiting| waiting.keep)
    }

    /// Counts work that goes on after its result was given early.
    pub(super) fn goes_on(&mut self, origin: Origin) {
        self.going_on.push(origin);
    }

    /// Ends work recorded by `goes_on`.
    pub(super) fn went_on(&mut self, origin: Origin) {
        if let Some(at) = self.going_on.iter().position(|one| *one == origin) {
            self.going_on.swap_remove(at);
        }
    }

    /// Number of running tasks, including those that go on after their result, and of pending results.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.at_work.len() + self.going_on.len(), self.waiting.len())
    }

    /// Counts of tasks, results and past events.
    pub(super) fn census(&self, now: Instant) -> Census {
        let mut at_work = BTreeMap::new();
        self.at_work.values().for_each(|work| Counts::one_more(&mut at_work, work.call));
        let age = |(age, since): (Duration, Instant)| age + now.saturating_duration_since(since);
        Census {
            at_work,
            going_on: self.going_on.len(),
            waiting: self.waiting.len(),
            oldest: self.waiting.values().map(|waiting| age(waiting.came)).max(),
            counts: self.counts.clone(),
        }
    }

    /// `true` if a pending result is kept only in memory.
    pub(super) fn is_in_memory(&self) -> bool {
        self.waiting.values().any(|waiting| waiting.keep == Keep::InMemory)
    }

    /// Due time of the next result that may be offered.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let (under_way, parallel) = (self.under_way(), self.offering.callbacks.parallel);
        let may = |waiting: &&PendingResult| under_way.has_room(waiting, &self.failing, parallel);
        self.waiting.values().filter(may).filter_map(|waiting| waiting.due).min()
    }

    fn under_way(&self) -> UnderWay {
        let under_way = || self.waiting.values().filter(|waiting| waiting.due.is_none());
        let failing = |waiting: &PendingResult| {
            let to = self.failing.get(address(&waiting.result))?;
            Some((to.clone(), waiting.attempts == 1))
        };
        UnderWay {
            clients: under_way().map(|waiting| waiting.origin.client).collect(),
            failing: under_way().filter_map(failing).collect(),
        }
    }

    pub(super) fn take_due(&mut self, now: Instant, most: usize) -> Vec<(TaskResult, u32)> {
        let mut under_way = self.under_way();
        let parallel = self.offering.callbacks.parallel;
        let waiting = self.waiting.values_mut().filter(|w| w.due.is_some_and(|due| due <= now));
        let mut due: Vec<&mut PendingResult> = waiting.collect();
        // After a restart all results are due at once: then the one that expires first goes first.
        due.sort_by_key(|waiting| (waiting.due, waiting.ends));
        due.into_iter()
            .filter(|waiting| {
                let goes = under_way.has_room(waiting, &self.failing, parallel);
                if goes {
                    under_way.clients.push(waiting.origin.client);
                    if let Some(to) = self.failing.get(address(&waiting.result)) {
                        under_way.failing.push((to.clone(), waiting.attempts == 0));
                    }
                }
                goes
            })
            .take(most)
            .map(|waiting| {
                waiting.due = None;
                waiting.attempts += 1;
                (waiting.result.clone(), waiting.attempts)
            })
            .collect()
    }

    pub(super) fn record_attempt(
        &mut self,
        task: &TaskId,
        verdict: DeliveryOutcome,
        now: Instant,
    ) -> AfterAttempt {
        let Some(waiting) = self.waiting.get(task) else { return AfterAttempt::Gone };
        let to = address(&waiting.result).to_string();
        let after = self.evaluate(task, verdict, now);
        match verdict {
            DeliveryOutcome::Taken => self.counts.taken += 1,
            DeliveryOutcome::NotWaiting => self.counts.not_waited_for += 1,
            DeliveryOutcome::Again => self.counts.failed += 1,
        }
        if after == AfterAttempt::TooOld {
            self.counts.given_up += 1;
        }
        let mut others =
            self.waiting.values_mut().filter(|waiting| address(&waiting.result) == to).peekable();
        if verdict == DeliveryOutcome::Again && others.peek().is_some() {
            self.failing.insert(to.clone());
        } else if self.failing.remove(&to) {
            // The address accepts again: the results pending for it need not wait any longer.
            for waiting in others.filter(|waiting| waiting.attempts > 0) {
                let soon = waiting.rests.map_or(now, |rests| rests.max(now));
                waiting.due = waiting.due.map(|due| due.min(soon));
            }
        }
        after
    }

    fn evaluate(&mut self, task: &TaskId, verdict: DeliveryOutcome, now: Instant) -> AfterAttempt {
        let Some(waiting) = self.waiting.get_mut(task) else { return AfterAttempt::Gone };
        if verdict != DeliveryOutcome::Again {
            self.waiting.remove(task);
            return AfterAttempt::Gone;
        }
        // Failures from before a restart do not count: an unreachable controller may be back.
        let offered = now.saturating_duration_since(waiting.came.1);
        let random = self.jitter.hash_one((task, waiting.attempts));
        let delay = retry_delay(waiting.attempts, offered, &self.offering.callbacks, random);
        if now + delay >= waiting.ends {
            self.waiting.remove(task);
            return AfterAttempt::TooOld;
        }
        waiting.due = Some(now + delay);
        // Without this minimum, a result that the controller always refuses would be offered with each one that it
        // accepts.
        let least = self.offering.callbacks.first_delay.max(delay / HURRIED);
        waiting.rests = Some(now + least.min(delay));
        AfterAttempt::After(delay)
    }
}

/// Occupied places of one kind.
struct Taken {
    all: usize,
    /// Places of the same client.
    own: usize,
}

impl Taken {
    fn of(origin: Origin, taken: impl Iterator<Item = Origin>) -> Taken {
        taken.filter(|one| one.changes == origin.changes).fold(
            Taken { all: 0, own: 0 },
            |Taken { all, own }, one| Taken {
                all: all + 1,
                own: own + usize::from(one.client == origin.client),
            },
        )
    }

    /// Reason why no place is left: all callers together have `most`, or the client has its quota.
    fn full(&self, origin: Origin, most: usize) -> Option<String> {
        if self.all >= most {
            return Some("there are all".to_string());
        }
        let quota = origin.client.quota(most);
        (self.own >= quota).then(|| format!("{} has its share of {quota}", origin.client))
    }
}

/// Counts the occurrences of `client`.
fn times(all: &[QuotaClient], client: QuotaClient) -> usize {
    all.iter().filter(|one| **one == client).count()
}

/// Scheme and authority of the callback URL, without its path.
fn address(result: &TaskResult) -> &str {
    let url = result.callback_url.as_str();
    url.match_indices('/').nth(2).map_or(url, |(end, _)| url.split_at(end).0)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
