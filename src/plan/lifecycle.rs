//! The lifecycle of a target: one pure step from what was known and what is seen to what is done.
//!
//! ```text
//!            deploy                    answered            min-ready passed
//! Unwanted ─────────▶ Down ──▶ Starting ──────▶ Probation ───────────────▶ Serving
//!     ▲                ▲  ▲                      │                          │   │
//!     │ destroyed      │  └──── exit ────────────┴──────────────────────────┘   │ no answer, failure threshold
//!     │                │                                                        ▼
//!     └── Stopping     └───────────── killed, only if it is really stuck ── Unresponsive ──▶ Serving (answers again)
//! ```
//! Besides, any phase with a process turns into Paused when its cgroup is frozen, and from there into
//! Unresponsive, which ends with the first answer; into Stopping when the agent itself stops the process, to
//! take the target away or to replace it; and into Unwanted when nobody wants it any more. A crash loop is Down
//! with at least three exits in short order: it is retried at the cap. All transitions are these:
//!
//! ```transitions
//! Unwanted     -> Down
//! Down         -> Starting, Stopping, Unwanted
//! Starting     -> Probation, Down, Paused, Stopping, Unwanted
//! Probation    -> Serving, Unresponsive, Down, Paused, Stopping, Unwanted
//! Serving      -> Unresponsive, Down, Paused, Stopping, Unwanted
//! Unresponsive -> Serving, Probation, Down, Paused, Stopping, Unwanted
//! Paused       -> Unresponsive, Down, Stopping, Unwanted
//! Stopping     -> Down, Unwanted
//! ```
//!
//! **A kill needs proof.** A process that makes progress is not stuck. While a request of the agent's own is
//! open that changes something, its silence is explained, up to the deadline of that request. After that it is
//! killed when the kernel says that it is stopped, or when none of its threads (or one of its reactors) has
//! computed, waited for a CPU or done I/O for [`HealPolicy::frozen_after`]. Where it computes and answers
//! nothing, nobody can tell a busy target from a spinning one: that is told, and it is killed only after
//! [`HealPolicy::kill_unresponsive_after`], and only where volumes or guests are to be recovered.
//!
//! There is no clock and no I/O in here. Who calls says what time it is, and does what is decided.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::retry::{Backoff, Failures};
use crate::model::observation::{Activity, Observation, Process};
use crate::model::policy::HealPolicy;

/// Phase of a target's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nobody wants it.
    Unwanted,
    /// It is wanted, and its process is not there.
    Down {
        /// Time of its start; none where it is not to be started.
        due: Option<Instant>,
        /// Whether a start of the agent's own did not lead to an answer: what it left is ended by the next.
        failed: bool,
    },
    /// It is being started, or its process lives and has not answered yet.
    Starting {
        /// Its process, once it lives.
        pid: Option<u32>,
        /// Since when.
        since: Instant,
    },
    /// It answers, and has to do so for a while before it gets volumes.
    Probation {
        /// Its process.
        pid: u32,
        /// Since when.
        since: Instant,
    },
    /// It answers.
    Serving {
        /// Its process.
        pid: u32,
        /// Since when.
        since: Instant,
    },
    /// It answered, and does so no more.
    Unresponsive {
        /// Its process.
        pid: u32,
        /// Since when.
        since: Instant,
        /// Whether it had passed its probation.
        served: bool,
    },
    /// Its cgroup is frozen: it can neither answer nor be killed before it is thawed.
    Paused {
        /// Its process.
        pid: u32,
        /// Whether it had passed its probation.
        served: bool,
    },
    /// The agent itself stops it.
    Stopping,
}

impl Phase {
    /// Name of the phase, as in the diagram.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Unwanted => "Unwanted",
            Phase::Down { .. } => "Down",
            Phase::Starting { .. } => "Starting",
            Phase::Probation { .. } => "Probation",
            Phase::Serving { .. } => "Serving",
            Phase::Unresponsive { .. } => "Unresponsive",
            Phase::Paused { .. } => "Paused",
            Phase::Stopping => "Stopping",
        }
    }

    /// Its process, where it has one.
    pub fn pid(&self) -> Option<u32> {
        match *self {
            Phase::Starting { pid, .. } => pid,
            Phase::Probation { pid, .. }
            | Phase::Serving { pid, .. }
            | Phase::Unresponsive { pid, .. }
            | Phase::Paused { pid, .. } => Some(pid),
            Phase::Unwanted | Phase::Down { .. } | Phase::Stopping => None,
        }
    }
}

/// State of a target between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Phase of its life.
    pub phase: Phase,
    /// Failures, and the time of the next try.
    pub retry: Backoff,
    /// The observation upon which it was killed last: another one has to come before it is again.
    killed_at: Option<u64>,
}

/// Part of the state that is on the disk, for the agent that comes after this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remembered {
    /// Failures so far.
    pub failures: Failures,
    /// The process that answered.
    pub process: Answered,
}

/// A process that has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answered {
    /// Its pid; none where none has.
    pub pid: Option<u32>,
    /// Whether it had passed its probation.
    pub served: bool,
}

/// Situation of a target: the desired state, and the work of its task.
#[derive(Debug, Clone, Copy, Default)]
pub struct Situation {
    /// Whether it is to be there.
    pub wanted: bool,
    /// Whether volumes are wanted in it, or guests were connected: somebody loses something by its silence.
    pub has_users: bool,
    /// Whether the task starts it right now.
    pub bringing_up: bool,
    /// Whether the agent itself stops its process right now.
    pub stopping: bool,
    /// Whether the task could begin something.
    pub is_free: bool,
    /// Whether the agent has only begun, and starts what it finds down whatever the policy says of later
    /// exits.
    pub at_start: bool,
    /// Outcome of the last start, once.
    pub attempt: Option<Attempt>,
    /// End of the grace period in which guests that were just given their volumes must not lose them again.
    pub grace_until: Option<Instant>,
}

/// Outcome of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It failed.
    Failed,
    /// It says nothing of the target, or what it says is known: again after this.
    After(Duration),
}

/// Action that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// It is started.
    Start,
    /// Its process is killed.
    Kill,
}

/// Result of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// State from now on.
    pub state: State,
    /// Action that is due.
    pub action: Action,
    /// Time of the next step, if nothing happens before.
    pub requeue_at: Option<Instant>,
}

impl State {
    /// State of a target of which nothing is known. The seed decides the jitter.
    pub fn new(policy: &HealPolicy, seed: u64) -> State {
        State { phase: Phase::Unwanted, retry: Backoff::new(*policy, seed), killed_at: None }
    }

    /// The same, with what an agent before this one wrote down.
    pub fn recall(self, remembered: Remembered, now: Instant) -> State {
        let Remembered { failures, process: Answered { pid, served } } = remembered;
        // Whether it still answers is to be seen; that it did is known.
        let phase = match pid {
            Some(pid) => Phase::Unresponsive { pid, since: now, served },
            None => self.phase,
        };
        State { phase, retry: self.retry.recall(failures), ..self }
    }

    /// Record for the next agent.
    pub fn remembers(&self) -> Remembered {
        let served = match self.phase {
            Phase::Serving { .. } => true,
            Phase::Unresponsive { served, .. } | Phase::Paused { served, .. } => served,
            _ => false,
        };
        let pid = match self.phase {
            // It lives, and has not answered.
            Phase::Starting { .. } => None,
            phase => phase.pid(),
        };
        Remembered { failures: self.retry.remembers(), process: Answered { pid, served } }
    }
}

/// Decides. One call makes one transition at the most; where it made one, the next call tells more.
pub fn step(
    before: &State,
    seen: &Observation,
    situation: &Situation,
    now: Instant,
    policy: &HealPolicy,
) -> Step {
    let mut state = before.clone();
    let mut requeue_at = None;
    let mut action = Action::Wait;
    if !situation.wanted {
        // With it goes all that was remembered.
        let state =
            State { phase: Phase::Unwanted, retry: state.retry.forgotten(), killed_at: None };
        return Step { state, action, requeue_at };
    }
    state.phase = match state.phase {
        phase if situation.stopping && phase != Phase::Unwanted => Phase::Stopping,
        Phase::Unwanted | Phase::Stopping => Phase::Down { due: Some(now), failed: false },
        Phase::Down { due, failed } => match comes_up(failed, seen, situation, now) {
            Some(phase) => phase,
            None => {
                let due = due.filter(|_| policy.enabled || situation.at_start);
                let due_now = due.is_some_and(|due| due <= now);
                requeue_at = due.filter(|_| !due_now);
                if due_now && situation.is_free && may_start(seen) {
                    action = Action::Start;
                    Phase::Starting { pid: None, since: now }
                } else {
                    state.phase
                }
            }
        },
        Phase::Starting { pid, since } => {
            starting(&mut state.retry, (pid, since), seen, situation, now)
        }
        Phase::Probation { pid, since } => match change(pid, seen) {
            Change::Gone => exited(&mut state.retry, now),
            Change::Paused => Phase::Paused { pid, served: false },
            Change::Silent => Phase::Unresponsive { pid, since: now, served: false },
            Change::None => {
                let crashes = state.retry.is_crash_loop();
                let doubtful =
                    if situation.has_users { state.retry.needs_probation() } else { crashes };
                let min_ready = if doubtful { policy.prove } else { Duration::ZERO };
                let ready = since + min_ready;
                requeue_at = Some(ready).filter(|ready| *ready > now);
                match requeue_at {
                    None => Phase::Serving { pid, since: now },
                    Some(_) => Phase::Probation { pid, since },
                }
            }
        },
        Phase::Serving { pid, since } => match change(pid, seen) {
            Change::Gone => exited(&mut state.retry, now),
            Change::Paused => Phase::Paused { pid, served: true },
            Change::Silent => Phase::Unresponsive { pid, since: now, served: true },
            Change::None => {
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
            Change::Gone => exited(&mut state.retry, now),
            Change::Paused => Phase::Paused { pid, served },
            Change::Silent | Change::None => Phase::Unresponsive { pid, since, served },
        },
        Phase::Paused { pid, served } => match change(pid, seen) {
            Change::Gone => exited(&mut state.retry, now),
            Change::Paused => Phase::Paused { pid, served },
            Change::Silent | Change::None => Phase::Unresponsive { pid, since: now, served },
        },
    };
    if policy.enabled
        && state.phase == before.phase
        && let Some(kill_at) = kill_at(&state.phase, seen, situation, policy)
    {
        let kill_at = kill_at.max(situation.grace_until.unwrap_or(kill_at));
        // What was not seen since then may have gone on meanwhile.
        let is_new = state.killed_at.is_none_or(|number| number < seen.number);
        if kill_at <= now && kill_at <= seen.at && is_new {
            if situation.is_free {
                state.killed_at = Some(seen.number);
                // One that outlives that (state D, or not the agent's to kill) is given the same time again.
                if let Phase::Unresponsive { since, .. } | Phase::Starting { since, .. } =
                    &mut state.phase
                {
                    *since = now;
                }
            }
            action = Action::Kill;
        }
        requeue_at = Some(kill_at).filter(|at| *at > now).or(requeue_at);
    }
    Step { state, action, requeue_at }
}

/// Change of a process that had answered, by an observation.
enum Change {
    None,
    Gone,
    Paused,
    Silent,
}

fn change(pid: u32, seen: &Observation) -> Change {
    match seen.pid() {
        Some(now) if now != pid => Change::Gone,
        None if seen.is_gone() => Change::Gone,
        // An agent that has just begun beside an engine that does not answer: nobody else answers either.
        None if seen.answers.is_silent() => Change::Gone,
        None => Change::None,
        Some(_) if seen.vitals.activity == Activity::Paused => Change::Paused,
        Some(_) if seen.version().is_some() => Change::None,
        // Silent by a request of the agent's own, which has its own deadline.
        Some(_) if seen.is_busy() => Change::None,
        Some(_) => Change::Silent,
    }
}

/// Phase after an exit: the first time it is started again at once, then ever more rarely.
fn exited(retry: &mut Backoff, now: Instant) -> Phase {
    retry.exited(now);
    Phase::Down { due: retry.due(), failed: false }
}

/// Whether it is there by now: started by the task, by somebody else, or all the time.
fn comes_up(
    failed: bool,
    seen: &Observation,
    situation: &Situation,
    now: Instant,
) -> Option<Phase> {
    let answers = seen.version().is_some();
    let young = matches!(seen.process, Process::Lives { young: true, .. });
    let paused = seen.vitals.activity == Activity::Paused;
    // One that a start of the agent's own left, and that never answered, is for the next start to end.
    let spared = answers || young || paused || !failed;
    let comes = situation.bringing_up || seen.pid().is_some() && spared;
    comes.then(|| Phase::Starting { pid: seen.pid(), since: now })
}

/// Whether nothing may be there. A target that was not looked at yet may be; so may one that only the engine could tell of, until its control socket
/// is silent too.
fn may_start(seen: &Observation) -> bool {
    seen.number > 0 && (seen.pid().is_some() || seen.is_gone() || seen.answers.is_silent())
}

fn starting(
    retry: &mut Backoff,
    (pid, since): (Option<u32>, Instant),
    seen: &Observation,
    situation: &Situation,
    now: Instant,
) -> Phase {
    if let Some(attempt) = situation.attempt {
        return match attempt {
            Attempt::After(pause) => Phase::Down { due: now.checked_add(pause), failed: false },
            Attempt::Failed => {
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

/// Time at which a silent process may be killed, as far as is known by now.
fn kill_at(
    phase: &Phase,
    seen: &Observation,
    situation: &Situation,
    policy: &HealPolicy,
) -> Option<Instant> {
    let (since, heard) = match *phase {
        Phase::Unresponsive { since, .. } => (since, true),
        // One that this agent never heard may serve its guests, and only have no place left at its control
        // socket.
        Phase::Starting { pid: Some(_), since } if !situation.bringing_up => (since, false),
        _ => return None,
    };
    if !seen.answers.is_silent() || seen.is_busy() {
        return None;
    }
    let frozen_after = match heard {
        true => policy.frozen_after,
        false => policy.frozen_after.max(policy.clear_after),
    };
    match seen.vitals.activity {
        Activity::Stopped => return Some(since + policy.frozen_after),
        Activity::Paused | Activity::Unknown => return None,
        Activity::Runs => {}
    }
    // Nobody loses anything by the silence of one without users.
    let progress = seen.vitals.progress.filter(|_| situation.has_users)?;
    // Each further sign of progress puts it off; and one that answers late is only slow.
    let stuck = progress.max(since) + frozen_after;
    let patience = policy.kill_unresponsive_after;
    let heard_at = since.max(seen.vitals.replied.unwrap_or(since));
    let in_doubt = (heard && !patience.is_zero()).then(|| heard_at + patience);
    Some(in_doubt.map_or(stuck, |at| stuck.min(at)))
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
