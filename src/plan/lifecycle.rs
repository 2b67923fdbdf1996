//! The lifecycle of a target: one pure step from known and observed state to the action that is due.
//!
//! ```text
//!            deploy                    answered            min-ready passed
//! Unwanted ─────────▶ Down ──▶ Starting ──────▶ Probation ───────────────▶ Serving
//!     ▲                ▲  ▲                      │                          │   │
//!     │ destroyed      │  └──── exit ────────────┴──────────────────────────┘   │ no answer, failure threshold
//!     │                │                                                        ▼
//!     └── Stopping     └───────────── killed, only if it is really stuck ── Unresponsive ──▶ Serving (answers again)
//! ```
//! Besides, any phase with a process turns into Paused when its cgroup is frozen, and from there into Unresponsive,
//! which ends with the first answer; into Stopping when the agent itself stops the process, to take the target away
//! or to replace it; and into Unwanted when it is no longer desired. A crash loop is Down with at least three exits
//! in short order: it is retried at the cap. All transitions are these:
//!
//! ```transitions
//! Unwanted     -> Down
//! Down         -> Starting, Stopping, Unwanted
//! Starting     -> Probation, Unresponsive, Down, Paused, Stopping, Unwanted
//! Probation    -> Serving, Unresponsive, Down, Paused, Stopping, Unwanted
//! Serving      -> Unresponsive, Down, Paused, Stopping, Unwanted
//! Unresponsive -> Serving, Probation, Down, Paused, Stopping, Unwanted
//! Paused       -> Unresponsive, Down, Stopping, Unwanted
//! Stopping     -> Down, Unwanted
//! ```
//!
//! The evidence that a kill needs is in `kill`.
//!
//! There is no clock and no I/O in here: the caller passes the time, and carries out the action.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::kill::kill_at;
pub use super::phase::Phase;
use super::retry::{Failures, Retry};
use crate::model::observation::{Activity, Observation, Process};
use crate::model::policy::HealPolicy;

/// State of a target between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    pub phase: Phase,
    /// Failures, and the time of the next attempt.
    pub retry: Retry,
    /// Number of the observation on which the last kill was based; the next kill needs a newer observation.
    killed_at: Option<u64>,
}

/// Part of the state kept on disk for the next agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LifecycleRecord {
    pub failures: Failures,
    pub process: Answered,
}

/// A process that has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answered {
    /// Pid; `None` if no process has answered.
    pub pid: Option<u32>,
    /// Set if the process had passed its probation.
    pub served: bool,
}

/// Situation of a target: the desired state, and the work of its task.
#[derive(Debug, Clone, Copy, Default)]
pub struct Situation {
    /// Set if the target is desired.
    pub wanted: bool,
    /// Set if volumes are desired in the target: its silence harms their guests.
    pub has_users: bool,
    /// Set while the task starts the target.
    pub bringing_up: bool,
    /// Set while the agent itself stops its process.
    pub stopping: bool,
    /// Set if the task could begin new work.
    pub is_free: bool,
    /// Set while the agent is starting: a target that is down is started then, even if [`HealPolicy::enabled`] is not
    /// set.
    pub at_start: bool,
    /// Outcome of the last start, passed to one step only.
    pub attempt: Option<Attempt>,
    /// End of the grace period after controllers were made, in which the guests that reconnect must not lose them
    /// again.
    pub grace_until: Option<Instant>,
}

/// Outcome of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    Failed,
    /// Process with this pid, which answered while it was started, and no longer does.
    Silent(u32),
    /// Outcome that says nothing new about the target: start again after this pause.
    After(Duration),
}

/// Action that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Wait,
    Start,
    Kill,
}

/// Result of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct LifecycleStep {
    pub state: State,
    pub action: Action,
    /// Time of the next step, if nothing happens before.
    pub requeue_at: Option<Instant>,
}

impl State {
    /// State of a target of which nothing is known; `seed` decides the jitter.
    pub fn new(policy: &HealPolicy, seed: u64) -> State {
        State { phase: Phase::Unwanted, retry: Retry::new(*policy, seed), killed_at: None }
    }

    /// Restores what the previous agent recorded.
    pub fn recall(self, remembered: LifecycleRecord, now: Instant) -> State {
        let LifecycleRecord { failures, process: Answered { pid, served } } = remembered;
        // The process has answered a previous agent; whether it still does is yet to be observed.
        let phase = match pid {
            Some(pid) => Phase::Unresponsive { pid, since: now, served },
            None => self.phase,
        };
        State { phase, retry: self.retry.recall(failures), ..self }
    }

    /// Record for the next agent.
    pub fn remembers(&self) -> LifecycleRecord {
        let served = match self.phase {
            Phase::Serving { .. } => true,
            Phase::Unresponsive { served, .. } | Phase::Paused { served, .. } => served,
            _ => false,
        };
        let pid = match self.phase {
            // Alive, but has not answered.
            Phase::Starting { .. } => None,
            phase => phase.pid(),
        };
        LifecycleRecord { failures: self.retry.remembers(), process: Answered { pid, served } }
    }

    /// Records a kill that is based on observation `number`. A process that survives the kill (in state D, or in a
    /// container that the agent did not make) gets the full time again before the next kill.
    fn note_kill(&mut self, number: u64, now: Instant) {
        self.killed_at = Some(number);
        if let Phase::Unresponsive { since, .. } | Phase::Starting { since, .. } = &mut self.phase {
            *since = now;
        }
    }
}

/// Decides the next state and action. One call makes at most one transition; after one, the next call may make more.
pub fn step(
    before: &State,
    seen: &Observation,
    situation: &Situation,
    now: Instant,
    policy: &HealPolicy,
) -> LifecycleStep {
    let mut state = before.clone();
    let mut requeue_at = None;
    let mut action = Action::Wait;
    if !situation.wanted {
        // The record of a target that is not desired is dropped.
        let state =
            State { phase: Phase::Unwanted, retry: state.retry.forgotten(), killed_at: None };
        return LifecycleStep { state, action, requeue_at };
    }
    state.phase = match state.phase {
        phase if situation.stopping && phase != Phase::Unwanted => Phase::Stopping,
        Phase::Unwanted | Phase::Stopping => Phase::Down { due: Some(now), failed: false },
        Phase::Down { due, failed } => {
            let due = due.filter(|_| policy.enabled || situation.at_start);
            if let Some(phase) = comes_up(failed, seen, situation, now) {
                phase
            } else if let Some(due) = due.filter(|due| *due > now) {
                requeue_at = Some(due);
                state.phase
            } else if due.is_some() && situation.is_free && may_start(seen) {
                action = Action::Start;
                Phase::Starting { pid: None, since: now }
            } else {
                state.phase
            }
        }
        Phase::Starting { pid, since } => {
            starting(&mut state.retry, (pid, since), seen, situation, now)
        }
        Phase::Probation { pid, since } => match change(pid, seen) {
            ProcessChange::Gone => exited(&mut state.retry, now),
            ProcessChange::Paused => Phase::Paused { pid, served: false },
            ProcessChange::Silent => Phase::Unresponsive { pid, since: now, served: false },
            ProcessChange::None => {
                let ready = since + min_ready(&state.retry, situation, policy);
                requeue_at = Some(ready).filter(|ready| *ready > now);
                match requeue_at {
                    None => Phase::Serving { pid, since: now },
                    Some(_) => Phase::Probation { pid, since },
                }
            }
        },
        Phase::Serving { pid, since } => match change(pid, seen) {
            ProcessChange::Gone => exited(&mut state.retry, now),
            ProcessChange::Paused => Phase::Paused { pid, served: true },
            ProcessChange::Silent => Phase::Unresponsive { pid, since: now, served: true },
            ProcessChange::None => {
                state.retry.serves(now);
                requeue_at = state.retry.clears().filter(|clears| *clears > now);
                Phase::Serving { pid, since }
            }
        },
        Phase::Unresponsive { pid, served, .. }
            if seen.version().is_some() && seen.pid() == Some(pid) =>
        {
            match served {
                true => Phase::Serving { pid, since: now },
                false => Phase::Probation { pid, since: now },
            }
        }
        Phase::Unresponsive { pid, since, served } => match change(pid, seen) {
            ProcessChange::Gone => exited(&mut state.retry, now),
            ProcessChange::Paused => Phase::Paused { pid, served },
            ProcessChange::Silent | ProcessChange::None => {
                Phase::Unresponsive { pid, since, served }
            }
        },
        Phase::Paused { pid, served } => match change(pid, seen) {
            ProcessChange::Gone => exited(&mut state.retry, now),
            ProcessChange::Paused => Phase::Paused { pid, served },
            ProcessChange::Silent | ProcessChange::None => {
                Phase::Unresponsive { pid, since: now, served }
            }
        },
    };
    if policy.enabled
        && state.phase == before.phase
        && let Some(kill_at) = kill_at(&state.phase, seen, situation, policy)
    {
        let kill_at = kill_at.max(situation.grace_until.unwrap_or(kill_at));
        // Since the last kill, or until the kill was due, the process may have made progress that no observation shows.
        let is_new = state.killed_at.is_none_or(|number| number < seen.number);
        if kill_at <= now && kill_at <= seen.at && is_new {
            if situation.is_free {
                state.note_kill(seen.number, now);
            }
            action = Action::Kill;
        }
        requeue_at = Some(kill_at).filter(|at| *at > now).or(requeue_at);
    }
    LifecycleStep { state, action, requeue_at }
}

/// Change of a process that had answered, as of an observation.
enum ProcessChange {
    None,
    Gone,
    Paused,
    Silent,
}

fn change(pid: u32, seen: &Observation) -> ProcessChange {
    match seen.pid() {
        Some(now) if now != pid => ProcessChange::Gone,
        None if seen.is_gone() => ProcessChange::Gone,
        // The engine has not answered this agent yet, and nobody answers at the control socket: the process is gone.
        None if seen.answers.is_silent() => ProcessChange::Gone,
        None => ProcessChange::None,
        Some(_) if seen.vitals.activity == Activity::Paused => ProcessChange::Paused,
        Some(_) if seen.version().is_some() => ProcessChange::None,
        // Silent because of the agent's own request, which has its own deadline.
        Some(_) if seen.is_busy() => ProcessChange::None,
        Some(_) => ProcessChange::Silent,
    }
}

/// Phase after an exit: started again at once the first time, then with growing delays.
fn exited(retry: &mut Retry, now: Instant) -> Phase {
    retry.exited(now);
    Phase::Down { due: retry.due(), failed: false }
}

/// Phase of a target that is up: started by the task, by somebody else, or never down; `None` if it is down.
fn comes_up(
    failed: bool,
    seen: &Observation,
    situation: &Situation,
    now: Instant,
) -> Option<Phase> {
    let answers = seen.version().is_some();
    let young = matches!(seen.process, Process::Lives { young: true, .. });
    let paused = seen.vitals.activity == Activity::Paused;
    // An old process that the agent's own start left, and that never answered, is ended by the next start.
    let spared = answers || young || paused || !failed;
    let comes = situation.bringing_up || seen.pid().is_some() && spared;
    comes.then(|| Phase::Starting { pid: seen.pid(), since: now })
}

/// Time for which a target has to answer before it serves.
fn min_ready(retry: &Retry, situation: &Situation, policy: &HealPolicy) -> Duration {
    let is_doubtful =
        if situation.has_users { retry.needs_probation() } else { retry.is_crash_loop() };
    if is_doubtful { policy.min_ready } else { Duration::ZERO }
}

/// `true` unless a process may be running that was not observed. The target must have been observed, and either its
/// process is known, or it is certain that there is none, or its control socket is silent.
fn may_start(seen: &Observation) -> bool {
    seen.number > 0 && (seen.pid().is_some() || seen.is_gone() || seen.answers.is_silent())
}

fn starting(
    retry: &mut Retry,
    (pid, since): (Option<u32>, Instant),
    seen: &Observation,
    situation: &Situation,
    now: Instant,
) -> Phase {
    if let Some(attempt) = situation.attempt {
        return match attempt {
            Attempt::After(pause) => Phase::Down { due: now.checked_add(pause), failed: false },
            // It is heard of already, so that the evidence for a kill is that of any target that fell silent.
            Attempt::Silent(pid) if seen.pid() == Some(pid) => {
                Phase::Unresponsive { pid, since: now, served: false }
            }
            Attempt::Failed | Attempt::Silent(_) => {
                retry.failed(now);
                Phase::Down { due: retry.due(), failed: true }
            }
        };
    }
    match (seen.pid(), seen.version()) {
        (Some(pid), Some(_)) => Phase::Probation { pid, since: now },
        _ if situation.bringing_up => Phase::Starting { pid: seen.pid(), since },
        (Some(_), None) if seen.vitals.activity == Activity::Paused => {
            Phase::Paused { pid: seen.pid().unwrap_or_default(), served: false }
        }
        (Some(lives), None) => {
            let since = if pid == Some(lives) { since } else { now };
            Phase::Starting { pid: Some(lives), since }
        }
        (None, _) if seen.is_gone() && pid.is_some() => exited(retry, now),
        (None, _) if pid.is_some() => Phase::Starting { pid, since },
        (None, _) => Phase::Down { due: retry.due().or(Some(now)), failed: false },
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
