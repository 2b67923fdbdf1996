//! Phases of a target: steps of its lifecycle as its task takes them, and the notes at each entry into a phase.

use tokio::time::Instant;

use super::{Mandate, Task, WorkResults, WorkerState};
use crate::docker::Containers;
use crate::model::observation::{Observation, Process};
use crate::model::status::LastExit;
use crate::model::target::TargetSpec;
use crate::plan::lifecycle::{Action, LifecycleRecord, Phase, Situation, step};
use crate::targets::now;
use crate::targets::worker::WorkerJob;

/// Most steps in a row, each of which leads to another phase.
const MOST_STEPS: usize = 16;

impl<C: Containers> Task<C> {
    /// Takes all steps of the lifecycle that there are now, and begins the actions that they ask for.
    pub(super) fn advance(&mut self, spec: &TargetSpec) {
        for _ in 0..MOST_STEPS {
            let Some(seen) = self.seen() else { return };
            let is_free = self.mandate != Mandate::Look
                && self.worker.is_idle()
                // A target on trial is evaluated, and neither started nor killed.
                && self.trial_since.is_none()
                && self.crashed.is_none()
                && self.start_image.is_none();
            let (now, situation) = (Instant::now().into_std(), self.situation(is_free));
            let done = step(&self.state, &seen, &situation, now, &self.parts.policy.heal);
            let before = std::mem::replace(&mut self.state, done.state);
            self.requeue_at = done.requeue_at.map(Instant::from_std);
            self.news = WorkResults::default();
            let changed = before.phase != self.state.phase;
            if changed {
                self.enter(before.phase, &seen);
            }
            match done.action {
                Action::Start if is_free => {
                    let failures = self.state.retry.failures();
                    // Files that the target left in its container may be the cause of its exits.
                    let anew = self.state.retry.is_crash_loop();
                    self.begin(WorkerJob::Start { spec: spec.clone(), failures, anew });
                }
                Action::Kill if is_free => self.begin(WorkerJob::Kill(spec.clone())),
                Action::Kill => {
                    let silence = seen.answers.silence();
                    self.stuck.send_replace(Some(format!("{silence}: it is brought back")));
                    return;
                }
                Action::Start | Action::Wait if changed => {}
                Action::Start | Action::Wait => break,
            }
        }
        if matches!(self.state.phase, Phase::Paused { .. }) && !self.worker.is_idle() {
            let why = "its container is paused: unpause it".to_string();
            self.stuck.send_replace(Some(why));
        }
    }

    fn situation(&self, is_free: bool) -> Situation {
        let made = self.status.read(|known| known.controllers_made);
        let grace_period = self.parts.policy.heal.grace_period;
        Situation {
            wanted: true,
            has_users: !self.parts.desired.volumes(self.name()).is_empty(),
            bringing_up: self.worker.brings_up() || self.start_image.is_some(),
            stopping: self.news.stopped || self.status.read(|known| known.stopping),
            is_free,
            at_start: self.mandate == Mandate::Start,
            attempt: self.news.attempt,
            grace_until: made.map(|made| (made + grace_period).into_std()),
        }
    }

    /// Logs and notes the entry into the current phase; `before` is the phase that was left.
    fn enter(&mut self, before: Phase, seen: &Observation) {
        let name = self.name().clone();
        tracing::debug!(
            target_name = %name, from = before.name(), to = self.state.phase.name(),
            "{name}: from phase {} to {}", before.name(), self.state.phase.name()
        );
        match self.state.phase {
            Phase::Down { .. } if before.pid().is_some() => self.exited(seen),
            Phase::Probation { .. } => self.has_started(),
            Phase::Serving { pid, .. } => {
                self.has_started();
                self.status.change(|known| {
                    if known.in_place != Some(pid) {
                        known.next_pass = Some(Instant::now());
                    }
                });
            }
            // A target that was paused is given the time to answer.
            Phase::Unresponsive { .. }
                if seen.answers.is_silent() && before.name() != self.state.phase.name() =>
            {
                let silence = seen.answers.silence();
                tracing::warn!(target_name = %name, "{name} is unresponsive: {silence}");
            }
            Phase::Paused { .. } => {
                tracing::warn!(
                    target_name = %name,
                    "{name} is paused: its cgroup is frozen, and the agent does not resume it; `docker unpause` does"
                );
            }
            _ => {}
        }
    }

    /// Notes that the target has been brought up since the agent started.
    fn has_started(&mut self) {
        if self.mandate == Mandate::Start {
            self.mandate = Mandate::Act;
        }
    }

    fn exited(&mut self, seen: &Observation) {
        let how = match &seen.process {
            Process::Ended(how) => how.clone(),
            Process::NoContainer => "there is no container of that name".to_string(),
            _ => "another process answers in its place".to_string(),
        };
        // In a crash loop, the cause was reported already.
        let again = self.status.read(|known| known.trouble.is_some());
        let why = if again { "its process has exited once more".to_string() } else { how.clone() };
        self.status.change(|known| {
            if !std::mem::take(&mut known.killed) {
                // Recorded until the cause is known in more detail.
                known.last_exit = Some(LastExit { at: now(), cause: how });
            }
            known.exits += 1;
            known.volumes.exited(&now());
            (known.in_place, known.next_pass) = (None, None);
        });
        let volumes = self.parts.desired.volumes(self.name()).len();
        let failures = self.state.retry.failures();
        let heals = self.parts.policy.heal.enabled || self.mandate == Mandate::Start;
        tracing::warn!(
            target_name = %self.name(), volumes, failures, heals,
            "{} with {volumes} volumes is down: {why}", self.name()
        );
        self.crashed = Some(why).filter(|_| self.state.retry.is_crash_loop());
    }

    /// Forgets a target that is no longer desired.
    pub(super) fn release(&mut self) {
        if self.state.phase == Phase::Unwanted && self.written == LifecycleRecord::default() {
            return;
        }
        let now = Instant::now().into_std();
        let nobody = Situation::default();
        let unseen = Observation::unseen(now);
        self.state = step(&self.state, &unseen, &nobody, now, &self.parts.policy.heal).state;
        (self.requeue_at, self.crashed) = (None, None);
        if let WorkerState::Idle(worker) = &mut self.worker {
            worker.forget();
        }
    }
}
