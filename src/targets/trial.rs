//! The trial of a target that replaces another one: it has to serve what that one served, or that one comes back.
//!
//! ```text
//! desired with a trial ─▸ exchanged ─▸ judged: serves with the volumes ─▸ desired without one; the old one is removed
//!                             │          └─ does not ─▸ the old one has its place again ─▸ desired as it was ─▸ started
//!                             └─ fails, or the agent dies ─▸ judged
//! ```
//! The trial stands in the target's file from before the first change until its end. As long as it is on, nothing else
//! starts or kills the target. A judgement that could not be carried out is made again.

use std::sync::Arc;

use super::worker::Worker;
use crate::docker::Containers;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::PartReport;
use crate::model::step::Step;
use crate::model::target::{TargetSeen, TargetSpec, Trial};
use crate::model::volume::VolumeName;
use crate::plan::exchange::bring_back;

impl<C: Containers> Worker<C> {
    pub(super) fn trial(&self) -> Option<Arc<Trial>> {
        self.parts.desired.trial(self.name())
    }

    /// Trial of a target that takes the place of the one that is seen.
    pub(super) fn new_trial(
        &self,
        id: &str,
        before: Option<&TargetSpec>,
        seen: &TargetSeen,
    ) -> Arc<Trial> {
        let made_for = seen.made_for();
        // Where its image comes from is not told by its container.
        let same =
            |before: &&TargetSpec| made_for.as_ref().is_none_or(|it| before.drift(it).is_empty());
        let old = before.filter(same).cloned().or(made_for);
        // An agent that has only started does not know what a target serves, but what it is to serve.
        let served = match seen.serves() && !self.is_in_place() {
            true => self.parts.desired.volumes(self.name()).keys().cloned().collect(),
            false => self.status.read(|known| known.book.served()),
        };
        Arc::new(Trial { old, id: id.to_string(), served })
    }

    /// Judges the target that is on trial, if it is.
    ///
    /// # Errors
    /// When it does not serve what the one that it replaced served, with what became of that one; or when it cannot be
    /// judged now.
    pub(super) async fn judge(&mut self, report: &mut PartReport) -> Result<(), Fault> {
        let Some(trial) = self.trial() else { return Ok(()) };
        let Some(spec) = self.parts.desired.get(self.name()) else { return Ok(()) };
        let seen = self.parts.observer.container_of(&spec).await?;
        let served = self.status.read(|known| known.book.served());
        let wanted = self.parts.desired.volumes(self.name());
        let is_lost = |it: &&VolumeName| wanted.contains_key(*it) && !served.contains(it);
        let why = match trial.served.iter().find(is_lost) {
            _ if seen.is_some_and(|seen| seen.id == trial.id) => {
                "it was not replaced, for that was broken off".to_string()
            }
            _ if !self.is_in_place() => "it does not serve".to_string(),
            None => return self.part_with(&trial, &spec, report).await,
            Some(volume) => format!("its volume {volume} does not serve in the new target"),
        };
        let fault = Fault::new(Code::VolumeNotServing, format!("{}: {why}", self.name()));
        Err(self.bring_back(fault, report).await)
    }

    /// Ends the trial of a target that serves.
    async fn part_with(
        &mut self,
        trial: &Trial,
        spec: &TargetSpec,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        self.parts.desired.want(spec, None).await?;
        self.remove_kept(trial, report).await;
        Ok(())
    }

    /// Removes the target that was replaced. One that cannot be removed goes with the next exchange, or with the target.
    pub(super) async fn remove_kept(&self, trial: &Trial, report: &mut PartReport) {
        let [_, name] = self.name().beside();
        let step = Step::RemoveContainer { name, id: trial.id.clone() };
        if let Err(fault) = self.apply(&step, &TargetSeen::default(), report).await {
            tracing::warn!(target_name = %self.name(), error = %fault, "the old {} is left beside the new one", self.name());
        }
    }

    /// Brings back the target that one on trial has replaced, or was to replace. Returns why, and what became of it.
    pub(super) async fn bring_back(&mut self, mut fault: Fault, report: &mut PartReport) -> Fault {
        let Some(trial) = self.trial() else { return fault };
        tracing::warn!(
            target_name = %self.name(), error = %fault,
            "the new {} does not serve: the old one comes back", self.name()
        );
        match self.return_of(&trial, report).await {
            Ok(()) => fault.text += "; the target that it was to replace is back",
            Err(why) => {
                fault.text += &format!("; the one that it was to replace is not back yet: {why}");
            }
        }
        fault
    }

    async fn return_of(&mut self, trial: &Trial, report: &mut PartReport) -> Result<(), Fault> {
        let Some(new) = self.parts.desired.get(self.name()) else { return Ok(()) };
        let spec = trial.old.as_ref().unwrap_or(&new);
        let seen = self.parts.observer.look_around(spec).await?;
        let Some(back) = bring_back(self.name(), trial, &seen, &self.parts.policy)? else {
            self.parts.desired.want(&new, None).await?;
            let text = format!("its container {} is not there any more", trial.id);
            return Err(Fault::new(Code::TargetAbsent, text));
        };
        // What the new one did is no exit of the old one, nor the fault of a volume.
        self.status.change(|known| known.stopping = true);
        self.quarantine.clear();
        self.remember_making([].into()).await;
        for step in &back.moves {
            self.apply(step, &seen, report).await?;
        }
        match &trial.old {
            Some(old) => self.parts.desired.want(old, None).await?,
            None => self.parts.desired.forget(self.name()).await?,
        }
        let started = async {
            for step in &back.starts {
                self.apply(step, &seen, report).await?;
            }
            Ok(())
        };
        let started = started.await;
        for step in &back.clears {
            if let Err(fault) = self.apply(step, &seen, report).await {
                tracing::warn!(target_name = %self.name(), error = %fault, "what was to replace {} is left beside it", self.name());
                break;
            }
        }
        started
    }
}
