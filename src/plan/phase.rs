//! Phases of a target's lifecycle; `lifecycle` has the transitions.

use std::time::Instant;

/// Phase of a target's lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not desired.
    Unwanted,
    /// Desired, but without a process.
    Down {
        /// Time of the next start; `None` if there is to be none.
        due: Option<Instant>,
        /// Set if the agent's last start led to no answer: the next start ends the process that it left.
        failed: bool,
    },
    /// Being started, or the process lives and has not answered yet.
    Starting {
        /// Process, once it lives.
        pid: Option<u32>,
        since: Instant,
    },
    /// Answering, and not yet for long enough to get volumes.
    Probation { pid: u32, since: Instant },
    /// Answering, with its probation passed.
    Serving { pid: u32, since: Instant },
    /// Answered before, and no longer does.
    Unresponsive {
        pid: u32,
        since: Instant,
        /// Set if the process had passed its probation.
        served: bool,
    },
    /// Cgroup frozen: the process can neither answer nor be killed before it is thawed.
    Paused {
        pid: u32,
        /// Set if the process had passed its probation.
        served: bool,
    },
    /// Being stopped by the agent itself.
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

    /// Pid of the process, if there is one.
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
