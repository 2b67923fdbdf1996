//! Settings of the HTTP server.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Limits of the HTTP server: `[http]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpPolicy {
    /// Limit of concurrent connections to each listener; one peer has three quarters of them at most.
    pub max_connections: usize,
    /// Limit of concurrent requests that are called back, separate for those that change the node and for those that
    /// only read; one more, and one beyond three quarters for its caller, is answered 503.
    pub max_tasks: usize,
    /// Limit of a request's body, in KiB.
    pub body_limit_kib: usize,
    /// Deadline of a TLS handshake and of a request's head each, and limit of a connection's idle time.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// Deadline of a request's body, and of each stall in one that is passed on.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// Time for which a peer may read nothing of a reply.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// Time for which work may go on after SIGTERM.
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
