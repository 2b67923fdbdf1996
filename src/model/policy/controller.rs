//! What the controller is told: results of its calls, and how the node stands.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Results that are called back: `[callbacks]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallbackPolicy {
    /// How long a result is offered, restarts of the agent counted in.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Before the second attempt; doubled with each one after.
    #[serde(with = "duration")]
    pub first_delay: Duration,
    /// The longest time between two attempts.
    #[serde(with = "duration")]
    pub max_delay: Duration,
    /// How long one attempt may take.
    #[serde(with = "duration")]
    pub attempt_timeout: Duration,
    /// Results that may wait, of calls that change the node and of those that only look each by themselves; a
    /// caller may have three quarters.
    pub max_pending: usize,
    /// Attempts at one time.
    pub parallel: usize,
}

/// What the controller is told unasked: `[report]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportPolicy {
    /// Whether it is told at all.
    pub enabled: bool,
    /// Where to; empty: where the controller said when it connected.
    pub url: String,
    /// The command path under which the controller takes it.
    pub command_path: String,
    /// The heartbeat, when nothing changes; a tenth more or less.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// How long one attempt may take.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Before the second attempt; doubled with each one after.
    #[serde(with = "duration")]
    pub first_delay: Duration,
    /// The longest time between two attempts.
    #[serde(with = "duration")]
    pub max_delay: Duration,
    /// Between two attempts at a controller that does not know the command path.
    #[serde(with = "duration")]
    pub unknown_delay: Duration,
}

impl Default for CallbackPolicy {
    fn default() -> CallbackPolicy {
        CallbackPolicy {
            max_age: Duration::from_secs(3600),
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            attempt_timeout: Duration::from_secs(15),
            max_pending: 4096,
            parallel: 16,
        }
    }
}

impl Default for ReportPolicy {
    fn default() -> ReportPolicy {
        ReportPolicy {
            enabled: true,
            url: String::new(),
            command_path: "/zbs/primarystorage/vhost/target/status".to_string(),
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            unknown_delay: Duration::from_secs(600),
        }
    }
}
