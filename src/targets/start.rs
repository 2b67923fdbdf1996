//! Starts and kills of a target's process, and the warnings that go with them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::TargetChange;
use super::converge::Converged;
use super::status::SharedStatus;
use super::worker::{After, Worker};
use crate::docker::Containers;
use crate::model::fault::Fault;
use crate::model::observation::{Observation, Process};
use crate::model::path::CleanPath;
use crate::model::policy::HealPolicy;
use crate::model::prepare::PartReport;
use crate::model::target::{EnsureOptions, TargetSeen, TargetSpec};
use crate::plan::lifecycle::Attempt;
use crate::plan::quarantine::Exit;
use crate::plan::retry::CRASH_LOOP;
use crate::plan::target::end_unresponsive;

/// Pause before an engine that does not answer is asked again: it may come back any moment, and its absence says
/// nothing of the target.
pub(super) const ENGINE_PAUSE: Duration = Duration::from_secs(2);
/// Wait for the engine's start, which goes on by itself.
const RAISE_TIME: Duration = Duration::from_secs(30);

impl<C: Containers> Worker<C> {
    /// Tries once to bring the target up.
    pub(super) async fn start(&mut self, spec: TargetSpec, failures: u32, anew: bool) -> After {
        let began = Instant::now();
        let options = EnsureOptions { anew, recovers: true, ..EnsureOptions::default() };
        let mut report = PartReport::default();
        let control = spec.control_sock.clone();
        let done = self.change(&TargetChange::Ensure(spec, options), &mut report).await;
        // What it replaced was dead.
        self.status.change(|known| known.stopping = false);
        let attempt = match done {
            Ok(Converged::NeedsImage(step)) => {
                return After::NeedsImage(self.bring_in(step), None);
            }
            Ok(Converged::Holds) => {
                let answers = self.seen_at(&control).is_some_and(|seen| seen.version().is_some());
                if answers && !report.steps.is_empty() {
                    self.status.change(|known| known.restarts += 1);
                    let took = began.elapsed();
                    tracing::info!(target_name = %self.name(), "{} was brought up again in {took:.1?}", self.name());
                }
                // Otherwise it was not observed to answer.
                (!answers).then_some(Attempt::Failed)
            }
            Err(fault) if fault.code.is_engine_away() => Some(self.wait_for_engine(&fault).await),
            Err(fault) => {
                Some(start_failed(&self.status, &self.parts.policy.heal, failures, &fault))
            }
        };
        After::Started(attempt)
    }

    /// Last observation at a control socket.
    pub(super) fn seen_at(&self, control: &CleanPath) -> Option<Arc<Observation>> {
        Some(self.parts.observers.observe(self.name(), control).borrow().clone())
    }

    pub(super) async fn wait_for_engine(&mut self, fault: &Fault) -> Attempt {
        let first = !std::mem::replace(&mut self.without_engine, true);
        if first {
            tracing::warn!(
                target_name = %self.name(), code = %fault.code,
                "{} cannot be brought up again before the engine answers: {fault}", self.name()
            );
        }
        let raised = match &self.parts.engine {
            Some(engine) => tokio::time::timeout(RAISE_TIME, engine.raise()).await.unwrap_or(false),
            None => false,
        };
        // Guests wait: an engine that was just started is asked at once, but only once.
        Attempt::After(if raised && first { Duration::ZERO } else { ENGINE_PAUSE })
    }

    /// Kills its stuck process: as long as it accepts connections and serves none, each guest that reconnects to it
    /// is lost.
    pub(super) async fn kill(&mut self, spec: &TargetSpec) {
        let container = match self.parts.observer.container_of(spec).await {
            Ok(container) => container,
            Err(fault) => {
                tracing::warn!(
                    target_name = %self.name(), code = %fault.code,
                    "{} is stuck, and is killed once the engine tells its container: {fault}", self.name()
                );
                return;
            }
        };
        // The engine may have taken its time: what was true of a process then need not be true of this one now.
        let pid = container.as_ref().and_then(|it| it.pid);
        let seen = self.seen_at(&spec.control_sock);
        let Some(seen) = seen.filter(|seen| seen.pid() == pid && is_silent(seen)) else {
            tracing::info!(target_name = %self.name(), "{} is not stuck any more, and is not killed", self.name());
            return;
        };
        let silence = seen.answers.silence();
        let done = match end_unresponsive(spec, container.as_ref()) {
            Some(step) => {
                tracing::error!(
                    target_name = %self.name(),
                    "{} is stuck, and is killed so that it can be brought back: {silence}", self.name()
                );
                self.status.exited(format!("killed by the agent, for it was stuck: {silence}"));
                self.status.change(|known| known.killed = true);
                self.quarantine.note_exit(Exit::Killed);
                self.apply(&step, &TargetSeen::default(), &mut PartReport::default()).await
            }
            None => Ok(()),
        };
        if let Err(fault) = done {
            tracing::warn!(target_name = %self.name(), code = %fault.code, "{} is stuck: {fault}", self.name());
        }
        self.parts.observers.look_again(self.name(), &spec.control_sock).await;
    }
}

/// `true` if it does not answer and nothing explains that.
fn is_silent(seen: &Observation) -> bool {
    seen.answers.is_silent() && seen.version().is_none() && !seen.is_busy()
}

/// `true` if it is there, old enough, and silent; not if somebody has just started it, or it was not probed yet.
pub(super) fn hangs(seen: &Observation) -> bool {
    matches!(seen.process, Process::Lives { young: false, .. }) && is_silent(seen)
}

/// Reports a start that failed, after so many failures.
pub(super) fn start_failed(
    status: &SharedStatus,
    policy: &HealPolicy,
    failures: u32,
    fault: &Fault,
) -> Attempt {
    let (name, failures) = (status.name(), failures + 1);
    tracing::warn!(
        target_name = %name, failures, code = %fault.code,
        "{name} could not be brought up again: {fault}"
    );
    if failures >= CRASH_LOOP {
        blame(status, policy, failures, &fault.text);
    }
    Attempt::Failed
}

/// Reports a crash loop, with the evidence, until the target serves.
pub(super) fn blame(status: &SharedStatus, policy: &HealPolicy, failures: u32, evidence: &str) {
    let most = policy.most;
    let text = format!(
        "it exits again and again ({failures} times in short order), and is tried again with pauses of up \
         to {most:?}: {evidence}"
    );
    status.change(|known| known.trouble = Some(text));
}
