//! Pending writes and removals of the tasks' files, and the one task that carries them out. From when a result may be
//! offered is decided in the parent module.
//!
//! ```text
//! write, remove ──▶ wanted ──all pending──▶ one batch ──▶ result: written, or the error
//!                     ▲                         │
//!                     └─ retried after a pause ◀┘ failed (results and removals)
//! ```
//! Calls that come at the same time share the cost of a write: while one batch is at the disk, the next one gathers.
//! For each file only the last request counts, so there are never more requests than files. A file that is not gone yet
//! does no harm (its result would be offered once more), so removals wait while there is something to write, until
//! there are `MANY` of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::entry::{OutboxEntry, file};
use crate::model::backoff::Backoff;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::task::TaskId;
use crate::overdue::with_limit;
use crate::store::{Durability, Store, StoreError};
use crate::wait;
use crate::watchdog::Heartbeat;

/// Delay before a failed write is retried.
const BACKOFF: Backoff = Backoff::steady(Duration::from_secs(1), Duration::from_secs(30));
/// Limit of files written together: each is held open until all are on the disk.
const MOST: usize = 256;
/// Time limit for one batch, more than a working disk needs.
const WORK_LIMIT: Duration = Duration::from_secs(30);
/// Number of removals that no longer wait for a time without writes.
const MANY: usize = 64;

/// Receiver for the outcome of a write.
pub(super) type WriteReceiver = oneshot::Receiver<Result<(), Fault>>;

/// Requested write of a file.
#[derive(Debug)]
struct Write {
    entry: Arc<OutboxEntry>,
    /// Position in the queue.
    place: u64,
    reply: Option<oneshot::Sender<Result<(), Fault>>>,
}

/// Requests to the disk, as a plain value.
#[derive(Debug, Default)]
struct Wanted {
    writes: BTreeMap<TaskId, Write>,
    /// Next position in the queue of the writes.
    place: u64,
    removals: BTreeSet<TaskId>,
    /// Failed writes, and (`None`) failed removals.
    failed: BTreeMap<TaskId, Option<Arc<OutboxEntry>>>,
    retry: Option<Instant>,
    /// Number of failed batches, since the last success, that made a retry due.
    failures: u32,
    at_disk: bool,
}

/// Writes and removals that go to the disk together.
#[derive(Debug, Default)]
struct Batch {
    writes: Vec<Write>,
    removals: Vec<TaskId>,
}

/// Outcomes of a batch, in its order.
#[derive(Debug, Clone)]
struct Came {
    writes: Vec<Result<(), Fault>>,
    removals: Vec<Result<(), Fault>>,
}

/// Shared requests to the disk; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct OutboxDisk {
    wanted: Arc<Mutex<Wanted>>,
    wake: Arc<Notify>,
}

impl OutboxDisk {
    /// Requests a write of a task's file. The outcome of a request that another one replaces is not reported.
    pub(super) fn write(&self, entry: OutboxEntry) -> WriteReceiver {
        let (sender, receiver) = oneshot::channel();
        self.wanted().write(Arc::new(entry), Some(sender));
        self.wake.notify_one();
        receiver
    }

    /// Requests the removal of a task's file, at any later time.
    pub(super) fn remove(&self, task: &TaskId) {
        self.wanted().remove(task);
        self.wake.notify_one();
    }

    /// Cancels the request to write the file of `task`; a file that is being written already is removed afterwards.
    pub(super) fn take_back(&self, task: &TaskId) {
        let mut wanted = self.wanted();
        if wanted.writes.remove(task).is_none() && wanted.at_disk {
            wanted.remove(task);
        }
    }

    /// `true` if every request has been tried.
    pub(super) fn is_idle(&self) -> bool {
        let wanted = self.wanted();
        !wanted.at_disk && wanted.writes.is_empty() && wanted.removals.is_empty()
    }

    /// `true` if all that has to outlive the agent is on the disk.
    pub(super) fn is_durable(&self) -> bool {
        let wanted = self.wanted();
        let writes = !wanted.writes.is_empty() || wanted.failed.values().any(Option::is_some);
        !wanted.at_disk && !writes
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Wanted {
    fn write(
        &mut self,
        entry: Arc<OutboxEntry>,
        sender: Option<oneshot::Sender<Result<(), Fault>>>,
    ) {
        let task = entry.task.clone();
        self.removals.remove(&task);
        self.failed.remove(&task);
        self.writes.insert(task, Write { entry, place: self.place, reply: sender });
        self.place += 1;
    }

    fn remove(&mut self, task: &TaskId) {
        self.writes.remove(task);
        self.failed.remove(task);
        self.removals.insert(task.clone());
    }

    /// Takes the next batch.
    fn take(&mut self, now: Instant) -> Batch {
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            for (task, entry) in std::mem::take(&mut self.failed) {
                match entry {
                    Some(entry) => self.write(entry, None),
                    None => drop(self.removals.insert(task)),
                }
            }
        }
        let mut writes: Vec<Write> = std::mem::take(&mut self.writes).into_values().collect();
        writes.sort_by_key(|write| write.place);
        let later = writes.split_off(writes.len().min(MOST));
        self.writes = later.into_iter().map(|write| (write.entry.task.clone(), write)).collect();
        let removals = match writes.is_empty() || self.removals.len() >= MANY {
            true => std::mem::take(&mut self.removals).into_iter().collect(),
            false => Vec::new(),
        };
        self.at_disk = !(writes.is_empty() && removals.is_empty());
        Batch { writes, removals }
    }

    /// Records the outcome of a batch: a failed request is retried, unless a newer one replaces it. A write for a
    /// call's admission is not retried, as the call is refused.
    fn note(&mut self, batch: &Batch, came: &Came, now: Instant) {
        self.at_disk = false;
        let writes = batch.writes.iter().zip(&came.writes);
        let writes =
            writes.map(|(w, came)| (&w.entry.task, w.entry.has_result().then_some(&w.entry), came));
        for (task, entry, came) in writes {
            if let (Some(entry), Err(_)) = (entry, came) {
                self.again(task, Some(entry.clone()));
            }
        }
        for (task, came) in batch.removals.iter().zip(&came.removals) {
            if came.is_err() {
                self.again(task, None);
            }
        }
        let mut all = came.writes.iter().chain(&came.removals);
        if all.clone().any(Result::is_err) {
            // A retry that is due is not put off by later failures.
            if self.retry.is_none() {
                self.failures = self.failures.saturating_add(1);
                self.retry = Some(now + BACKOFF.delay(self.failures, 0));
            }
        } else if all.next().is_some() {
            // The disk takes writes again: requests that failed before are retried now.
            self.failures = 0;
            self.retry = (!self.failed.is_empty()).then_some(now);
        }
    }

    fn again(&mut self, task: &TaskId, entry: Option<Arc<OutboxEntry>>) {
        if !self.writes.contains_key(task) && !self.removals.contains(task) {
            self.failed.insert(task.clone(), entry);
        }
    }
}

/// Carries out the requests, for ever, and sends the watchdog's heartbeats. `tried` receives the tasks whose files were
/// written, or could not be.
pub(super) async fn run(
    disk: OutboxDisk,
    store: Store,
    tried: impl Fn(&[TaskId]),
    mut heartbeat: Heartbeat,
) {
    let mut in_trouble = false;
    loop {
        let (batch, retry) = {
            let mut wanted = disk.wanted();
            (wanted.take(Instant::now()), wanted.retry)
        };
        if batch.writes.is_empty() && batch.removals.is_empty() {
            tokio::select! {
                // Cancel-safe: a notification that was not consumed stays; the clock and the heartbeat too.
                () = disk.wake.notified() => {}
                () = wait::until(retry) => {}
                () = heartbeat.due() => {}
            }
            continue;
        }
        let about = ("outbox", "the outbox".to_string());
        let work = carry_out(&store, &batch, &mut heartbeat);
        let came = with_limit(WORK_LIMIT, about, work).await;
        let failed = came.writes.iter().chain(&came.removals).find_map(|came| came.as_ref().err());
        let left = {
            let mut wanted = disk.wanted();
            wanted.note(&batch, &came, Instant::now());
            !wanted.failed.is_empty()
        };
        log_trouble(&mut in_trouble, failed, left);
        let mut tasks = Vec::with_capacity(batch.writes.len());
        for (write, came) in batch.writes.into_iter().zip(came.writes) {
            tasks.push(write.entry.task.clone());
            if let Some(sender) = write.reply {
                // A receiver that is gone has timed out.
                let _ = sender.send(came);
            }
        }
        tried(&tasks);
    }
}

/// Logs trouble once when it begins and once when it ends: when nothing is `left` to be retried.
fn log_trouble(in_trouble: &mut bool, failed: Option<&Fault>, left: bool) {
    match failed {
        Some(fault) if !*in_trouble => tracing::error!(
            code = %fault.code,
            "the outbox cannot be written: calls with a callback are refused, and results are kept in \
             memory and offered meanwhile: {}",
            fault.text
        ),
        None if *in_trouble && !left => tracing::info!("the outbox can be written again"),
        _ => {}
    }
    *in_trouble = failed.is_some() || left;
}

/// Carries out a batch off the runtime; a disk that hangs is awaited, and heartbeats go on meanwhile.
async fn carry_out(store: &Store, batch: &Batch, heartbeat: &mut Heartbeat) -> Came {
    let store = store.clone();
    let entries: Vec<Arc<OutboxEntry>> =
        batch.writes.iter().map(|write| write.entry.clone()).collect();
    let files: Vec<String> = batch.removals.iter().map(file).collect();
    let (writes, removals) = (entries.len(), files.len());
    let mut work = spawn_blocking(move || Came {
        writes: write_all(&store, &entries),
        removals: remove_all(&store, &files),
    });
    loop {
        tokio::select! {
            came = &mut work => {
                return came.unwrap_or_else(|broke| {
                    let text = format!("writing the outbox broke off: {broke}; report it");
                    let failed = Err(Fault::new(Code::StateUnwritable, text));
                    Came { writes: vec![failed.clone(); writes], removals: vec![failed; removals] }
                });
            }
            // Cancel-safe.
            () = heartbeat.due() => {}
        }
    }
}

/// Writes all entries together. If that fails, writes them one by one, so that a bad entry does not fail the others.
fn write_all(store: &Store, entries: &[Arc<OutboxEntry>]) -> Vec<Result<(), Fault>> {
    if entries.len() > 1 {
        let named: Vec<(String, &OutboxEntry)> =
            entries.iter().map(|entry| (file(&entry.task), entry.as_ref())).collect();
        if store.write_all(&named).is_ok() {
            return vec![Ok(()); entries.len()];
        }
    }
    let write = |entry: &Arc<OutboxEntry>| {
        let name = file(&entry.task);
        let came = store.write(&name, entry.as_ref(), Durability::Disk);
        if came.is_err() && !entry.has_result() {
            // The file may exist in spite of the error. If it stays, the controller gets a callback at the next start
            // for a call that it knows to be refused, which does no harm.
            let _ = store.remove(&name, Durability::Disk);
        }
        came.map_err(Fault::from)
    };
    entries.iter().map(write).collect()
}

fn remove_all(store: &Store, files: &[String]) -> Vec<Result<(), Fault>> {
    if files.is_empty() || store.remove_all(files).is_ok() {
        return vec![Ok(()); files.len()];
    }
    let remove = |name: &String| store.remove(name, Durability::Disk);
    files.iter().map(remove).map(|came: Result<(), StoreError>| came.map_err(Fault::from)).collect()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
#[path = "disk_tests.rs"]
mod tests;
