//! Preparation of the node: memory and engine at the same time, shared by equal requests.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::Either;
use tokio::sync::{mpsc, oneshot};

use super::admission::{Admitted, RunQueue};
use super::engine::EngineHandle;
use super::owner_gone;
use super::pools::Pools;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::pools::PoolGoal;
use crate::model::prepare::{PartReport, PrepareReport, PrepareRequest, StepOutcome};
use crate::model::work::WorkId;
use crate::wait;
use crate::watchdog::Heartbeat;

/// Maximum of calls queued for the owner.
const QUEUE: usize = 256;
/// Maximum of different prepares that wait for the running one.
const MOST_WAITING: usize = 16;

/// Outcome of a prepare.
pub type Prepared = Result<Arc<PrepareReport>, Fault>;
type OutcomeWaiter = oneshot::Sender<Prepared>;
/// Call: the request, the sender for its outcome, and the sender for its work id.
type PrepareCall = (PrepareRequest, OutcomeWaiter, oneshot::Sender<WorkId>);

/// Handle of the owner that prepares the node.
#[derive(Debug, Clone)]
pub struct Prepare {
    calls: mpsc::Sender<PrepareCall>,
    pools: Pools,
}

impl Prepare {
    pub fn start(
        pools: Pools,
        engine: EngineHandle,
        manage_engine: bool,
        heartbeat: Heartbeat,
    ) -> Prepare {
        let (calls, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(pools.clone(), engine, manage_engine, queue, heartbeat));
        Prepare { calls, pools }
    }

    /// Prepares the node, or joins a prepare that covers `request`. Returns the id of the work and its outcome.
    ///
    /// # Errors
    /// Only when the request was not admitted; failures of the work are in the report.
    pub async fn begin(
        &self,
        request: PrepareRequest,
    ) -> Result<(WorkId, impl Future<Output = Prepared> + Send + use<>), Fault> {
        if !request.engine {
            // A request for pages alone goes to the pools' owner, which takes one request after the other, and never
            // waits for an engine that is being installed.
            let (pools, id) = (self.pools.clone(), WorkId::next());
            let done = async move { Ok(Arc::new(work(&pools, None, id, request).await)) };
            return Ok((id, Either::Left(done)));
        }
        let ((waiter, answer), (admitted, admission_id)) = (oneshot::channel(), oneshot::channel());
        self.calls.try_send((request, waiter, admitted)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => owner_gone(),
        })?;
        let done = async move { answer.await.unwrap_or_else(|_| Err(owner_gone())) };
        match admission_id.await {
            Ok(id) => Ok((id, Either::Right(done))),
            // Not admitted: the outcome has the reason.
            Err(_) => Err(done.await.err().unwrap_or_else(owner_gone)),
        }
    }

    /// Prepares the node as [`Prepare::begin`] does, and waits for the outcome.
    ///
    /// # Errors
    /// As [`Prepare::begin`].
    pub async fn prepare(&self, request: PrepareRequest) -> Prepared {
        let (_, done) = self.begin(request).await?;
        done.await
    }
}

fn busy() -> Fault {
    Fault::new(Code::PrepareBusy, "too many different prepares wait already: call again later")
}

async fn run(
    pools: Pools,
    engine: EngineHandle,
    manage_engine: bool,
    mut calls: mpsc::Receiver<PrepareCall>,
    mut heartbeat: Heartbeat,
) {
    let mut admission: RunQueue<OutcomeWaiter> = RunQueue::new(MOST_WAITING);
    // One prepare at a time. Its future is polled here, so that the prepare and the waiting calls are one task.
    let mut running: Option<PrepareRun> = None;
    loop {
        tokio::select! {
            // Pinned: goes on when another arm comes first.
            report = wait::end(&mut running) => {
                let (waiters, next) = admission.finish();
                let report = Arc::new(report);
                for waiter in waiters {
                    let _ = waiter.send(Ok(report.clone()));
                }
                running = next.map(|(id, request)| start(&pools, &engine, manage_engine, id, request));
            }
            // Cancel-safe: a call stays in the channel.
            call = calls.recv() => {
                let Some((request, waiter, admitted)) = call else { return };
                match admission.submit(request, waiter) {
                    Admitted::Start(id, request) => {
                        let _ = admitted.send(id);
                        running = Some(start(&pools, &engine, manage_engine, id, request));
                    }
                    Admitted::Waits(id) => drop(admitted.send(id)),
                    Admitted::Full(waiter) => {
                        let _ = waiter.send(Err(busy()));
                    }
                }
            }
            // Cancel-safe: a heartbeat stays due.
            () = heartbeat.due() => {}
        }
    }
}

type PrepareRun = std::pin::Pin<Box<dyn Future<Output = PrepareReport> + Send>>;

fn start(
    pools: &Pools,
    engine: &EngineHandle,
    manage_engine: bool,
    id: WorkId,
    request: PrepareRequest,
) -> PrepareRun {
    let (pools, engine) = (pools.clone(), engine.clone());
    Box::pin(async move {
        let engine = (request.engine && manage_engine).then_some(&engine);
        work(&pools, engine, id, request).await
    })
}

/// Prepares memory and engine at the same time, each planned before it is applied.
///
/// A request for pages that cannot be met is known from the plan; then nothing is changed, nor is the
/// engine. Parts that the plan finds in place are not observed again.
async fn work(
    pools: &Pools,
    engine: Option<&EngineHandle>,
    id: WorkId,
    request: PrepareRequest,
) -> PrepareReport {
    let began = Instant::now();
    let dry_run = request.dry_run;
    let (may_act, memory_may_be_met) = oneshot::channel();
    let engine_part = async {
        let planned = prepare_engine(engine, id, true).await;
        match dry_run || planned.steps.is_empty() || !memory_may_be_met.await.unwrap_or(false) {
            true => planned,
            false => prepare_engine(engine, id, false).await,
        }
    };
    let memory_part = async {
        let planned = memory(pools, id, &request, true).await;
        let possible = planned.errors.is_empty();
        let _ = may_act.send(possible);
        let holds = planned.steps.is_empty() && pools.remembered();
        match dry_run || !possible || holds {
            true => planned,
            false => memory(pools, id, &request, false).await,
        }
    };
    // The engine is queried before the pools, which are observed while it answers.
    let (engine_part, mut memory_part) = tokio::join!(engine_part, memory_part);
    memory_part.merge(engine_part);
    if !dry_run {
        // Steps that were only planned were not applied.
        memory_part.steps.retain(|step| step.outcome != StepOutcome::Planned);
    }
    PrepareReport::of(dry_run, memory_part, began.elapsed())
}

async fn prepare_engine(engine: Option<&EngineHandle>, id: WorkId, dry_run: bool) -> PartReport {
    match engine {
        Some(engine) => engine.prepare(id, dry_run).await,
        None => PartReport::default(),
    }
}

async fn memory(pools: &Pools, id: WorkId, request: &PrepareRequest, dry_run: bool) -> PartReport {
    let mut mounts: Vec<_> = request.hugepages.iter().map(|want| want.size).collect();
    mounts.sort_unstable();
    mounts.dedup();
    let goal = PoolGoal::Free(request.hugepages.clone());
    pools.prepare(id, goal, mounts, request.keep_partial, dry_run).await
}
