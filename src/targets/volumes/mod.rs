//! Volumes of a target: one pass of observe, plan, apply and observe again, for all of them at the same time.

mod calls;
mod quarantine;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

pub(super) use self::quarantine::VolumeQuarantine;
use super::volume_statuses::{RETURN_TIME, VolumeObservation, VolumeStatuses};
use super::worker::Worker;
use crate::agent::observe::volumes::VolumesLocation;
use crate::docker::Containers;
use crate::health::deep::ServedTarget;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::status::VolumeTally;
use crate::model::target::TargetSpec;
use crate::model::volume::{VolumeName, VolumeSeen, VolumeSpec, VolumeStep};
use crate::plan::volumes::bring_up;

/// Pause between two passes during [`RETURN_TIME`].
const RETURN_PAUSE: Duration = Duration::from_secs(1);
/// Time that a new process may take to serve a connection: SPDK v24.01 looks for new controllers once a second.
const SERVE_TIME: Duration = Duration::from_secs(3);

impl<C: Containers> Worker<C> {
    /// Reconciles the volumes, if the target serves and a pass is due.
    pub(super) async fn reconcile_volumes_if_due(&mut self) {
        let now = Instant::now();
        let retry = self.retry.due().is_some_and(|due| due <= now.into_std());
        let due = self.status.read(|known| known.next_pass.is_some_and(|due| due <= now));
        if self.serving.is_some() && (retry || due || !self.is_in_place()) {
            self.reconcile_volumes().await;
        }
    }

    /// Reconciles all volumes. Those that are made one at a time follow at once, for guests wait for them too.
    pub(super) async fn reconcile_volumes(&mut self) {
        let Some(pid) = self.serving else { return };
        let began = Instant::now();
        let mut retries = self.retry.due().is_some_and(|due| due <= began.into_std());
        let mut made = 0;
        loop {
            let volumes = self.parts.desired.volumes(self.name());
            let (is_new, suspects) = (!self.is_in_place(), self.quarantine.suspects());
            let all = volumes.values().cloned().collect();
            let done = self.pass(all, Pass { retries: retries || is_new, returns: true }).await;
            let passed = match done {
                Ok(passed) => passed,
                Err(fault) => return self.not_reconciled(&fault),
            };
            made += passed.made;
            let now = Instant::now();
            let (interval, exits) = (self.parts.policy.volumes.look_interval, self.exits);
            self.passed = Some(now);
            self.status.change(|known| {
                if known.exits != exits {
                    return;
                }
                let lately = known.controllers_made.is_some_and(|it| it.elapsed() < RETURN_TIME);
                let returning = known.volumes.awaits_sessions() && lately;
                known.next_pass = Some(now + if returning { RETURN_PAUSE } else { interval });
                (known.in_place, known.trouble) = (Some(pid), None);
            });
            let left = self.quarantine.suspects();
            if left == 0 || !is_new && left >= suspects {
                break;
            }
            retries = true;
        }
        self.log_volumes(made, began.elapsed());
    }

    fn not_reconciled(&mut self, fault: &Fault) {
        let now = Instant::now();
        self.status.change(|known| known.next_pass = Some(now + RETURN_PAUSE));
        self.retry.failed(now.into_std());
        tracing::warn!(
            target_name = %self.name(), code = %fault.code,
            "the volumes of {} could not be reconciled, which is retried: {fault}", self.name()
        );
    }

    /// `true` if all its volumes were reconciled in the process that serves now.
    pub(super) fn is_in_place(&self) -> bool {
        self.serving.is_some() && self.status.read(|known| known.in_place) == self.serving
    }

    /// Logs the state of the volumes, if it differs from the one that was logged last.
    fn log_volumes(&mut self, made: usize, took: Duration) {
        let tally = self.status.read(|known| known.volumes.tally());
        let same = |logged: VolumeTally| {
            (logged.serving, logged.degraded) == (tally.serving, tally.degraded)
        };
        if made == 0 && self.logged.map_or(tally.degraded == 0, same) {
            return;
        }
        self.logged = Some(tally);
        let text = format!(
            "{} of {} volumes of {} serve, {made} were made in {took:.1?}",
            tally.serving,
            tally.wanted,
            self.name()
        );
        match tally.degraded {
            0 => tracing::info!(target_name = %self.name(), "{text}"),
            degraded => {
                let first = self.status.read(|known| {
                    let first =
                        known.volumes.statuses().iter().find(|(_, it)| !it.reason.is_empty());
                    first.map(|(name, it)| format!("{name}: {}", it.reason))
                });
                tracing::warn!(
                    target_name = %self.name(), degraded, first = first.as_deref().unwrap_or_default(),
                    "{text}, {degraded} are degraded and retried, the first: {}", first.as_deref().unwrap_or_default()
                );
            }
        }
    }

    /// Reconciles the volumes in `specs`, each as far as possible.
    ///
    /// # Errors
    /// When the target does not answer.
    pub(super) async fn pass(
        &mut self,
        specs: Vec<VolumeSpec>,
        Pass { retries, returns }: Pass,
    ) -> Result<Passed, Fault> {
        let parts = self.parts.clone();
        let Some(place) = self.place() else { return Ok(Passed::default()) };
        let look = parts.volume_observer.look(&place, &specs);
        let mut before = self.unless_stuck(look).await??;
        // Also where an agent that died had made them: their guests may still be on their way.
        if returns && !self.is_in_place() && !specs.is_empty() {
            self.status.change(|known| known.volumes_remade = Some(Instant::now()));
        }
        let lone = specs.iter().filter(|spec| before.get(&spec.name).is_some_and(is_lone));
        let lone: Vec<VolumeSpec> = lone.cloned().collect();
        if !lone.is_empty() {
            let around = parts.volume_observer.look_beside(&place, &lone);
            before.extend(self.unless_stuck(around).await??);
        }
        let (name, fresh) = (self.name().clone(), self.retry.forgotten());
        self.quarantine.suspect(&name, self.serving, self.is_in_place(), &fresh);
        self.remember_making(BTreeSet::new()).await;
        let (mut plans, mut faults) = plan_all(&specs, &before);
        let has_guests =
            |name: &VolumeName| self.read_statuses(|statuses| statuses.has_guests_but_of(name));
        faults.extend(self.quarantine.hold_back(&mut plans, self.is_in_place(), has_guests));
        if !retries {
            let waits = |spec: &VolumeSpec| {
                self.read_statuses(|statuses| statuses.failed_before(&spec.name))
            };
            faults.extend(
                plans.iter().filter_map(|(spec, _)| Some((spec.name.clone(), waits(spec)?))),
            );
            plans.retain(|(spec, _)| waits(spec).is_none());
        }
        let creates = |steps: &Vec<VolumeStep>| steps.contains(&VolumeStep::CreateController);
        let creates = plans.iter().filter(|(_, steps)| creates(steps));
        let created: Vec<VolumeName> = creates.map(|(spec, _)| spec.name.clone()).collect();
        let planned = plans.len();
        if planned == 0 {
            self.still_serves()?;
            parts.deep.clear_once(&place.control);
            self.note(&place, &specs, &before, &faults);
            return Ok(Passed { made: 0, before });
        }
        let unanswered = self.quarantine.unanswered.clone();
        let planned_names: Vec<VolumeName> =
            plans.iter().map(|(spec, _)| spec.name.clone()).collect();
        // A target that has controllers serves its guests already.
        let is_fresh = returns
            && self.connected != self.serving
            && before.values().all(|seen| seen.controller.is_none());
        let served = match is_fresh && !created.is_empty() {
            true => self.serves_connections(&place).await?,
            false => None,
        };
        self.remember_making(planned_names.iter().cloned().collect()).await;
        let applied = parts.volume_applier.apply(&place, plans, &unanswered);
        let failed = self.unless_stuck(applied).await?;
        drop(served);
        // A refusal is an answer too.
        let is_answered = |name: &&VolumeName| {
            let away =
                |fault: &Fault| matches!(fault.code, Code::TargetNotAnswering | Code::TargetAbsent);
            failed.get(*name).is_none_or(|fault| !away(fault))
        };
        for name in planned_names.iter().filter(is_answered) {
            self.quarantine.made(name);
        }
        self.remember_making(BTreeSet::new()).await;
        if created.iter().any(|name| !failed.contains_key(name)) {
            self.status.change(|known| known.controllers_made = Some(Instant::now()));
        }
        let made = planned.saturating_sub(failed.len());
        faults.extend(failed);
        let again = parts.volume_observer.look_again(&place, &specs);
        let seen = self.unless_stuck(again).await??;
        self.still_serves()?;
        // An agent that died while it made volumes may have left its own test disk beside them.
        parts.deep.clear_once(&place.control);
        self.note(&place, &specs, &seen, &faults);
        Ok(Passed { made, before })
    }

    /// Verifies that a new process serves connections, before virtual machines can connect to it. The returned guard
    /// wakes the process when dropped. A verification that cannot be carried out is no fault.
    ///
    /// # Errors
    /// When the process accepts connections, and serves none.
    async fn serves_connections(
        &mut self,
        place: &VolumesLocation,
    ) -> Result<Option<ServedTarget>, Fault> {
        let parts = self.parts.clone();
        let served = parts.deep.serve((&place.control, &place.sockets), SERVE_TIME);
        let served = self.unless_stuck(served).await?;
        if let Err(fault) = &served {
            if fault.code == Code::SessionsNotServed {
                return Err(fault.clone());
            }
            tracing::debug!(
                target_name = %self.name(), error = %fault,
                "{}: whether the new process serves connections could not be verified: {fault}", self.name()
            );
        }
        self.connected = self.serving;
        Ok(served.ok())
    }

    /// Writes the record for the next agent: the volumes that are held back, and those that are being made or were
    /// not answered.
    pub(super) async fn remember_making(&mut self, making: BTreeSet<VolumeName>) {
        if let Some(known) = self.quarantine.unwritten(making, self.serving)
            && self.parts.exits.keep_quarantine(self.name(), known.clone()).await
        {
            self.quarantine.note_written(known);
        }
    }

    fn note(
        &mut self,
        place: &VolumesLocation,
        specs: &[VolumeSpec],
        seen: &BTreeMap<VolumeName, VolumeSeen>,
        faults: &BTreeMap<VolumeName, Fault>,
    ) {
        let now = Instant::now().into_std();
        let look = VolumeObservation {
            now,
            at: super::now(),
            sockets: &place.sockets,
            stuck_after: self.parts.policy.volumes.stuck_after,
            remade: self.status.read(|known| known.volumes_remade).map(|at| at.elapsed()),
        };
        let (wanted, none) = (self.parts.desired.volumes(self.name()), VolumeSeen::default());
        let has_degraded = self.status.change(|known| {
            known.volumes.keep(&wanted, &look);
            for spec in specs {
                let seen = seen.get(&spec.name).unwrap_or(&none);
                known.volumes.note(spec, seen, faults.get(&spec.name), &look);
            }
            known.volumes.has_degraded()
        });
        if !has_degraded {
            self.retry.serves(now);
        } else if self.retry.due().is_none_or(|due| due <= now) {
            self.retry.failed(now);
        }
    }

    /// Place of the target's volumes, if it is desired.
    fn place(&self) -> Option<VolumesLocation> {
        self.parts.desired.get(self.name()).map(|spec| place_of(&spec))
    }

    fn read_statuses<T>(&self, read: impl FnOnce(&VolumeStatuses) -> T) -> T {
        self.status.read(|known| read(&known.volumes))
    }
}

fn place_of(spec: &TargetSpec) -> VolumesLocation {
    VolumesLocation {
        control: spec.control_sock.clone(),
        sockets: spec.socket_dir.clone(),
        kind: spec.kind,
        memory_mib: spec.memory_mib,
    }
}

/// `true` if a volume has its bdev and no controller: the controller of another volume may serve that bdev.
fn is_lone(seen: &VolumeSeen) -> bool {
    seen.bdev.is_some() && seen.controller.is_none()
}

type ObservedVolumes = BTreeMap<VolumeName, VolumeSeen>;

/// Options of a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    /// Set if volumes that failed before are tried, and not left to their backoff.
    retries: bool,
    /// Set if the target may have been up before: guests may wait for its controllers.
    returns: bool,
}

impl Pass {
    /// Pass over requested volumes.
    pub(super) const ASKED: Pass = Pass { retries: true, returns: false };
}

/// Outcome of a pass.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Volumes that were made or repaired.
    pub(super) made: usize,
    /// Observation before the pass.
    before: ObservedVolumes,
}

type Plans = Vec<(VolumeSpec, Vec<VolumeStep>)>;

/// Plans the steps for each volume; returns the fault of each volume that cannot be planned.
fn plan_all(
    specs: &[VolumeSpec],
    seen: &BTreeMap<VolumeName, VolumeSeen>,
) -> (Plans, BTreeMap<VolumeName, Fault>) {
    let none = VolumeSeen::default();
    let (mut plans, mut faults) = (Vec::new(), BTreeMap::new());
    for spec in specs {
        match bring_up(spec, seen.get(&spec.name).unwrap_or(&none)) {
            Ok(steps) if steps.is_empty() => {}
            Ok(steps) => plans.push((spec.clone(), steps)),
            Err(fault) => drop(faults.insert(spec.name.clone(), fault)),
        }
    }
    (plans, faults)
}
