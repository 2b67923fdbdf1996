//! Reconciliation of a target's container: rounds of observe, plan and apply until the container runs as desired.

use std::time::Duration;

use tokio::time::sleep_until;

use super::worker::Worker;
use super::{TargetChange, now};
use crate::docker::Containers;
use crate::model::code::Code;
use crate::model::container::ContainerSeen;
use crate::model::fault::{Fault, Finding};
use crate::model::prepare::{PartReport, StepReport};
use crate::model::step::Step;
use crate::model::target::{TargetSeen, TargetSpec};
use crate::plan::memory::sized;
use crate::plan::quarantine::Exit;
use crate::plan::target::end_unresponsive;

/// Exit code of a container whose process was ended by SIGKILL.
const SIGKILLED: i64 = 137;
/// Rounds of plan and apply before the target is reported as not converging.
const MOST_ROUNDS: usize = 5;

/// Outcome of the rounds.
pub(super) enum Converged {
    /// Target as desired; in a dry run, the plan is in the report.
    Holds,
    /// Image to be brought in first, by this step.
    NeedsImage(Step),
}

impl<C: Containers> Worker<C> {
    /// Reconciles the target. It is observed from the beginning, and anew at the end, so that health requests reflect
    /// the change.
    pub(super) async fn change(
        &mut self,
        change: &TargetChange,
        report: &mut PartReport,
    ) -> Result<Converged, Fault> {
        let TargetSpec { name, control_sock, .. } = change.spec();
        let desired = || self.parts.desired.get(name).map(|spec| spec.control_sock);
        let before = desired().unwrap_or_else(|| control_sock.clone());
        self.parts.observers.observe(name, &before);
        let mut done = self.converge(change, false, report).await;
        if let Ok(Converged::NeedsImage(_)) = done {
            return done;
        }
        if let (TargetChange::Destroy { .. }, Ok(_)) = (change, &done) {
            if let Some(trial) = self.trial() {
                self.remove_kept(&trial, report).await;
            }
            done = self.parts.desired.forget(name).await.map(|()| Converged::Holds);
        }
        let control = self.parts.desired.get(name).map_or(before, |spec| spec.control_sock);
        self.parts.observers.look_again(name, &control).await;
        done
    }

    pub(super) async fn converge(
        &mut self,
        change: &TargetChange,
        dry_run: bool,
        report: &mut PartReport,
    ) -> Result<Converged, Fault> {
        if let TargetChange::Ensure(spec, _) = change {
            self.parts.desired.judge(spec)?;
        }
        if dry_run {
            return self.rounds(change, true, report).await;
        }
        match (self.rounds(change, false, report).await, change) {
            (Err(fault), TargetChange::Ensure(..)) => Err(self.bring_back(fault, report).await),
            (done, _) => done,
        }
    }

    async fn rounds(
        &mut self,
        change: &TargetChange,
        dry_run: bool,
        report: &mut PartReport,
    ) -> Result<Converged, Fault> {
        let mut change = change.clone();
        let (mut awaited, mut was_running) = (false, false);
        let wanted_before = self.parts.desired.get(&change.spec().name);
        for _ in 0..MOST_ROUNDS {
            let mut seen = match self.parts.observer.look(change.spec(), change.moves_names()).await
            {
                // The new target has answered; whether it serves is evaluated with its volumes.
                Err(_) if awaited && self.trial().is_some() => return Ok(Converged::Holds),
                seen => seen?,
            };
            seen.known = wanted_before.clone();
            seen.disconnected =
                self.status.read(|known| known.volumes.tally().disconnected_sessions);
            seen.promised_pages = change.promised(&self.parts.pages.borrow());
            was_running |= !awaited && seen.container.as_ref().is_some_and(|it| it.running);
            if let Some(ended) = seen.container.as_ref().filter(|it| !it.running) {
                let from_outside = ended.oom_killed || ended.exit_code == Some(SIGKILLED);
                let exit = if from_outside { Exit::FromOutside } else { Exit::ByItself };
                self.record_exit(ended, exit).await;
                self.quarantine.note_exit(exit);
            }
            if let TargetChange::Ensure(spec, how) = &mut change {
                let volumes = self.parts.desired.volumes(&spec.name).len();
                *spec = sized(spec, *how, volumes, &seen, &self.parts.policy);
            }
            let mut plan = change.plan(&seen, &self.parts.policy)?;
            // A finding of an earlier round stays unless this round has one of the same code: shared cores are found
            // only in the round that takes them.
            let is_new = |known: &Finding| plan.findings.iter().all(|new| new.code != known.code);
            report.findings.retain(is_new);
            report.findings.extend(plan.findings.iter().cloned());
            if dry_run {
                report.steps.extend(plan.steps.iter().map(StepReport::planned));
                return Ok(Converged::Holds);
            }
            if let Some(step) =
                plan.steps.iter().find(|step| matches!(step, Step::LoadImage { .. }))
            {
                if self.trial().is_some() {
                    let text = format!(
                        "the image of {} has gone meanwhile: bring it in again, and deploy again",
                        change.spec().name
                    );
                    return Err(Fault::new(Code::ImageMissing, text));
                }
                // To load an image takes long. Until that is done, the running target goes on, and stays desired as it
                // is.
                return Ok(Converged::NeedsImage(step.clone()));
            }
            let takes_away = matches!(change, TargetChange::Destroy { .. });
            let before = self.parts.desired.get(&change.spec().name);
            if let TargetChange::Ensure(spec, _) = &change {
                // From here on the target is desired, even if this agent dies. A target that is left as it is stays
                // desired with the spec that it runs with.
                let left = plan.is_left().then(|| seen.made_for()).flatten();
                let left = left.map(|left| left.with_origins(spec, before.as_ref()));
                let begun = plan.exchanged().map(|id| self.new_trial(id, before.as_ref(), &seen));
                let trial = begun.or_else(|| self.trial());
                self.parts.desired.want(left.as_ref().unwrap_or(spec), trial).await?;
            }
            if plan.steps.is_empty() {
                return Ok(Converged::Holds);
            }
            self.hasten(&mut plan.steps, &seen, awaited);
            let stops = plan.steps.iter().rposition(stops).map_or(0, |last| last + 1);
            let (stop, start) = plan.steps.split_at(stops);
            let mut done = self.apply_all(stop, &seen, report).await;
            match done {
                Ok(()) => done = self.apply_all(start, &seen, report).await,
                // A destroy has changed nothing in the desired state; a target that was to be replaced comes back.
                Err(_) if takes_away || self.trial().is_some() => {}
                Err(_) => self.desire_again(before.clone()).await,
            }
            let again = starts_again(&plan.steps);
            if let Err(fault) = done {
                if self.trial().is_some() {
                    return Err(fault);
                }
                if self.exited_meanwhile(change.spec(), &plan.steps).await {
                    continue;
                }
                // The engine may refuse to start a container that ended while the engine was away; a new container has
                // another id.
                if again
                    && fault.code == Code::EngineRefused
                    && let TargetChange::Ensure(_, options) = &mut change
                {
                    options.anew = true;
                    continue;
                }
                if !takes_away && !was_running {
                    self.give_up(change.spec(), wanted_before, &fault).await;
                }
                return Err(fault);
            }
            awaited = true;
            // The replacement is done; the next round only verifies it.
            if let TargetChange::Ensure(_, options) = &mut change {
                options.recreate = false;
            }
        }
        Err(Fault::new(
            Code::TargetNotConverging,
            format!(
                "{} is still not as wanted after {MOST_ROUNDS} rounds: something else changes it too; \
                 see the steps of this report",
                change.spec().name
            ),
        ))
    }

    /// Ends a target that this deploy has started and that never served, and makes the spec of `before` desired again.
    /// The container stays, for inspection. Nothing is done if the engine is away, because then nothing is known of the
    /// target; nor if the target is new and has desired volumes, because its start is retried for their guests.
    async fn give_up(&self, spec: &TargetSpec, before: Option<TargetSpec>, fault: &Fault) {
        let has_users = before.is_none() && !self.parts.desired.volumes(&spec.name).is_empty();
        if before.as_ref() == Some(spec) || has_users || fault.code.is_engine_away() {
            return;
        }
        let ended = async {
            let container = self.parts.observer.container_of(spec).await?;
            match end_unresponsive(spec, container.as_ref()) {
                Some(stop) => {
                    // The exit that follows is the agent's doing, not a crash.
                    self.status.change(|known| known.stopping = true);
                    let mut report = PartReport::default();
                    self.apply(&stop, &TargetSeen::default(), &mut report).await
                }
                None => Ok(()),
            }
        };
        match ended.await {
            Ok(()) => self.desire_again(before).await,
            Err(fault) => tracing::warn!(
                target_name = %self.name(), error = %fault,
                "{} did not serve after its deploy, and could not be stopped, so it stays desired: {fault}", self.name()
            ),
        }
    }

    /// Makes `before` the desired spec again; with `None`, the target is no longer desired.
    async fn desire_again(&self, before: Option<TargetSpec>) {
        let (name, desired) = (self.name(), &self.parts.desired);
        let undone = match before {
            Some(spec) => desired.want(&spec, None).await,
            None => desired.forget(name).await,
        };
        if let Err(fault) = undone {
            tracing::error!(
                target_name = %name, error = %fault,
                "{name}: the desired state from before the failed deploy could not be restored, and the failed one stays \
                 desired; deploy {name} with its former settings, or destroy it: {fault}"
            );
        }
    }

    pub(super) async fn apply_all(
        &mut self,
        steps: &[Step],
        seen: &TargetSeen,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        for step in steps {
            if stops(step) {
                // The exit that follows is the agent's doing, not a crash; and the next process starts with an empty
                // quarantine.
                self.status.change(|known| known.stopping = true);
                self.quarantine.clear();
            }
            let done = self.apply(step, seen, report).await;
            if stops(step) {
                // The stopped process no longer serves its volumes.
                self.status.change(|known| {
                    known.volumes.exited(&now());
                    (known.in_place, known.next_pass) = (None, None);
                });
            }
            done?;
        }
        Ok(())
    }

    /// `true` if `steps` only waited for a running target, and the target has ended meanwhile: a process that was just
    /// killed may be observed alive once more. The next round brings the target up.
    async fn exited_meanwhile(&self, spec: &TargetSpec, steps: &[Step]) -> bool {
        let waited = matches!(steps, [Step::AwaitTarget { .. }]);
        let runs = |seen: TargetSeen| seen.container.is_some_and(|container| container.running);
        waited && self.parts.observer.look(spec, false).await.is_ok_and(|seen| !runs(seen))
    }

    pub(super) async fn apply(
        &self,
        step: &Step,
        seen: &TargetSeen,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        if stops(step) {
            self.await_grace_period().await;
        }
        let begun = self.progress.begun(step);
        let line = |text| begun.line(text);
        let applied = self.parts.applier.apply(step, seen.huge_dir.as_deref(), line).await;
        begun.applied(applied, &mut report.steps)
    }

    /// Waits for the end of the grace period in which guests may be reconnecting to controllers that were just made: a
    /// guest whose target dies in these moments never comes back.
    async fn await_grace_period(&self) {
        if let Some(made) = self.status.read(|known| known.controllers_made) {
            sleep_until(made + self.parts.policy.heal.grace_period).await;
        }
    }

    /// Reports once how the target exited: a start of the same container makes the engine forget that.
    async fn record_exit(&self, ended: &ContainerSeen, exit: Exit) {
        if self.quarantine.has_exit() || self.answered.is_none() {
            return;
        }
        let cause = match exit {
            // A process that was killed could not print the reason.
            Exit::FromOutside | Exit::Killed => ended.how_it_ended(),
            Exit::ByItself => {
                format!(
                    "{}; {}",
                    ended.how_it_ended(),
                    self.parts.observer.last_printed(ended).await
                )
            }
        };
        tracing::warn!(target_name = %self.name(), "{} exited: {cause}", self.name());
        self.status.exited(cause);
    }

    /// Shortens the wait for a target that has answered before.
    fn hasten(&mut self, steps: &mut [Step], seen: &TargetSeen, awaited: bool) {
        let running = seen.container.as_ref().filter(|container| container.running);
        let pid = running.and_then(|container| container.pid);
        if awaited || seen.version.is_some() {
            self.answered = pid;
        }
        if pid.is_some() && self.answered == pid {
            shorten(steps, self.parts.policy.heal.unresponsive_after);
        }
    }
}

/// Limits the wait to `most`, if `steps` is only a wait for the target.
fn shorten(steps: &mut [Step], most: Duration) {
    if let [Step::AwaitTarget { within, .. }] = steps {
        *within = (*within).min(most);
    }
}

fn stops(step: &Step) -> bool {
    matches!(step, Step::StopContainer { .. })
}

/// `true` if a container that has ended is started again.
fn starts_again(steps: &[Step]) -> bool {
    let starts = steps.iter().any(|step| matches!(step, Step::StartContainer { .. }));
    starts && !steps.iter().any(|step| matches!(step, Step::CreateContainer(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awaits(seconds: u64) -> Step {
        Step::AwaitTarget {
            name: "t".to_string(),
            container: "t".to_string(),
            socket: "/t.sock".to_string(),
            within: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn only_a_wait_for_a_target_that_was_there_already_is_shortened() {
        let most = Duration::from_secs(3);
        let mut alone = [awaits(20)];
        shorten(&mut alone, most);
        assert_eq!(alone, [awaits(3)]);
        let mut short = [awaits(1)];
        shorten(&mut short, most);
        assert_eq!(short, [awaits(1)]);
        let mut started = [Step::StartContainer { name: "t".to_string() }, awaits(20)];
        shorten(&mut started, most);
        assert_eq!(started[1], awaits(20));
    }
}
