//! How the node stands, as the controller is told and as `GET /v1/status` tells.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::target::{TargetHealth, TargetName, TargetState};

/// Volumes of one target, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeTally {
    /// That are to be there.
    pub wanted: usize,
    /// That serve.
    pub serving: usize,
    /// That could not be brought about.
    pub degraded: usize,
    /// Whose VM needs a restart.
    pub stuck: usize,
    /// Whose VM was connected before their target died, and has not come back.
    pub disconnected_sessions: usize,
}

/// One target with everything that is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// How it stands; `None` as long as nobody looked.
    pub health: Option<TargetHealth>,
    /// How often the agent has started it again since the agent runs.
    pub restarts: u64,
    /// Its volumes.
    pub volumes: VolumeTally,
}

/// Every target that is wanted or was looked at.
pub type Standings = BTreeMap<TargetName, Standing>;

/// A target as the controller is told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReport {
    /// Its name.
    pub name: TargetName,
    /// How it stands.
    pub state: TargetState,
    /// Why.
    pub reason: String,
    /// Since when, in RFC 3339.
    pub since: String,
    /// How often the agent has started it again since the agent runs.
    pub restarts: u64,
    /// Its volumes.
    #[serde(flatten)]
    pub volumes: VolumeTally,
}
