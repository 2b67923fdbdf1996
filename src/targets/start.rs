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
    /// Tries once to bring the target up, after `failures` failures; with `anew`, in a new container.
    pub(super) async fn start(&mut self, spec: TargetSpec, failures: u32, anew: bool) -> After {
        let began = Instant::now();
        let options = EnsureOptions { anew, recovers: true, ..EnsureOptions::default() };
        let mut report = PartReport::default();
        let control = spec.control_sock.clone();
        let done = self.change(&TargetChange::Ensure(spec, options), &mut report).await;
        // The process that the start replaced was dead: nothing is being stopped.
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
                    tracing::info!(target_name = %self.name(), "{} was restarted in {took:.1?}", self.name());
                }
                // Without an answer in the last observation, the start has failed.
                (!answers).then(|| self.failure(&control))
            }
            Err(fault) if fault.code.is_engine_away() => Some(self.wait_for_engine(&fault).await),
            Err(fault) => {
                start_failed(&self.status, &self.parts.policy.heal, failures, &fault);
                Some(self.failure(&control))
            }
        };
        After::Started(attempt)
    }

    /// Failure of a start: of a process that has answered meanwhile and hangs since then, or of one that never did.
    fn failure(&self, control: &CleanPath) -> Attempt {
        let pid = self.seen_at(control).and_then(|seen| seen.pid());
        let heard = pid.filter(|pid| self.answered == Some(*pid));
        heard.map_or(Attempt::Failed, Attempt::Silent)
    }

    /// Last observation of the target at `control`.
    pub(super) fn seen_at(&self, control: &CleanPath) -> Option<Arc<Observation>> {
        Some(self.parts.observers.observe(self.name(), control).borrow().clone())
    }

    pub(super) async fn wait_for_engine(&mut self, fault: &Fault) -> Attempt {
        let first = !std::mem::replace(&mut self.without_engine, true);
        if first {
            tracing::warn!(
                target_name = %self.name(), code = %fault.code,
                "{} cannot be started before the engine answers: {fault}", self.name()
            );
        }
        let raised = match &self.parts.engine {
            Some(engine) => tokio::time::timeout(RAISE_TIME, engine.raise()).await.unwrap_or(false),
            None => false,
        };
        // Guests wait, so an engine that was just started is queried at once, but only the first time.
        Attempt::After(if raised && first { Duration::ZERO } else { ENGINE_PAUSE })
    }

    /// Kills the stuck process of the target. As long as it accepts connections and serves none, each guest that
    /// reconnects to it is lost.
    pub(super) async fn kill(&mut self, spec: &TargetSpec) {
        let container = match self.parts.observer.container_of(spec).await {
            Ok(container) => container,
            // Its absence is reported by the start.
            Err(fault) if fault.code.is_engine_away() => return,
            Err(fault) => {
                tracing::warn!(
                    target_name = %self.name(), code = %fault.code,
                    "{} is unresponsive, and is killed once the engine reports its container: {fault}", self.name()
                );
                return;
            }
        };
        // The engine may have answered late: meanwhile, another process may have started, or the stuck one may have
        // answered.
        let pid = container.as_ref().and_then(|it| it.pid);
        let seen = self.seen_at(&spec.control_sock);
        let Some(seen) = seen.filter(|seen| seen.pid() == pid && is_silent(seen)) else {
            tracing::info!(target_name = %self.name(), "{} answers again, or its process was replaced: it is not killed", self.name());
            return;
        };
        let silence = seen.answers.silence();
        let done = match end_unresponsive(spec, container.as_ref()) {
            Some(step) => {
                tracing::error!(
                    target_name = %self.name(),
                    "{} is unresponsive, and is killed so that it can be restarted: {silence}", self.name()
                );
                self.status.exited(format!("killed by the agent, for it was stuck: {silence}"));
                self.status.change(|known| known.killed = true);
                self.quarantine.note_exit(Exit::Killed);
                self.apply(&step, &TargetSeen::default(), &mut PartReport::default()).await
            }
            None => Ok(()),
        };
        if let Err(fault) = done {
            tracing::warn!(target_name = %self.name(), code = %fault.code, "{} is unresponsive, but could not be killed: {fault}", self.name());
        }
        self.parts.observers.look_again(self.name(), &spec.control_sock).await;
    }
}

/// `true` if the target does not answer and nothing explains that.
fn is_silent(seen: &Observation) -> bool {
    seen.answers.is_silent() && seen.version().is_none() && !seen.is_busy()
}

/// `true` if the process lives, is past its time to start, and missed probes that no open request of the agent explains.
pub(super) fn hangs(seen: &Observation) -> bool {
    matches!(seen.process, Process::Lives { young: false, .. }) && is_silent(seen)
}

/// Reports a start that failed with `fault`; `failures` is the number of failures before it.
pub(super) fn start_failed(
    status: &SharedStatus,
    policy: &HealPolicy,
    failures: u32,
    fault: &Fault,
) {
    let (name, failures) = (status.name(), failures + 1);
    tracing::warn!(
        target_name = %name, failures, code = %fault.code,
        "{name} could not be started: {fault}"
    );
    if failures >= CRASH_LOOP {
        blame(status, policy, failures, &fault.text);
    }
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
