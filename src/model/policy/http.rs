//! Settings of the HTTP server.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Limits of the HTTP server: `[http]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpPolicy {
    /// Limit of concurrent connections to each listener. One client may have three quarters of them.
    pub max_connections: usize,
    /// Limit of concurrent tasks, which are requests with a callback. It applies separately to requests that change the
    /// node and to requests that only read. One client may have three quarters of it. A request beyond the limit is
    /// answered with 503.
    pub max_tasks: usize,
    /// Limit of a request's body, in KiB.
    pub body_limit_kib: usize,
    /// Deadline of a TLS handshake, and of receiving a request's head. A connection that is idle for this time is
    /// closed.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// Deadline of receiving a request's body. For a request that is passed on to the legacy agent, limit of each stall
    /// of its body.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// Time for which a peer may accept nothing of a reply before its connection is closed.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// Time that work in progress has to finish after SIGTERM.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
}

impl Default for HttpPolicy {
    fn default() -> HttpPolicy {
        HttpPolicy {
            max_connections: 4096,
            max_tasks: 3072,
            body_limit_kib: 1024,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
