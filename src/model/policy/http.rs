//! The HTTP server.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Limits of the HTTP server: `[http]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpPolicy {
    /// Connections at one time, of each listener; one peer has three quarters of them at most.
    pub max_connections: usize,
    /// Calls at work at one time that are called back, those that change the node and those that only look each
    /// by themselves; one more, and one that is beyond three quarters for its caller, is answered 503.
    pub max_tasks: usize,
    /// A request's body, in KiB.
    pub body_limit_kib: usize,
    /// How long a TLS handshake and a request's head may take each, and how long a connection may lie idle.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// How long a request's body may take, and one that is handed on stand still.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// How long a peer may take nothing of an answer.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// How long work may go on after SIGTERM.
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
