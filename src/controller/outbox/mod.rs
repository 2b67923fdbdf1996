//! Results on their way to the controller, and the tasks that will have one.
//!
//! ```text
//! admit ──▶ on disk ──▶ Slot (running) ──finish──▶ on disk ──▶ pending ──offer──▶ accepted | 404 | expired: gone
//!             │                 └─ the agent dies ──▶ at its next start: "was ended", pending ─┘
//!             └─ cannot be written: refused
//! admit ──▶ Slot (running) ──finish──▶ pending ──offer──▶ accepted | 404 | expired: gone     (Keep::InMemory)
//! ```
//! Four parts: `queue` is the ledger of running tasks and due results, a plain value; `retry` has the delay before a
//! result is offered again; `entry` is a task's file; `disk` writes and removes the files. This is the handle that keeps
//! them together.
//!
//! # Guarantees
//! A call that changes the node is answered 200 once its file is on the disk. Its result is offered, and its work
//! reported done, once the result is on the disk. So after a crash every call that was answered is called back: with
//! its result, or with an error that the agent was ended during the work. It is called back *at least* once: after a
//! crash between a delivery and the removal of the file the result is delivered again, and the controller answers 404
//! to that. A result that has expired when the agent starts is offered once all the same, for the clock of a machine
//! that just booted may be far off.
//!
//! A disk that is full, read-only or hangs breaks no earlier guarantee: new calls are
//! refused, and a result that cannot be written is kept in memory, written when there is room, and
//! offered meanwhile. The controller waits for it, and holding it back would make nothing safer.
//!
//! A call without a lasting effect ([`Keep::InMemory`]) has the same bounds, attempts and drain, and
//! never waits for the disk. A crash loses it; the controller's own deadline passes, and it asks again.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::CallbackPolicy;
use crate::model::task::{TaskId, TaskResult};
use crate::store::Store;
use crate::watchdog::Heartbeat;

mod census;
mod disk;
mod entry;
mod origin;
mod queue;
mod retry;

pub use census::{Census, Counts};
use disk::{OutboxDisk, WriteReceiver};
use entry::OutboxEntry;
#[cfg(fuzzing)]
pub use entry::reread;
use origin::Origin;
pub use queue::{AfterAttempt, DeliveryOutcome};
use queue::{QueueAdmission, TaskQueue};

/// Time limit for the disk before a call is refused, or a result offered that is not yet written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Limits of admission and delivery.
#[derive(Debug, Clone)]
pub struct Offering {
    /// Delays, expiry and limit of pending results.
    pub callbacks: CallbackPolicy,
    /// Limit of running tasks of each kind: those that can change the node, and read-only ones.
    pub max_tasks: usize,
}

#[cfg(test)]
impl Offering {
    /// Default settings with small limits.
    pub(crate) fn example() -> Offering {
        Offering::bounded(8, 8)
    }

    /// The example with these limits.
    pub(crate) fn bounded(max_tasks: usize, max_pending: usize) -> Offering {
        let callbacks = CallbackPolicy { max_pending, parallel: 64, ..CallbackPolicy::default() };
        Offering { callbacks, max_tasks }
    }
}

/// Storage of a task until its result was accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keep {
    /// File: a crash loses neither the task nor its result.
    #[default]
    OnDisk,
    /// Memory only, for a call that can as well be repeated.
    InMemory,
}

/// Outcome of a call's admission.
#[derive(Debug)]
pub enum TaskAdmission {
    /// Admitted and stored. Do the work and finish the slot.
    Work(TaskSlot),
    /// Duplicate of a running task or of one whose result is pending: do nothing.
    Known,
    /// Limit reached: refuse the call.
    Full(Fault),
    /// Storing failed: refuse the call.
    Unwritable(Fault),
}

/// Shared handle of the outbox.
#[derive(Debug, Clone)]
pub struct Outbox {
    queue: Arc<Mutex<TaskQueue>>,
    disk: OutboxDisk,
    news: Arc<Notify>,
    /// Notified whenever something ended: an attempt, a write, work whose result was given early.
    ended: Arc<Notify>,
}

impl Outbox {
    /// Loads the pending tasks of the last run, and starts the writer. Blocks for the disk.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(offering: Offering, store: Store, heartbeat: Heartbeat) -> Result<Outbox, Fault> {
        let entries = entry::load(&store)?;
        let outbox = Outbox::new(offering);
        if !entries.is_empty() {
            let broken_off = entries.iter().filter(|entry| !entry.has_result()).count();
            tracing::warn!(
                waiting = entries.len() - broken_off,
                broken_off,
                "the last run left {broken_off} calls unfinished and {} results undelivered: all are reported to the controller now",
                entries.len() - broken_off
            );
        }
        for entry in entries {
            outbox.take_up(entry);
        }
        let (tried, disk) = (outbox.clone(), outbox.disk.clone());
        tokio::spawn(disk::run(disk, store, move |tasks| tried.written(tasks), heartbeat));
        Ok(outbox)
    }

    /// Empty outbox without a writer.
    fn new(offering: Offering) -> Outbox {
        Outbox {
            queue: Arc::new(Mutex::new(TaskQueue::new(offering))),
            disk: OutboxDisk::default(),
            news: Arc::default(),
            ended: Arc::default(),
        }
    }

    /// Restores a task of the last run.
    fn take_up(&self, mut entry: OutboxEntry) {
        match entry.result(SystemTime::now()) {
            Some((result, age)) => {
                let now = Instant::now();
                self.lock_queue().finish((result, age), (entry.origin(), entry.keep), now, now);
            }
            None => {
                entry.break_off();
                self.finish(entry);
            }
        }
    }

    /// Admits a task, once it is stored. `route` is the call's name in file and counters; a call without one is
    /// read-only. Not cancel-safe: a task that is left half-way keeps its place.
    pub async fn admit(
        &self,
        task: &TaskId,
        callback_url: &str,
        (route, keep): (Option<&'static str>, Keep),
        caller: Caller,
    ) -> TaskAdmission {
        let entry = OutboxEntry::new(task.clone(), callback_url.to_string(), (route, keep), caller);
        let call = route.unwrap_or(census::UNNAMED);
        loop {
            // Subscribed before the check: no notification in between is lost.
            let ended = self.ended.notified();
            let place = self.lock_queue().admit(task, call, entry.origin());
            match place {
                QueueAdmission::New => break,
                // If the write for the earlier call fails, this call is admitted as one of its own.
                QueueAdmission::BeingWritten => ended.await,
                QueueAdmission::Known => return TaskAdmission::Known,
                QueueAdmission::Full(code, text) => {
                    return TaskAdmission::Full(Fault::new(code, text));
                }
            }
        }
        let written = match keep {
            Keep::OnDisk => self.written_in_time(task, self.disk.write(entry.clone())).await,
            Keep::InMemory => Ok(()),
        };
        match &written {
            Ok(()) => self.lock_queue().begins(task),
            Err(_) => self.lock_queue().refuse(task, Code::StateUnwritable),
        }
        self.ended.notify_waiters();
        match written {
            Ok(()) => TaskAdmission::Work(TaskSlot { outbox: self.clone(), entry: Some(entry) }),
            Err(fault) => TaskAdmission::Unwritable(fault),
        }
    }

    async fn written_in_time(&self, task: &TaskId, written: WriteReceiver) -> Result<(), Fault> {
        if let Ok(Ok(written)) = timeout(WRITE_TIMEOUT, written).await {
            return written;
        }
        self.disk.take_back(task);
        let text = format!(
            "{} was not written within {WRITE_TIMEOUT:?}: see whether the state folder's disk hangs, then call again",
            entry::file(task)
        );
        Err(Fault::new(Code::StateUnwritable, text))
    }

    /// Number of running tasks, including those that go on after their result, and of pending results.
    pub fn load(&self) -> (usize, usize) {
        self.lock_queue().load()
    }

    /// Counts of tasks, results and past events since the agent started.
    pub fn census(&self) -> Census {
        self.lock_queue().census(Instant::now())
    }

    /// Takes up to `most` results that are due, each with the number of its attempt, from 1. Each is under way until
    /// [`Outbox::record_attempt`] is called for it.
    pub fn take_due(&self, now: Instant, most: usize) -> Vec<(TaskResult, u32)> {
        self.lock_queue().take_due(now, most)
    }

    /// Due time of the next result that may be offered.
    pub fn next_due(&self) -> Option<Instant> {
        self.lock_queue().next_due()
    }

    /// Records the outcome of an attempt.
    pub fn record_attempt(
        &self,
        task: &TaskId,
        verdict: DeliveryOutcome,
        now: Instant,
    ) -> AfterAttempt {
        let mut queue = self.lock_queue();
        let kept = queue.kept(task);
        let after = queue.record_attempt(task, verdict, now);
        if kept == Some(Keep::OnDisk) && !matches!(after, AfterAttempt::After(_)) {
            // Under the queue's lock, so that the file of the same task, if admitted anew, is written after this.
            self.disk.remove(task);
        }
        drop(queue);
        self.ended.notify_waiters();
        after
    }

    /// Waits until no task is running, no result is pending, and the disk has nothing to do. Cancel-safe.
    pub async fn empty(&self) {
        loop {
            // Subscribed before the check: no notification in between is lost.
            let ended = self.ended.notified();
            if self.load() == (0, 0) && self.disk.is_idle() {
                return;
            }
            ended.await;
        }
    }

    /// Waits until no task is running, and every file is on the disk. Cancel-safe.
    pub async fn durable(&self) {
        loop {
            // Subscribed before the check: no notification in between is lost.
            let ended = self.ended.notified();
            if self.load().0 == 0 && self.disk.is_durable() {
                return;
            }
            ended.await;
        }
    }

    /// `true` if a result is pending that would be lost with the agent.
    pub fn is_in_memory(&self) -> bool {
        self.lock_queue().is_in_memory()
    }

    /// Waits until a result was added or became due since the last call. Cancel-safe.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Waits until something ends: an attempt, a write, work whose result was given early.
    pub async fn wait_for_end(&self) {
        self.ended.notified().await;
    }

    /// Puts a result into the ledger, and on the disk if it is kept there.
    fn finish(&self, entry: OutboxEntry) -> Option<WriteReceiver> {
        let (result, age) = entry.result(SystemTime::now())?;
        let (now, keep) = (Instant::now(), entry.keep);
        let due = match keep {
            Keep::OnDisk => now + WRITE_TIMEOUT,
            Keep::InMemory => now,
        };
        self.lock_queue().finish((result, age), (entry.origin(), keep), now, due);
        let written = (keep == Keep::OnDisk).then(|| self.disk.write(entry));
        self.news.notify_one();
        written
    }

    /// Makes the results of these tasks due now: each is on the disk, or cannot be written for now.
    fn written(&self, tasks: &[TaskId]) {
        let (mut queue, now) = (self.lock_queue(), Instant::now());
        tasks.iter().for_each(|task| queue.written(task, now));
        drop(queue);
        self.news.notify_one();
        self.ended.notify_waiters();
    }

    fn lock_queue(&self) -> MutexGuard<'_, TaskQueue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Running task. It always ends in a result: if it is dropped unfinished, an internal error is sent to the controller.
#[derive(Debug)]
pub struct TaskSlot {
    outbox: Outbox,
    entry: Option<OutboxEntry>,
}

impl TaskSlot {
    /// Ends the work; `error` is for work that broke outside its own error handling. Returns when the result is stored,
    /// or the disk's time limit has passed.
    pub async fn finish(mut self, body: String, error: Option<String>) {
        if let Some(written) = self.end(body, error) {
            // A result that could not be written is offered nevertheless.
            let _ = timeout(WRITE_TIMEOUT, written).await;
        }
    }

    /// Offers the result before the work is done; the work keeps its place among the tasks until the returned value is
    /// dropped.
    pub async fn finish_early(self, body: String) -> GoesOn {
        let origin = self.entry.as_ref().map(OutboxEntry::origin);
        let goes_on = GoesOn { outbox: self.outbox.clone(), origin };
        if let Some(origin) = origin {
            self.outbox.lock_queue().goes_on(origin);
        }
        self.finish(body, None).await;
        goes_on
    }

    fn end(&mut self, body: String, error: Option<String>) -> Option<WriteReceiver> {
        let mut entry = self.entry.take()?;
        entry.end(body, error);
        self.outbox.finish(entry)
    }
}

/// Place, among the running tasks, of work whose result was given early. Dropping it frees the place.
#[derive(Debug)]
pub struct GoesOn {
    outbox: Outbox,
    origin: Option<Origin>,
}

impl Drop for GoesOn {
    fn drop(&mut self) {
        if let Some(origin) = self.origin {
            self.outbox.lock_queue().went_on(origin);
        }
        self.outbox.ended.notify_waiters();
    }
}

impl Drop for TaskSlot {
    fn drop(&mut self) {
        let text = "the agent broke off this call".to_string();
        self.end(format!("{{\"success\":false,\"error\":\"{text}\"}}"), Some(text));
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
