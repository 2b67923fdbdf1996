//! The container of a target: rounds of look, plan and apply until it runs as it is wanted.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::super::observe::target::Containers;
use super::TargetWish;
use super::owner::Owner;
use crate::model::code::Code;
use crate::model::container::ContainerSeen;
use crate::model::fault::{Fault, Finding};
use crate::model::path::CleanPath;
use crate::model::prepare::{PartReport, StepOutcome, StepReport};
use crate::model::status::LastExit;
use crate::model::step::Step;
use crate::model::target::{TargetSeen, TargetSpec, Work};
use crate::plan::quarantine::Exit;

/// The exit code of a process that was sent SIGKILL.
const SIGKILLED: i64 = 137;
/// Rounds of plan and apply before it is said that they do not lead anywhere.
const MOST_ROUNDS: usize = 5;

impl<C: Containers> Owner<C> {
    /// Brings it about, watched from the beginning; who asks for the target's health afterwards hears of
    /// what was done.
    pub(super) async fn change(
        &mut self,
        wish: &TargetWish,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        let TargetSpec { name, control_sock, .. } = wish.spec();
        let parts = self.parts.clone();
        let work = match wish {
            TargetWish::Ensure(..) => Work::BringUp,
            TargetWish::Destroy { .. } => Work::TakeAway,
        };
        let control = |otherwise: &CleanPath| {
            parts.desired.get(name).map_or(otherwise.clone(), |spec| spec.control_sock)
        };
        let before = control(control_sock);
        parts.health.watch(name, &before);
        let work = parts.desired.at_work(name, work);
        let mut done = self.converge(wish, false, report).await;
        if report.steps.iter().any(|step| step.step == "stopContainer") {
            // It is no exit of its own; and what its successor does is not known.
            self.stopped = true;
            self.quarantine.clear();
        }
        if let (TargetWish::Destroy { .. }, Ok(())) = (wish, &done) {
            done = self.forget().await;
        }
        parts.health.look_again(name, &control(&before)).await;
        drop(work);
        done
    }

    /// It and its volumes, which are gone with it, are not wanted any more.
    async fn forget(&self) -> Result<(), Fault> {
        let desired = &self.parts.desired;
        let volumes: Vec<_> = desired.volumes(&self.name).keys().cloned().collect();
        desired.forget_volumes(&self.name, &volumes).await?;
        if !volumes.is_empty() && desired.volume_count() == 0 {
            self.parts.node.no_volumes_left();
        }
        desired.forget(&self.name).await
    }

    pub(super) async fn converge(
        &mut self,
        wish: &TargetWish,
        dry_run: bool,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        let mut wish = wish.clone();
        let mut awaited = false;
        for _ in 0..MOST_ROUNDS {
            let seen = self.parts.observer.look(wish.spec()).await?;
            if let Some(ended) = seen.container.as_ref().filter(|it| !it.running) {
                self.tell_exit(ended);
                let from_outside = ended.oom_killed || ended.exit_code == Some(SIGKILLED);
                let exit = if from_outside { Exit::FromOutside } else { Exit::ByItself };
                self.exit = Some(self.exit.filter(|exit| *exit == Exit::Killed).unwrap_or(exit));
            }
            let mut plan = wish.plan(&seen, &self.parts.policy)?;
            // Whose cores were taken is told by the round that took them, and by no later one.
            let untold = |told: &Finding| plan.findings.iter().all(|new| new.code != told.code);
            report.findings.retain(untold);
            report.findings.extend(plan.findings.iter().cloned());
            if dry_run {
                report.steps.extend(plan.steps.iter().map(StepReport::planned));
                return Ok(());
            }
            if let TargetWish::Ensure(spec, _) = &wish {
                // It can be: from here on it is wanted, whatever becomes of this agent. What is left as it
                // is stays wanted as it is.
                let origins = |left: TargetSpec| TargetSpec {
                    image_tar: spec.image_tar.clone(),
                    image_url: spec.image_url.clone(),
                    image_sha256: spec.image_sha256.clone(),
                    ..left
                };
                let left = plan.is_left().then(|| seen.made_for().map(origins)).flatten();
                self.parts.desired.want(left.as_ref().unwrap_or(spec)).await?;
            }
            if plan.steps.is_empty() {
                return Ok(());
            }
            self.hasten(&mut plan.steps, &seen, awaited);
            // Guests may come while an image does: who is connected is counted anew afterwards.
            let loads = matches!(plan.steps.as_slice(), [Step::LoadImage { .. }, _, ..]);
            let steps = if loads { plan.steps.get(..1).unwrap_or_default() } else { &plan.steps };
            let again = starts_again(steps);
            if let Err(fault) = self.apply_all(steps, &seen, report).await {
                if self.fell_meanwhile(wish.spec(), &plan.steps).await {
                    continue;
                }
                // The engine keeps something of one that ended while it was away itself: a new one has
                // another id.
                if again
                    && fault.code == Code::EngineRefused
                    && let TargetWish::Ensure(_, wish) = &mut wish
                {
                    wish.recreate = true;
                    continue;
                }
                return Err(fault);
            }
            if loads {
                continue;
            }
            awaited = true;
            // What was to be replaced is; the next look only makes sure.
            if let TargetWish::Ensure(_, wish) = &mut wish {
                wish.recreate = false;
            }
        }
        Err(Fault::new(
            Code::TargetNotConverging,
            format!(
                "{} is still not as wanted after {MOST_ROUNDS} rounds: something else changes it too; \
                 see the steps of this report",
                wish.spec().name
            ),
        ))
    }

    async fn apply_all(
        &self,
        steps: &[Step],
        seen: &TargetSeen,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        for step in steps {
            self.apply(step, seen, report).await?;
        }
        Ok(())
    }

    /// Whether all that was wrong is that a target which was there already ended while it was waited for:
    /// one that was killed a moment ago may be seen alive once more. The next round brings it up.
    async fn fell_meanwhile(&self, spec: &TargetSpec, steps: &[Step]) -> bool {
        let waited = matches!(steps, [Step::AwaitTarget { .. }]);
        let runs = |seen: TargetSeen| seen.container.is_some_and(|container| container.running);
        waited && self.parts.observer.look(spec).await.is_ok_and(|seen| !runs(seen))
    }

    pub(super) async fn apply(
        &self,
        step: &Step,
        seen: &TargetSeen,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        if let Step::StopContainer { .. } = step {
            self.let_settle().await;
        }
        self.parts.progress.begun(step);
        let began = Instant::now();
        let progress = self.parts.progress.clone();
        let line = |text| progress.line(step, text);
        let applied = self.parts.applier.apply(step, seen.huge_dir.as_deref(), line).await;
        let (before, _) = step.before_after();
        let (after, outcome) = match &applied {
            Ok(after) => (after.clone(), StepOutcome::Done),
            Err(fault) => (fault.text.clone(), StepOutcome::Failed),
        };
        let step = StepReport::of(step, before, after, outcome, began.elapsed());
        self.parts.progress.ended(&step);
        report.steps.push(step);
        applied.map(drop)
    }

    /// Guests may be reconnecting to the controllers that were just made: one that its target dies on in
    /// these moments never comes back.
    async fn let_settle(&self) {
        if let Some(made) = self.controllers_made {
            sleep_until(made + self.parts.policy.heal.settle).await;
        }
    }
}

impl<C: Containers> Owner<C> {
    /// Tells how it exited, once: a start of the same container makes the engine forget that.
    fn tell_exit(&mut self, ended: &ContainerSeen) {
        if self.exit.is_some() {
            return;
        }
        let cause = match self.answered {
            Some(_) => ended.how_it_ended(),
            None => return,
        };
        tracing::warn!(target_name = %self.name, "{} exited: {cause}", self.name);
        self.note_last_exit(cause);
    }

    /// What is told of its last exit.
    pub(super) fn note_last_exit(&self, cause: String) {
        let at = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        self.parts.stands.exited(&self.name, LastExit { at, cause });
    }

    /// One that answered before is not waited for like one that starts.
    fn hasten(&mut self, steps: &mut [Step], seen: &TargetSeen, awaited: bool) {
        let running = seen.container.as_ref().filter(|container| container.running);
        let pid = running.and_then(|container| container.pid);
        if awaited || seen.version.is_some() {
            self.answered = pid;
        }
        if pid.is_some() && self.answered == pid {
            shorten(steps, self.parts.policy.heal.frozen_after);
        }
    }
}

/// Steps that only wait for a target wait no longer than that.
fn shorten(steps: &mut [Step], most: Duration) {
    if let [Step::AwaitTarget { within, .. }] = steps {
        *within = (*within).min(most);
    }
}

/// Whether a container that has ended is started again.
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
