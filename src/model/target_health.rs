//! Health of a target, as it is published.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::names::TargetName;

/// Published state of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetState {
    /// Neither desired nor present.
    Absent,
    Starting,
    /// Alive and answering.
    Serving,
    /// Alive, but not answering or serving as it should.
    Degraded,
    /// Frozen cgroup: somebody paused the container.
    Paused,
    /// Desired but not present.
    Failed,
}

impl fmt::Display for TargetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetState::Absent => "absent",
            TargetState::Starting => "starting",
            TargetState::Serving => "serving",
            TargetState::Degraded => "degraded",
            TargetState::Paused => "paused",
            TargetState::Failed => "failed",
        })
    }
}

/// Published status of a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetHealth {
    pub name: TargetName,
    pub state: TargetState,
    /// Reason for the state.
    pub reason: String,
    /// Start of the state, in RFC 3339.
    pub since: String,
    /// Version that the target reports.
    pub version: Option<String>,
    /// Age of the last answer of its control socket, in milliseconds.
    pub age_ms: Option<u64>,
    pub pid: Option<u32>,
}

impl TargetHealth {
    /// `true` if the target serves, or its process answers and has its volumes and is degraded only for lack of I/O
    /// buffers or by a deep probe. Any other degraded target has no version, or a process that the engine cannot tell.
    pub fn is_up(&self) -> bool {
        let answers = self.version.is_some() && self.pid.is_some();
        self.state == TargetState::Serving || self.state == TargetState::Degraded && answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_process_that_answers_is_up() {
        use TargetState::{Degraded, Failed, Serving, Starting};
        let health = |state, version: Option<&str>, pid| TargetHealth {
            name: TargetName::usual(),
            state,
            reason: "why".into(),
            since: "then".into(),
            version: version.map(str::to_string),
            age_ms: None,
            pid,
        };
        let answers = Some("SPDK v24.01");
        for (health, is_up) in [
            (health(Serving, answers, Some(7)), true),
            (health(Degraded, answers, Some(7)), true),
            // The engine cannot tell whose the control socket is.
            (health(Degraded, answers, None), false),
            (health(Degraded, None, Some(7)), false),
            (health(Failed, answers, Some(7)), false),
            (health(Starting, answers, Some(7)), false),
        ] {
            assert_eq!(health.is_up(), is_up, "{health:?}");
        }
    }
}
