//! Bringing targets back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Bringing targets back: `[heal]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealPolicy {
    /// Whether a target that is wanted and falls is brought back; the agent's start brings it back either
    /// way.
    pub enabled: bool,
    /// Between the first two attempts; doubled with each failure …
    #[serde(rename = "first_delay", with = "duration")]
    pub first: Duration,
    /// … up to this.
    #[serde(rename = "max_delay", with = "duration")]
    pub most: Duration,
    /// What a wait may be shorter than that, in percent of it, so that the targets of nodes that lost the
    /// same thing at the same time do not come back at the same time. More than 100 is 100.
    pub jitter_percent: u32,
    /// The uninterrupted service after which everything before is forgotten.
    #[serde(with = "duration")]
    pub clear_after: Duration,
    /// How long a target that fell again has to stand and answer before it gets a controller.
    #[serde(with = "duration")]
    pub prove: Duration,
    /// How long a target that is stopped, or makes no progress, may be silent until it is killed and brought
    /// back.
    #[serde(with = "duration")]
    pub frozen_after: Duration,
    /// How long one with volumes that computes and answers nothing may be silent until it is; zero is for ever.
    #[serde(with = "duration")]
    pub kill_unresponsive_after: Duration,
    /// After controllers were made, how long their target is not killed.
    #[serde(with = "duration")]
    pub settle: Duration,
}

impl Default for HealPolicy {
    fn default() -> HealPolicy {
        HealPolicy {
            enabled: true,
            first: Duration::from_secs(1),
            most: Duration::from_secs(64),
            jitter_percent: 20,
            clear_after: Duration::from_secs(60),
            prove: Duration::from_secs(3),
            frozen_after: Duration::from_secs(3),
            kill_unresponsive_after: Duration::from_secs(60),
            settle: Duration::from_secs(1),
        }
    }
}
