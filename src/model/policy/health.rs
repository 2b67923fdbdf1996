//! Settings of the health probes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Health probes of targets: `[health]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthPolicy {
    /// Age up to which a target's last answer is reported without a new probe. Zero: each request for its health sends
    /// a probe.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Deadline for the answer to a health probe.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Interval between two health probes of a target. With at most half of `max_age`, an answer that is young enough
    /// is always available, and an unresponsive target is found within `max_age` plus `timeout`.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// Deadline of a deep probe, its clean-up included.
    #[serde(with = "duration")]
    pub deep_timeout: Duration,
}

impl Default for HealthPolicy {
    fn default() -> HealthPolicy {
        HealthPolicy {
            max_age: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            interval: Duration::from_millis(500),
            deep_timeout: Duration::from_secs(5),
        }
    }
}
