//! Delivery of task results and status reports to the controller.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Delivery of task results to their callback addresses: `[callbacks]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallbackPolicy {
    /// Age of a result after which its delivery is no longer retried. Restarts of the agent do not reset the age.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Delay before the second attempt. Each further delay is twice as long, up to `max_delay`.
    #[serde(with = "duration")]
    pub first_delay: Duration,
    /// Longest delay between two attempts.
    #[serde(with = "duration")]
    pub max_delay: Duration,
    /// Deadline of one attempt.
    #[serde(with = "duration")]
    pub attempt_timeout: Duration,
    /// Limit of pending results. It applies separately to requests that change the node and to requests that only read.
    /// One client may hold three quarters of it.
    pub max_pending: usize,
    /// Limit of concurrent attempts.
    pub parallel: usize,
}

/// Status reports that the agent sends unasked: `[report]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportPolicy {
    /// `true` to send reports.
    pub enabled: bool,
    /// Address of the controller. Empty: the address that the controller gave when it connected.
    pub url: String,
    /// Command path under which the controller accepts reports.
    pub command_path: String,
    /// Interval of reports while nothing changes, varied by up to a tenth.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// Deadline of one attempt.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Delay before the second attempt. Each further delay is twice as long, up to `max_delay`.
    #[serde(with = "duration")]
    pub first_delay: Duration,
    /// Longest delay between two attempts.
    #[serde(with = "duration")]
    pub max_delay: Duration,
    /// Delay between two attempts at a controller that does not know the command path.
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
