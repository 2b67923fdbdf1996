//! Settings of the health probes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Health probes of targets: `[health]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthPolicy {
    /// Age up to which an answer is still reported; zero asks every time.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Deadline for an answer.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Interval between two probes of a target. At most half of `max_age` keeps an answer at hand, and finds an
    /// unresponsive target within `max_age` and `timeout`.
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
