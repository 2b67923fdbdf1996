//! Settings of the recovery of targets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Recovery of targets: `[heal]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealPolicy {
    /// `true` if a desired target is started again after it exits. At its own start, the agent starts desired targets
    /// in any case.
    pub enabled: bool,
    /// Delay between the first and the second attempt. Each further failure doubles the delay, up to `most`. The first
    /// attempt follows the first exit at once.
    #[serde(rename = "first_delay", with = "duration")]
    pub first: Duration,
    /// Longest delay between two attempts.
    #[serde(rename = "max_delay", with = "duration")]
    pub most: Duration,
    /// Largest random reduction of a delay, in percent; the settings allow at most 50. It keeps the targets of several
    /// nodes that failed at the same time from restarting at the same time.
    pub jitter_percent: u32,
    /// Time of uninterrupted service after which earlier failures of the target are forgotten.
    #[serde(with = "duration")]
    pub clear_after: Duration,
    /// Probation of a target that exited again: the time for which it must answer before a vhost controller is created
    /// in it.
    #[serde(alias = "prove", with = "duration")]
    pub min_ready: Duration,
    /// Time without an answer after which a target is killed and restarted, if its process is stopped or makes no
    /// progress.
    #[serde(alias = "frozen_after", with = "duration")]
    pub unresponsive_after: Duration,
    /// Time without an answer after which a target that still makes progress is killed and restarted, if it has volumes
    /// or guests. Zero: never.
    #[serde(with = "duration")]
    pub kill_unresponsive_after: Duration,
    /// Time after the creation of vhost controllers during which the agent does not kill their target, because guests
    /// may be reconnecting.
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
