//! The health of targets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// How the health of targets is known: `[health]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthPolicy {
    /// How old an answer may be that is still told; zero asks every time.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// How long an answer may take.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Between two probes of a target. At most half of `max_age` keeps an answer at hand, and finds a frozen
    /// target within `max_age` and `timeout`.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// How long a deep probe may take, its tidying up included.
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
