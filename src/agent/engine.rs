//! Owner of the engine: observe, plan, apply, until it is installed, configured and answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::apply::engine::{EngineApplier, Spawns};
use super::observe::engine::{EngineObserver, QueryEngine};
use super::owner_gone;
use super::progress_sink::ProgressSink;
use crate::model::code::Code;
use crate::model::engine::{EngineApi, EngineSeen};
use crate::model::fault::Fault;
use crate::model::policy::EnginePolicy;
use crate::model::prepare::{PartReport, StepReport};
use crate::model::step::Step;
use crate::model::work::WorkId;
use crate::overdue::with_limit;
use crate::plan::engine::plan;
use crate::watchdog::Heartbeat;

/// Maximum of queued requests; more are refused.
const QUEUE: usize = 32;
/// Rounds of plan and apply before [`Code::EngineNotConverging`] is reported.
const MOST_ROUNDS: usize = 6;
/// Time that a prepare may take besides the installation and the engine's first answer.
const SLACK: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum EngineOrder {
    Prepare { work: WorkId, dry_run: bool, reply: oneshot::Sender<PartReport> },
}

/// Handle of the engine's owner.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    orders: mpsc::Sender<EngineOrder>,
}

impl EngineHandle {
    pub fn start<E: QueryEngine, S: Spawns>(
        observer: Arc<EngineObserver<E>>,
        applier: EngineApplier<E, S>,
        policy: EnginePolicy,
        progress: ProgressSink,
        heartbeat: Heartbeat,
    ) -> EngineHandle {
        let (orders, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(EngineOwner { observer, applier, policy, progress }, queue, heartbeat));
        EngineHandle { orders }
    }

    /// Installs, configures and starts the engine as needed. Every step has its own deadline.
    pub async fn prepare(&self, work: WorkId, dry_run: bool) -> PartReport {
        let failed = |fault| PartReport { errors: vec![fault], ..PartReport::default() };
        let (reply, answer) = oneshot::channel();
        match self.orders.try_send(EngineOrder::Prepare { work, dry_run, reply }) {
            Ok(()) => answer.await.unwrap_or_else(|_| failed(owner_gone())),
            Err(mpsc::error::TrySendError::Full(_)) => failed(Fault::new(
                Code::EngineBusy,
                format!("{QUEUE} requests for the engine wait already: call again later"),
            )),
            Err(mpsc::error::TrySendError::Closed(_)) => failed(owner_gone()),
        }
    }

    /// Starts an engine that has exited, but never installs one: a removed engine is not desired any more.
    /// Returns `true` if it answers now.
    pub async fn raise(&self) -> bool {
        let work = WorkId::next();
        let plan = self.prepare(work, true).await;
        if plan.steps.iter().any(|step| step.step == "install") {
            tracing::warn!("the engine is not installed any more: prepare the node again");
            return false;
        }
        let report = self.prepare(work, false).await;
        if let Some(fault) = report.errors.first() {
            tracing::warn!(code = %fault.code, "the engine could not be started again: {fault}");
        }
        report.errors.is_empty()
    }
}

struct EngineOwner<E, S> {
    observer: Arc<EngineObserver<E>>,
    applier: EngineApplier<E, S>,
    policy: EnginePolicy,
    progress: ProgressSink,
}

async fn run<E: QueryEngine, S: Spawns>(
    mut owner: EngineOwner<E, S>,
    mut queue: mpsc::Receiver<EngineOrder>,
    mut heartbeat: Heartbeat,
) {
    loop {
        let order = tokio::select! {
            // Both are cancel-safe: a request stays queued, a heartbeat stays due.
            order = queue.recv() => order,
            () = heartbeat.due() => continue,
        };
        let Some(EngineOrder::Prepare { work, dry_run, reply }) = order else { return };
        owner.progress = owner.progress.of(work);
        let limit = owner.policy.install_timeout + owner.policy.ready_timeout + SLACK;
        let work = with_limit(limit, ("engine", "the engine".to_string()), owner.prepare(dry_run));
        tokio::pin!(work);
        let report = loop {
            tokio::select! {
                // The work is pinned and goes on when a heartbeat comes first.
                report = &mut work => break report,
                () = heartbeat.due() => {}
            }
        };
        let _ = reply.send(report);
    }
}

impl<E: QueryEngine, S: Spawns> EngineOwner<E, S> {
    async fn prepare(&mut self, dry_run: bool) -> PartReport {
        let mut report = PartReport::default();
        if let Err(fault) = self.converge(dry_run, &mut report).await {
            report.errors.push(fault);
        }
        report
    }

    async fn converge(&mut self, dry_run: bool, report: &mut PartReport) -> Result<(), Fault> {
        for _ in 0..MOST_ROUNDS {
            let mut seen: EngineSeen = self.observer.look().await?;
            seen.installed_version = self.applier.installed_version(&seen).await;
            let plan = plan(&seen, &self.policy)?;
            report.findings = plan.findings;
            if let EngineApi::Answers(version) = &seen.api {
                report.engine_version = Some(version.version.clone());
            }
            if plan.steps.is_empty() {
                return Ok(());
            }
            if dry_run {
                report.steps.extend(plan.steps.iter().map(StepReport::planned));
                return Ok(());
            }
            let mut written = None;
            for step in plan.steps {
                if let Err(fault) = self.apply(&step, &seen, report).await {
                    // The settings file is not reverted if the engine was installed meanwhile: it has never run with
                    // another file, and a later start would take over the host's packet filter.
                    return Err(match written {
                        Some(write) => {
                            self.applier.take_back(&write, &seen.daemon_json, fault).await
                        }
                        None => fault,
                    });
                }
                // Installed packages may start and enable services: observe again.
                if matches!(step, Step::Install { .. }) {
                    break;
                }
                if matches!(step, Step::WriteDaemonJson { .. }) {
                    written = Some(step);
                }
            }
        }
        Err(Fault::new(
            Code::EngineNotConverging,
            format!(
                "the engine is still not as wanted after {MOST_ROUNDS} rounds: see the steps of this report"
            ),
        ))
    }

    async fn apply(
        &mut self,
        step: &Step,
        seen: &EngineSeen,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        let begun = self.progress.begun(step);
        let applied = self.applier.apply(step, seen, |line| begun.line(line)).await;
        begun.applied(applied, &mut report.steps)
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
