//! Settings of the recovery of targets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Recovery of targets: `[heal]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealPolicy {
    /// `true` if a desired target is restarted after an exit; the agent's start restarts it either way.
    pub enabled: bool,
    /// Delay between the first two attempts; doubled with each failure, up to `most`.
    #[serde(rename = "first_delay", with = "duration")]
    pub first: Duration,
    /// Longest delay between two attempts.
    #[serde(rename = "max_delay", with = "duration")]
    pub most: Duration,
    /// Largest reduction of a delay, in percent of it, so that the targets of nodes that lost the same thing at the
    /// same time do not come back at the same time. More than 100 is 100.
    pub jitter_percent: u32,
    /// Uninterrupted service after which everything before is forgotten.
    #[serde(with = "duration")]
    pub clear_after: Duration,
    /// Probation: time for which a target that exited again has to run and answer before it gets a controller.
    #[serde(alias = "prove", with = "duration")]
    pub min_ready: Duration,
    /// Time for which a target that is stopped, or makes no progress, may be silent before it is killed and restarted.
    #[serde(alias = "frozen_after", with = "duration")]
    pub unresponsive_after: Duration,
    /// Time for which a target with volumes that uses CPU and answers nothing may be silent before that; zero for no
    /// limit.
    #[serde(with = "duration")]
    pub kill_unresponsive_after: Duration,
    /// Grace period after controllers were made, in which their target is not killed.
    #[serde(alias = "settle", with = "duration")]
    pub grace_period: Duration,
}

impl Default for HealPolicy {
    fn default() -> HealPolicy {
        HealPolicy {
            enabled: true,
            first: Duration::from_secs(1),
            most: Duration::from_secs(64),
            jitter_percent: 20,
            clear_after: Duration::from_secs(60),
            min_ready: Duration::from_secs(3),
            unresponsive_after: Duration::from_secs(3),
            kill_unresponsive_after: Duration::from_secs(60),
            grace_period: Duration::from_secs(1),
        }
    }
}
