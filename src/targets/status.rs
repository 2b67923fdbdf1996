//! Status of each target: put together, evaluated and published here, and nowhere else.
//!
//! The target's task and the work that it has begun note facts in [`Known`]; each change of them is evaluated and
//! published at once, to reports, metrics, events, the API and the log alike.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::desired::DesiredTargets;
use super::now;
use super::volume_statuses::VolumeStatuses;
use crate::agent::events::Events;
use crate::model::code::Code;
use crate::model::event::What;
use crate::model::fault::Finding;
use crate::model::guest::Guests;
use crate::model::observation::Observation;
use crate::model::path::CleanPath;
use crate::model::status::{LastExit, TargetStatus, TargetStatuses};
use crate::model::target::{OwnerWork, TargetHealth, TargetName, TargetState};
use crate::plan::health::{TargetContext, evaluate};

/// Statuses of all targets; clones share them.
#[derive(Debug, Clone)]
pub struct Statuses {
    all: Arc<watch::Sender<TargetStatuses>>,
    events: Events,
}

impl Statuses {
    /// Creates the statuses, of no target yet; `events` receives each change of a target's health.
    pub fn new(events: Events) -> Statuses {
        Statuses { all: Arc::new(watch::Sender::new(TargetStatuses::default())), events }
    }

    /// Statuses of all targets, now and from now on.
    pub fn watch(&self) -> watch::Receiver<TargetStatuses> {
        self.all.subscribe()
    }

    /// Last published health of a target.
    pub(super) fn health_of(&self, name: &TargetName) -> Option<TargetHealth> {
        self.all.borrow().get(name)?.health.clone()
    }
}

/// Facts about one target.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Last observation, and its control socket.
    pub(super) seen: Option<(CleanPath, Arc<Observation>)>,
    pub(super) at_work: Option<OwnerWork>,
    /// Set while the agent itself stops the process, and until the end of the work that has stopped it.
    pub(super) stopping: bool,
    /// Set if the agent has killed the process, and the exit was not observed yet.
    pub(super) killed: bool,
    /// Evidence of a crash loop, until the volumes are back.
    pub(super) trouble: Option<String>,
    /// Pid of the process in which all volumes were reconciled.
    pub(super) in_place: Option<u32>,
    /// Time at which controllers were last made in the target.
    pub(super) controllers_made: Option<Instant>,
    /// Time at which volumes were last reconciled in a process for the first time, as far as this agent knows.
    pub(super) volumes_remade: Option<Instant>,
    /// Time of the next pass over the volumes.
    pub(super) next_pass: Option<Instant>,
    /// Ledger of its volumes.
    pub(super) volumes: VolumeStatuses,
    /// Number of restarts by the agent.
    pub(super) restarts: u64,
    /// Number of exits of the process.
    pub(super) exits: u64,
    pub(super) last_exit: Option<LastExit>,
}

/// Status of one target; clones share it.
#[derive(Debug, Clone)]
pub(super) struct SharedStatus {
    name: TargetName,
    statuses: Statuses,
    desired: DesiredTargets,
    known: Arc<Mutex<Known>>,
}

impl SharedStatus {
    pub(super) fn new(
        name: TargetName,
        statuses: Statuses,
        desired: DesiredTargets,
    ) -> SharedStatus {
        SharedStatus { name, statuses, desired, known: Arc::default() }
    }

    pub(super) fn name(&self) -> &TargetName {
        &self.name
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes facts, and publishes the status that results.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut known);
        self.publish(&known);
        done
    }

    /// Last published health.
    pub(super) fn health(&self) -> Option<TargetHealth> {
        self.statuses.health_of(&self.name)
    }

    /// Notes how its process exited.
    pub(super) fn exited(&self, cause: String) {
        self.change(|known| known.last_exit = Some(LastExit { at: now(), cause }));
    }

    /// Notes the guests of its volumes, and logs the new findings.
    pub(super) fn see_guests(&self, guests: &Guests) {
        let found = self.change(|known| known.volumes.see_guests(guests));
        let mut by_code: BTreeMap<Code, Vec<Finding>> = BTreeMap::new();
        for finding in found {
            by_code.entry(finding.code).or_default().push(finding);
        }
        for (code, found) in by_code {
            // One line, however many guests have the same finding.
            let first = found.first().map(|finding| finding.text.clone()).unwrap_or_default();
            let text = match found.len() {
                1 => first,
                count => format!("{count} guests of {}, the first: {first}", self.name),
            };
            match code {
                Code::GuestReconnectsSlowly => {
                    tracing::info!(target_name = %self.name, %code, guests = found.len(), "{text}");
                }
                _ => {
                    tracing::warn!(target_name = %self.name, %code, guests = found.len(), "{text}")
                }
            }
        }
    }

    /// Forgets a target that is neither desired nor observed any more.
    pub(super) fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Known::default();
        self.statuses.all.send_if_modified(|all| all.remove(&self.name).is_some());
    }

    fn publish(&self, known: &Known) {
        let mut news = None;
        self.statuses.all.send_if_modified(|all| {
            let before = all.get(&self.name);
            let health = self.evaluate(known, before.and_then(|it| it.health.as_ref()));
            let published =
                before.and_then(|it| it.health.as_ref()).map(|it| (it.state, &it.reason));
            news =
                health.clone().filter(|health| published != Some((health.state, &health.reason)));
            let statuses = known.volumes.statuses();
            let kept = before.map(|it| &it.volume_statuses).filter(|kept| ***kept == *statuses);
            let next = TargetStatus {
                health,
                control: known.seen.as_ref().map(|(control, _)| control.clone()),
                observation: known.seen.as_ref().map_or(0, |(_, seen)| seen.number),
                restarts: known.restarts,
                exits: known.exits,
                last_exit: known.last_exit.clone(),
                volumes: known.volumes.tally(),
                volume_statuses: kept.cloned().unwrap_or_else(|| Arc::new(statuses.clone())),
                findings: self.findings(known),
            };
            let changed =
                before != Some(&next) && (before.is_some() || next != TargetStatus::default());
            if changed {
                all.insert(self.name.clone(), next);
            }
            changed
        });
        if let Some(health) = news {
            log_health(&self.name, &health);
            self.statuses.events.publish(What::Target(health));
        }
    }

    fn findings(&self, known: &Known) -> Vec<Finding> {
        let seen = known.seen.as_ref().map(|(_, seen)| seen);
        seen.and_then(|seen| seen.buffers.finding(&self.name)).into_iter().collect()
    }

    fn evaluate(&self, known: &Known, before: Option<&TargetHealth>) -> Option<TargetHealth> {
        let seen = match &known.seen {
            Some((_, seen)) if seen.number > 0 => seen,
            _ => return before.cloned(),
        };
        let desired = self.desired.get(&self.name).is_some();
        let has_volumes = !self.desired.volumes(&self.name).is_empty();
        let context = TargetContext {
            wanted: desired,
            at_work: known.at_work,
            rebuilds: desired && has_volumes && known.in_place != seen.pid(),
            trouble: known.trouble.clone(),
        };
        let (state, reason) = evaluate(seen, &context);
        let before = before.filter(|before| before.state == state);
        Some(health(&self.name, state, reason, seen, before.map(|before| before.since.clone())))
    }
}

/// Health of a target that is not desired, or not with the control socket of `seen`. It is for the caller only, and not
/// published.
pub(super) fn health_of_another(name: &TargetName, seen: &Observation) -> TargetHealth {
    let (state, reason) = evaluate(seen, &TargetContext::default());
    health(name, state, reason, seen, None)
}

fn health(
    name: &TargetName,
    state: TargetState,
    reason: String,
    seen: &Observation,
    since: Option<String>,
) -> TargetHealth {
    TargetHealth {
        name: name.clone(),
        state,
        reason,
        since: since.unwrap_or_else(now),
        version: seen.version().map(str::to_string),
        age_ms: None,
        pid: seen.pid(),
    }
}

fn log_health(name: &TargetName, TargetHealth { state, reason, .. }: &TargetHealth) {
    match state {
        TargetState::Degraded | TargetState::Failed => {
            tracing::warn!(target_name = %name, "{name} is {state}: {reason}");
        }
        _ => tracing::info!(target_name = %name, "{name} is {state}: {reason}"),
    }
}
