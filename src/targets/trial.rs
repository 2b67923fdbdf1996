//! Trial of a target that replaces another one: the new target has to serve what the old one served, or the old one
//! comes back.
//!
//! ```text
//! desired, on trial ─▸ exchanged ─▸ evaluated: serves with the volumes ─▸ the old one is removed ─▸ desired, no trial
//!                          │          └─ does not ─▸ the old one has its name again ─▸ desired ─▸ started ─▸ no trial
//!                          └─ fails, or the agent dies ─▸ evaluated
//! ```
//! The trial is in the target's file from before the first change until its end. As long as it is on, nothing else
//! starts or kills the target. An evaluation that could not be carried out is repeated.

use std::sync::Arc;
use std::time::Duration;

use super::volume_statuses::VolumeStatuses;
use super::worker::Worker;
use crate::docker::Containers;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::observation::Observation;
use crate::model::prepare::PartReport;
use crate::model::step::Step;
use crate::model::target::{TargetSeen, TargetSpec, Trial};
use crate::model::volume::{VolumeName, VolumeSpecs};
use crate::plan::replacement::bring_back;

/// Time for the engine to return the last output of a new target: guests wait.
const WORDS_TIME: Duration = Duration::from_secs(1);

impl<C: Containers> Worker<C> {
    pub(super) fn trial(&self) -> Option<Arc<Trial>> {
        self.parts.desired.trial(self.name())
    }

    /// Makes the trial of a target that replaces the container `id`; `before` is the spec that was desired until now.
    pub(super) fn new_trial(
        &self,
        id: &str,
        before: Option<&TargetSpec>,
        seen: &TargetSeen,
    ) -> Arc<Trial> {
        let made_for = seen.made_for();
        // The container does not show the sources of its image, which are only in `before`.
        let same =
            |before: &&TargetSpec| made_for.as_ref().is_none_or(|it| before.drift(it).is_empty());
        let old = before.filter(same).cloned().or(made_for);
        // Until all volumes were reconciled, as after a start of the agent, every desired volume counts as served.
        let served = match seen.serves() && !self.is_in_place() {
            true => self.parts.desired.volumes(self.name()).keys().cloned().collect(),
            false => self.status.read(|known| known.volumes.served()),
        };
        let restarts = seen.container.as_ref().and_then(|seen| seen.restarts.clone());
        Arc::new(Trial { old, id: id.to_string(), served, restarts })
    }

    /// Evaluates the target that is on trial, if one is, after its volumes were made.
    ///
    /// # Errors
    /// When the new target does not serve what the old one served, with the outcome of the old one's return; or when it
    /// cannot be evaluated now.
    pub(super) async fn evaluate_if_due(&mut self, report: &mut PartReport) -> Result<(), Fault> {
        self.reconcile_volumes_if_due().await;
        if self.trial().is_none() {
            return Ok(());
        }
        let done = self.evaluate(report).await;
        if let Err(fault) = &done
            && fault.code.is_engine_away()
            && !self.is_in_place()
        {
            self.wait_for_engine(fault).await;
        }
        done
    }

    async fn evaluate(&mut self, report: &mut PartReport) -> Result<(), Fault> {
        let Some(trial) = self.trial() else { return Ok(()) };
        let Some(spec) = self.parts.desired.get(self.name()) else { return Ok(()) };
        let container = self.parts.observer.container_of(&spec).await?;
        // The process may have started, or answered, only while the engine was queried.
        let pid = container.as_ref().filter(|it| it.running).and_then(|it| it.pid);
        let is_old = container.as_ref().is_some_and(|it| it.id == trial.id);
        let seen = self.seen_at(&spec.control_sock);
        let is_news = |seen: &Observation| {
            pid.is_some() && seen.pid() != pid
                || seen.version().is_some() && seen.pid() != self.serving
        };
        if !is_old && seen.is_some_and(|seen| is_news(&seen)) {
            self.parts.observers.look_again(self.name(), &spec.control_sock).await;
            let text = format!(
                "{} has only just been seen to live: it is evaluated again in a moment",
                self.name()
            );
            return Err(Fault::new(Code::TargetNotReady, text));
        }
        let wanted = self.parts.desired.volumes(self.name());
        let lost = self.status.read(|known| {
            let volume = lost(&trial, &wanted, &known.volumes)?;
            let reason = known.volumes.statuses().get(volume).map(|status| status.reason.clone());
            Some((volume.clone(), reason.unwrap_or_default()))
        });
        let why = match lost {
            _ if is_old => {
                "it was not replaced, for that was broken off: deploy it again".to_string()
            }
            _ if container.as_ref().is_some_and(|it| !it.running) => {
                let words = self.parts.observer.last_words(self.name(), "it has ended", WORDS_TIME);
                words.await
            }
            _ if !self.is_in_place() => {
                let health = self.status.health().map(|health| health.reason);
                format!("it does not serve: {}", health.unwrap_or_default())
            }
            None => {
                self.remove_kept(&trial, report).await;
                return self.parts.desired.want(&spec, None).await;
            }
            Some((volume, reason)) => {
                format!("its volume {volume} does not serve in the new target: {reason}")
            }
        };
        let fault = Fault::new(Code::VolumeNotServing, format!("{}: {why}", self.name()));
        Err(self.bring_back(fault, report).await)
    }

    /// Removes the replaced target. One that cannot be removed goes with the next exchange, or with the target.
    pub(super) async fn remove_kept(&self, trial: &Trial, report: &mut PartReport) {
        let [_, name] = self.name().beside();
        let step = Step::RemoveContainer { name, id: trial.id.clone() };
        if let Err(fault) = self.apply(&step, &TargetSeen::default(), report).await {
            tracing::warn!(
                target_name = %self.name(), error = %fault,
                "{}: the replaced container {} could not be removed, and is removed with the next replacement: {fault}",
                self.name(), trial.id
            );
        }
    }

    /// Brings back the target that the one on trial has replaced, or was to replace. Returns `fault`, to which the
    /// outcome is added.
    pub(super) async fn bring_back(&mut self, mut fault: Fault, report: &mut PartReport) -> Fault {
        let Some(trial) = self.trial() else { return fault };
        tracing::warn!(
            target_name = %self.name(), error = %fault,
            "{}: the new container does not serve, so the replaced one is restored: {fault}", self.name()
        );
        match self.return_of(&trial, report).await {
            Ok(()) => fault.text += "; the target that it was to replace is back",
            Err(why) => {
                fault.text += &format!("; the one that it was to replace is not back yet: {why}");
            }
        }
        fault
    }

    async fn return_of(
        &mut self,
        trial: &Arc<Trial>,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        let Some(new) = self.parts.desired.get(self.name()) else { return Ok(()) };
        let spec = trial.old.as_ref().unwrap_or(&new);
        let seen = self.parts.observer.look_around(spec).await?;
        let Some(back) = bring_back(self.name(), trial, &seen, &self.parts.policy)? else {
            self.parts.desired.want(&new, None).await?;
            let text = format!(
                "its container {} is not there any more: see what the new one lacks, or deploy the target as it was",
                trial.id
            );
            return Err(Fault::new(Code::TargetAbsent, text));
        };
        if !back.moves.is_empty() {
            // Exits of the new target say nothing about volumes in the old one.
            self.quarantine.clear();
            self.remember_making([].into()).await;
        }
        self.apply_all(&back.moves, &seen, report).await?;
        let started = self.apply_all(&back.starts, &seen, report).await;
        for step in &back.clears {
            if let Err(fault) = self.apply(step, &seen, report).await {
                tracing::warn!(
                    target_name = %self.name(), error = %fault,
                    "{}: the container of the failed replacement could not be removed: {fault}", self.name()
                );
                break;
            }
        }
        if let Err(fault) = &started
            && (fault.code.is_engine_away() || !self.parts.policy.heal.enabled)
        {
            return started;
        }
        // The old target is desired even if it could not be started: its start is then retried like any other.
        match &trial.old {
            Some(old) => self.parts.desired.want(old, None).await?,
            None => self.parts.desired.forget(self.name()).await?,
        }
        started
    }
}

/// Desired volume that the replaced target served and the new one does not serve.
pub(super) fn lost<'a>(
    trial: &'a Trial,
    wanted: &VolumeSpecs,
    volumes: &VolumeStatuses,
) -> Option<&'a VolumeName> {
    trial.served.iter().find(|name| wanted.contains_key(*name) && !volumes.serves(name))
}
