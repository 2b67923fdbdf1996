//! Result of a deep probe, which writes to a disk of the agent's own in the target and reads the data back.

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::target::{TargetHealth, TargetState};

/// Result of writing to a disk of the agent's own and reading it back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeepHealth {
    /// Set if the data read is the data written.
    pub ok: bool,
    /// Time of the result, in RFC 3339.
    pub at: String,
    /// Duration of the whole probe, in milliseconds.
    pub duration_ms: f64,
    #[serde(flatten)]
    pub io: Option<ProvenIo>,
    /// Reason why the probe failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Fault>,
}

/// Measurements of I/O that a target carried out correctly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvenIo {
    /// Bytes that were written, and then read.
    pub bytes: u64,
    /// Time to write and flush the bytes, in milliseconds.
    pub write_ms: f64,
    /// Time to read the bytes, in milliseconds.
    pub read_ms: f64,
    /// Kind of the memory that was shared with the target.
    pub memory: MemoryKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MemoryKind {
    /// 2 MiB hugepages, as virtual machines have them.
    Hugepages,
    /// Ordinary pages, which the built-in target takes if no hugepage is free.
    Ordinary,
}

/// Health of a target, the deep probe included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvenHealth {
    #[serde(flatten)]
    pub health: TargetHealth,
    pub deep: DeepHealth,
}

impl ProvenHealth {
    /// Combines `health` with the result `deep` of a deep probe. A target that is up and whose I/O failed is degraded for
    /// that. A probe that could not try its I/O changes nothing.
    pub fn of(health: TargetHealth, deep: DeepHealth) -> ProvenHealth {
        let blamed = |fault: &&Fault| fault.code.blames_target();
        let fault = deep.error.as_ref().filter(|_| deep.io.is_none()).filter(blamed);
        let health = match fault {
            Some(fault) if health.is_up() => TargetHealth {
                state: TargetState::Degraded,
                reason: format!("it answers, but the deep probe failed: {}", fault.text),
                since: deep.at.clone(),
                ..health
            },
            _ => health,
        };
        ProvenHealth { health, deep }
    }

    /// `true` if the target serves, and I/O through it was verified.
    pub fn is_good(&self) -> bool {
        self.health.state == TargetState::Serving && self.deep.ok
    }
}

#[cfg(test)]
mod tests {
    use super::super::code::Code;
    use super::*;

    fn health(state: TargetState) -> TargetHealth {
        TargetHealth {
            name: "a".parse().unwrap(),
            state,
            reason: "SPDK answers".into(),
            since: "then".into(),
            version: None,
            age_ms: None,
            pid: None,
        }
    }

    fn deep(error: Option<Code>) -> DeepHealth {
        let io = ProvenIo { bytes: 1, write_ms: 0.5, read_ms: 0.5, memory: MemoryKind::Hugepages };
        DeepHealth {
            ok: error.is_none(),
            at: "now".into(),
            duration_ms: 1.0,
            io: error.is_none().then_some(io),
            error: error.map(|code| Fault::new(code, "why")),
        }
    }

    #[test]
    fn only_io_that_was_tried_and_failed_makes_a_serving_target_degraded() {
        use TargetState::{Absent, Degraded, Serving};
        for (before, error, after) in [
            (Serving, None, Serving),
            (Serving, Some(Code::DeepIoFailed), Degraded),
            (Serving, Some(Code::DeepImpossible), Serving),
            (Serving, Some(Code::NoFreeHugepage), Serving),
            (Absent, Some(Code::DeepNotAnswering), Absent),
        ] {
            let proven = ProvenHealth::of(health(before), deep(error));
            assert_eq!(proven.health.state, after, "{before:?} {error:?}");
            assert_eq!(proven.is_good(), error.is_none() && before == Serving);
        }
        let proven = ProvenHealth::of(health(Serving), deep(Some(Code::DeepIoFailed)));
        assert!(proven.health.reason.ends_with("why") && proven.health.since == "now");
    }

    #[test]
    fn verified_health_is_one_object_and_can_be_read_back() {
        for error in [None, Some(Code::DeepIoFailed)] {
            let proven = ProvenHealth::of(health(TargetState::Absent), deep(error));
            let json = serde_json::to_value(&proven).unwrap();
            assert_eq!(json["state"], "absent");
            assert_eq!(json["deep"]["ok"], error.is_none());
            assert_eq!(json["deep"].get("bytes").is_some(), error.is_none());
            assert_eq!(json["deep"].get("error").is_some(), error.is_some());
            assert_eq!(serde_json::from_value::<ProvenHealth>(json).unwrap(), proven);
        }
    }
}
