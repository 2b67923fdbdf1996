//! The exchange of a target for another one of its name, from its begin until the new one serves with its volumes.
//!
//! ```text
//! Unknown ──▶ Over ──begun──▶ OnTrial ──serves what the old one served──▶ Over, the old one is removed
//!    ▲                           ├──────does not──────────────────────────▶ Over, the old one is back
//!    └── the agent starts        └──────nobody waits for it any more──────▶ Unknown
//! ```
//! Unknown ends with the first pass in which the volumes are in place. A start that fails before that brings the old
//! one back, if it is there.

use std::time::Duration;

use tokio::time::timeout;

use super::worker::Worker;
use crate::docker::Containers;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::PartReport;
use crate::model::step::Step;
use crate::model::target::{TargetSeen, TargetSpec};
use crate::model::volume::VolumeName;
use crate::plan::exchange::{bring_back, clear};

/// How long the engine may take to tell of containers that do no harm.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// How far it is.
#[derive(Default)]
pub(super) enum Exchange {
    /// One that was cut off may have left containers: nobody has looked.
    #[default]
    Unknown,
    /// Nothing is left of any.
    Over,
    /// The target is on trial, and the one that it replaced is kept.
    OnTrial(Box<Replaced>),
}

/// A target that another one has taken the place of, and that can come back.
pub(super) struct Replaced {
    /// It as it was desired.
    spec: TargetSpec,
    /// Its container.
    id: String,
    /// The volumes that it served.
    served: Vec<VolumeName>,
}

impl Exchange {
    pub(super) fn begun(spec: TargetSpec, id: &str, served: Vec<VolumeName>) -> Exchange {
        Exchange::OnTrial(Box::new(Replaced { spec, id: id.to_string(), served }))
    }

    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Exchange::Unknown)
    }

    pub(super) fn is_on_trial(&self) -> bool {
        matches!(self, Exchange::OnTrial(_))
    }

    /// Ends a trial that no deploy waits for.
    pub(super) fn is_not_awaited(&mut self) {
        if self.is_on_trial() {
            *self = Exchange::Unknown;
        }
    }

    fn end_trial(&mut self) -> Option<Replaced> {
        match std::mem::take(self) {
            Exchange::OnTrial(replaced) => Some(*replaced),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl<C: Containers> Worker<C> {
    /// Ends the trial of a target: it has to serve each volume that the one which it replaced served.
    ///
    /// # Errors
    /// When it does not, and the other one was brought back.
    pub(super) async fn end_trial(&mut self, report: &mut PartReport) -> Result<(), Fault> {
        let Exchange::OnTrial(replaced) = &self.exchange else { return Ok(()) };
        let served = self.status.read(|known| known.book.served());
        let wanted = self.parts.desired.volumes(self.name());
        let is_lost = |it: &&VolumeName| wanted.contains_key(*it) && !served.contains(it);
        let why = match replaced.served.iter().find(is_lost) {
            None if self.is_in_place() => {
                self.part_with(report).await;
                return Ok(());
            }
            None => "it does not serve any more".to_string(),
            Some(volume) => format!("its volume {volume} does not serve in the new target"),
        };
        let fault = Fault::new(Code::VolumeNotServing, format!("{}: {why}", self.name()));
        Err(self.bring_back(fault, report).await)
    }

    /// Removes the target that was replaced.
    async fn part_with(&mut self, report: &mut PartReport) {
        let Some(Replaced { id, .. }) = self.exchange.end_trial() else { return };
        let [_, name] = self.name().beside();
        let step = Step::RemoveContainer { name, id };
        match self.apply(&step, &TargetSeen::default(), report).await {
            Ok(()) => self.exchange = Exchange::Over,
            // The next pass tries again.
            Err(fault) => {
                tracing::warn!(target_name = %self.name(), error = %fault, "the old {} is left beside the new one", self.name());
            }
        }
    }

    /// Brings back the target that was replaced by one on trial, if any. Returns why, and what became of it.
    pub(super) async fn bring_back(&mut self, fault: Fault, report: &mut PartReport) -> Fault {
        match self.exchange.end_trial() {
            Some(Replaced { spec, id, .. }) => self.bring_back_as(spec, &id, fault, report).await,
            None => fault,
        }
    }

    /// Brings back the target that an exchange which was cut off has kept, if any.
    pub(super) async fn bring_back_kept(&mut self, fault: Fault) -> Fault {
        if !self.exchange.is_unknown() {
            return fault;
        }
        let [_, previous] = self.name().beside();
        let beside = self.parts.observer.beside(self.name()).await.unwrap_or_default();
        let kept = beside.into_iter().find(|(name, _)| *name == previous);
        let Some((old, id)) = kept.and_then(|(_, kept)| Some((kept.made_for()?, kept.id))) else {
            return fault;
        };
        self.bring_back_as(old, &id, fault, &mut PartReport::default()).await
    }

    async fn bring_back_as(
        &mut self,
        old: TargetSpec,
        id: &str,
        mut fault: Fault,
        report: &mut PartReport,
    ) -> Fault {
        tracing::warn!(
            target_name = %self.name(), error = %fault,
            "the new {} does not serve: the old one comes back", self.name()
        );
        self.desire_again(Some(old.clone())).await;
        // What the new one did is no exit of the old one, nor the fault of a volume.
        self.status.change(|known| known.stopping = true);
        self.quarantine.clear();
        match self.start_again(&old, id, report).await {
            Ok(()) => {
                self.exchange = Exchange::Over;
                fault.text += "; the target that it was to replace is back";
            }
            Err(why) => {
                fault.text += &format!("; the one that it was to replace is not back yet: {why}");
            }
        }
        fault
    }

    async fn start_again(
        &self,
        old: &TargetSpec,
        id: &str,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        let observer = &self.parts.observer;
        let seen = observer.look(old, true).await?;
        let steps = bring_back(old, id, seen.container.as_ref(), &seen.beside, &self.parts.policy);
        for step in &steps {
            self.apply(step, &seen, report).await?;
        }
        Ok(())
    }

    /// Removes what an exchange that was cut off has left, once the target serves with its volumes.
    pub(super) async fn clear_beside(&mut self) {
        if !self.exchange.is_unknown() || !self.is_in_place() {
            return;
        }
        let look = self.parts.observer.beside(self.name());
        // Else the next pass looks.
        let Ok(Ok(left)) = timeout(LOOK_TIME, look).await else { return };
        for step in clear(&left) {
            let done = self.apply(&step, &TargetSeen::default(), &mut PartReport::default()).await;
            if let Err(fault) = done {
                tracing::warn!(target_name = %self.name(), error = %fault, "a container is left beside {}", self.name());
                return;
            }
        }
        self.exchange = Exchange::Over;
    }
}
