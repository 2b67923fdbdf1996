//! Owner of hugepage pools and their mounts: one request after the other, on a thread that may block.
//!
//! ```text
//! Pools (handle) ──request──▶ run() ──blocking──▶ MemoryWork: observe ▸ plan ▸ apply ▸ ledger
//!        ◀──report──                                      └── publishes each change of the ledger
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::apply::cancel::CancelHandle;
use super::memory::{MemoryOrder, MemoryWork, Published, ReclaimOrder};
use super::observe::blocking;
use super::owner_gone;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::pools::PoolGoal;
use crate::model::prepare::{PartReport, ReclaimReport};
use crate::model::reservation::{Reservation, ReservationName, ReservationRequest};
use crate::model::units::PageSize;
use crate::model::work::WorkId;
use crate::overdue::with_limit;
use crate::watchdog::Heartbeat;

/// Maximum of queued requests; more are refused.
const QUEUE: usize = 32;
/// Maximum of queued requests that take no page.
const RECORDS_QUEUE: usize = 1024;
/// Limit after which a request is overdue: more than the kernel takes, as each write has its own deadline.
const WORK_LIMIT: Duration = Duration::from_secs(600);

enum PoolsOrder {
    Prepare(MemoryOrder, oneshot::Sender<PartReport>),
    Restore {
        unless_done: bool,
        reply: oneshot::Sender<PartReport>,
    },
    MountAgain {
        has_targets: bool,
        reply: oneshot::Sender<PartReport>,
    },
    Reclaim(ReclaimOrder, oneshot::Sender<ReclaimReport>),
    Look(oneshot::Sender<PartReport>),
    Reserve(
        ReservationRequest,
        Arc<AtomicBool>,
        oneshot::Sender<Result<(Reservation, bool), Fault>>,
    ),
    /// Work on records, which takes no page.
    Records(Box<dyn FnOnce(&mut MemoryWork) + Send>),
    /// May fill up the reserve for arrivals.
    Settle {
        fill: bool,
        reply: oneshot::Sender<Result<bool, Fault>>,
    },
    Stop(oneshot::Sender<()>),
}

/// Sets its flag when it is dropped: nobody waits any more.
struct Cancels(Arc<AtomicBool>);

impl Drop for Cancels {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Handle of the pools' owner.
#[derive(Debug, Clone)]
pub struct Pools {
    orders: mpsc::Sender<PoolsOrder>,
    /// Queue of requests that take no page. They are served before others, so that pages can be given back however
    /// many requests for pages wait.
    record_orders: mpsc::Sender<PoolsOrder>,
    records: watch::Receiver<Published>,
    /// Time that a caller waits for the reply to its request.
    timeout: Duration,
    cancel: CancelHandle,
    /// Notified when a call of the legacy agent may have changed the pools.
    others: Arc<Notify>,
}

impl std::fmt::Debug for PoolsOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PoolsOrder::Prepare(..) => "Prepare",
            PoolsOrder::Restore { .. } => "Restore",
            PoolsOrder::MountAgain { .. } => "MountAgain",
            PoolsOrder::Reclaim(..) => "Reclaim",
            PoolsOrder::Look(_) => "Look",
            PoolsOrder::Reserve(..) => "Reserve",
            PoolsOrder::Records(_) => "Records",
            PoolsOrder::Settle { .. } => "Settle",
            PoolsOrder::Stop(_) => "Stop",
        })
    }
}

impl Pools {
    pub fn start(work: MemoryWork, write_timeout: Duration, heartbeat: Heartbeat) -> Pools {
        let (orders, queue) = mpsc::channel(QUEUE);
        let (record_orders, records_queue) = mpsc::channel(RECORDS_QUEUE);
        let (records, cancel) = (work.publishes(), work.cancel_handle());
        if let Err(e) = cancel.arm() {
            tracing::warn!(error = %e, "the signal that interrupts a write to nr_hugepages could not be set up, so a stop waits for the end of such a write: {e}");
        }
        tokio::spawn(run(work, queue, records_queue, heartbeat));
        // A write is not interrupted when one caller's time is over, for others may want its pages: a caller waits for
        // twice the time of a write.
        let others = Arc::default();
        Pools { orders, record_orders, records, timeout: write_timeout * 2, cancel, others }
    }

    /// Returns the ledger of pages that the agent grew, with what is kept for guests.
    pub fn records(&self) -> Published {
        self.records.borrow().clone()
    }

    /// Subscribes to the ledger.
    pub fn watch(&self) -> watch::Receiver<Published> {
        self.records.clone()
    }

    /// `true` if the next boot will restore all pages that the agent holds now.
    pub fn remembered(&self) -> bool {
        self.records.borrow().remembered
    }

    /// Grows pools, reserves the pages for the next boot, and makes mounts.
    pub async fn prepare(
        &self,
        work: WorkId,
        goal: PoolGoal,
        mounts: Vec<PageSize>,
        keep_partial: bool,
        dry_run: bool,
    ) -> PartReport {
        let cancelled = Arc::new(AtomicBool::new(false));
        let order =
            MemoryOrder { work, goal, mounts, keep_partial, dry_run, cancelled: cancelled.clone() };
        let late = "what it still finds is given back when it returns";
        let report = self.ask(late, |reply| PoolsOrder::Prepare(order, reply)).await;
        report.unwrap_or_else(|fault| {
            cancelled.store(true, Ordering::Relaxed);
            PartReport { errors: vec![fault], ..PartReport::default() }
        })
    }

    /// Restores the pages that the agent held before the last boot; with `unless_done` only if that was not
    /// done in this boot.
    pub async fn restore(&self, unless_done: bool) -> PartReport {
        let late = "it goes on, and what it finds is kept: see GET /v1/node";
        let restored = self.ask(late, |reply| PoolsOrder::Restore { unless_done, reply }).await;
        restored.unwrap_or_else(|fault| PartReport { errors: vec![fault], ..PartReport::default() })
    }

    /// Makes the mounts again that were lost with the last boot; existing mounts stay as they are.
    pub async fn mount_again(&self, has_targets: bool) -> PartReport {
        let late = "it goes on: see GET /v1/node";
        let asked = self.ask(late, |reply| PoolsOrder::MountAgain { has_targets, reply });
        let done = asked.await;
        done.unwrap_or_else(|fault| PartReport { errors: vec![fault], ..PartReport::default() })
    }

    /// Gives back unused pages that the agent grew.
    ///
    /// # Errors
    /// When the owner is busy or gone; other failures are in the report.
    pub async fn reclaim(&self, order: ReclaimOrder) -> Result<ReclaimReport, Fault> {
        let late = "pages are given back when it returns: see GET /v1/node";
        self.ask(late, |reply| PoolsOrder::Reclaim(order, reply)).await
    }

    /// Reserves pages, as [`MemoryWork::reserve`] does. A caller that goes away cancels it.
    ///
    /// # Errors
    /// Those of [`MemoryWork::reserve`], and when the owner is busy or gone.
    pub async fn reserve(&self, request: ReservationRequest) -> Result<(Reservation, bool), Fault> {
        let cancelled = Cancels(Arc::default());
        let flag = cancelled.0.clone();
        let late = "what it still finds is given back";
        self.ask(late, |reply| PoolsOrder::Reserve(request, flag, reply)).await?
    }

    /// Claims a reservation, as [`MemoryWork::claim`] does.
    ///
    /// # Errors
    /// Those of [`MemoryWork::claim`], and when the owner is busy or gone.
    pub async fn claim(
        &self,
        name: ReservationName,
        pid: Option<u32>,
    ) -> Result<Reservation, Fault> {
        self.record("it is claimed then", move |work| work.claim(&name, pid)).await
    }

    /// Releases a reservation, as [`MemoryWork::release`] does.
    ///
    /// # Errors
    /// Those of [`MemoryWork::release`], and when the owner is busy or gone.
    pub async fn release(&self, name: ReservationName) -> Result<bool, Fault> {
        self.record("it is released then", move |work| work.release(&name)).await
    }

    /// Settles the reservations, as [`MemoryWork::settle`] does.
    ///
    /// # Errors
    /// Those of [`MemoryWork::settle`], and when the owner is busy or gone.
    pub async fn settle(&self, fill: bool) -> Result<bool, Fault> {
        self.ask("it goes on", |reply| PoolsOrder::Settle { fill, reply }).await?
    }

    /// Extends leases, as [`MemoryWork::extend_leases`] does.
    ///
    /// # Errors
    /// Those of [`MemoryWork::extend_leases`], and when the owner is busy or gone.
    pub async fn extend_leases(&self, seconds: u64) -> Result<(), Fault> {
        self.record("it goes on", move |work| work.extend_leases(seconds)).await
    }

    /// Has the owner do `work` before the requests that take pages.
    async fn record<T: Send + 'static>(
        &self,
        late: &str,
        work: impl FnOnce(&mut MemoryWork) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let order = |reply: oneshot::Sender<Result<T, Fault>>| {
            PoolsOrder::Records(Box::new(move |of| drop(reply.send(work(of)))))
        };
        self.ask_in(&self.record_orders, late, order).await?
    }

    /// Observes changes of the pools by others, and takes lost pages again where the settings say so.
    pub async fn look(&self) -> PartReport {
        let late = "it goes on: see GET /v1/node";
        let looked = self.ask(late, PoolsOrder::Look).await;
        looked.unwrap_or_else(|fault| PartReport { errors: vec![fault], ..PartReport::default() })
    }

    /// Notes that somebody else may have changed the pools. Never waits.
    pub fn note_others(&self) {
        self.others.notify_one();
    }

    /// Waits until somebody else may have changed the pools since the last time. Cancel-safe.
    pub async fn others(&self) {
        self.others.notified().await;
    }

    /// Ends the owner, and waits for that at most `within`; `true` if it ended in time. The current growth is
    /// interrupted; its pages are given back, or kept and recorded, as its caller requested.
    pub async fn stop(&self, within: Duration) -> bool {
        /// Interval of cancelling writes that were begun since.
        const PAUSE: Duration = Duration::from_millis(20);
        let (reply, ended) = oneshot::channel();
        let ends = async {
            // Accepted or refused because the owner has ended: either way it ends.
            let _ = self.orders.send(PoolsOrder::Stop(reply)).await;
            let _ = ended.await;
        };
        tokio::pin!(ends);
        let until_ended = async {
            self.cancel.cancel();
            tracing::debug!("the owner of the hugepage pools was asked to end");
            // Pinned: goes on when the pause ends first.
            while timeout(PAUSE, &mut ends).await.is_err() {
                self.cancel.cancel();
            }
        };
        timeout(within, until_ended).await.is_ok()
    }

    /// Sends a request and waits for its reply; `late` describes the consequence of a timeout.
    async fn ask<T>(
        &self,
        late: &str,
        order: impl FnOnce(oneshot::Sender<T>) -> PoolsOrder,
    ) -> Result<T, Fault> {
        self.ask_in(&self.orders, late, order).await
    }

    async fn ask_in<T>(
        &self,
        queue: &mpsc::Sender<PoolsOrder>,
        late: &str,
        order: impl FnOnce(oneshot::Sender<T>) -> PoolsOrder,
    ) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        queue.try_send(order(reply)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Fault::new(
                Code::PoolsBusy,
                format!(
                    "{} requests for hugepages wait already: call again later",
                    queue.max_capacity()
                ),
            ),
            mpsc::error::TrySendError::Closed(_) => owner_gone(),
        })?;
        match timeout(self.timeout, answer).await {
            Ok(answer) => answer.map_err(|_| owner_gone()),
            Err(_) => Err(Fault::new(
                Code::PoolsTimeout,
                format!(
                    "the owner of the hugepage pools has waited for the kernel for more than {:?}; {late}",
                    self.timeout
                ),
            )),
        }
    }
}

async fn run(
    work: MemoryWork,
    mut queue: mpsc::Receiver<PoolsOrder>,
    mut records_queue: mpsc::Receiver<PoolsOrder>,
    mut heartbeat: Heartbeat,
) {
    let mut idle = Some(work);
    while let Some(mut work) = idle.take() {
        let order = loop {
            tokio::select! {
                biased;
                // All are cancel-safe: a request stays queued, a heartbeat stays due.
                Some(order) = records_queue.recv() => break Some(order),
                order = queue.recv() => break order,
                () = heartbeat.due() => {}
            }
        };
        let order = match order {
            None => return,
            Some(PoolsOrder::Stop(reply)) => {
                let _ = reply.send(());
                return;
            }
            Some(order) => order,
        };
        let Some(order) = answer_at_once(&mut work, order).await else {
            idle = Some(work);
            continue;
        };
        let ahead = match &order {
            PoolsOrder::Prepare(order, _) => work.looks_ahead(order),
            _ => None,
        };
        let about = ("pools", "the hugepage pools".to_string());
        let done = with_limit(WORK_LIMIT, about, blocking(move || execute(work, order)));
        if let Some(ahead) = ahead {
            ahead.look();
        }
        tokio::pin!(done);
        idle = loop {
            tokio::select! {
                // The work is pinned and goes on when a heartbeat comes first.
                work = &mut done => break work.ok(),
                () = heartbeat.due() => {}
            }
        };
    }
    tracing::error!(
        "the task that owns the hugepage pools ended unexpectedly: restart the agent to change hugepages again"
    );
}

/// Answers a dry run that takes only a read of some counters; returns any other request. Handing such a dry run to
/// another thread and back would take longer than the read.
async fn answer_at_once(work: &mut MemoryWork, order: PoolsOrder) -> Option<PoolsOrder> {
    let PoolsOrder::Prepare(order, reply) = order else { return Some(order) };
    if order.dry_run {
        // Tasks that only have to send a request, such as to the engine's owner, go first.
        yield_now().await;
    }
    match work.plan_at_once(&order) {
        Some(report) => {
            let _ = reply.send(report);
            None
        }
        None => Some(PoolsOrder::Prepare(order, reply)),
    }
}

/// Executes one request, also if its caller has gone.
fn execute(mut work: MemoryWork, order: PoolsOrder) -> MemoryWork {
    match order {
        PoolsOrder::Prepare(order, reply) => {
            let _ = reply.send(work.prepare(&order));
        }
        PoolsOrder::Restore { unless_done, reply } => {
            let done = unless_done && work.is_restored();
            let _ = reply.send(if done { PartReport::default() } else { work.restore() });
        }
        PoolsOrder::MountAgain { has_targets, reply } => {
            let _ = reply.send(work.mount_again(has_targets));
        }
        PoolsOrder::Reclaim(order, reply) => {
            let _ = reply.send(work.reclaim(order));
        }
        PoolsOrder::Look(reply) => {
            let _ = reply.send(work.look());
        }
        PoolsOrder::Reserve(request, cancelled, reply) => {
            let _ = reply.send(work.reserve(&request, &cancelled));
        }
        PoolsOrder::Records(of) => of(&mut work),
        PoolsOrder::Settle { fill, reply } => {
            let _ = reply.send(work.settle(fill));
        }
        // `run` itself ends on this request.
        PoolsOrder::Stop(_) => {}
    }
    work.catch_up();
    work
}
