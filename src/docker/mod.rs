//! The engine's API, as few calls as are needed, in types of our own.
//!
//! Everything about bollard stays in `client`; the other rooms see the trait, so that an engine
//! that hangs, is old or comes up late can be played in tests.

pub mod client;
#[cfg(test)]
pub mod fake;

use std::future::Future;
use std::time::Duration;

use crate::model::engine::EngineVersion;

/// A call to the engine that failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens at the socket.
    #[error("nobody listens at {socket}")]
    Absent {
        /// The socket's path.
        socket: String,
    },
    /// No answer within the deadline.
    #[error("{socket} did not answer {call} within {within:?}")]
    Timeout {
        /// The socket's path.
        socket: String,
        /// What was asked.
        call: &'static str,
        /// How long it was waited for.
        within: Duration,
    },
    /// An answer that is none.
    #[error("{call} at {socket} failed")]
    Call {
        /// The socket's path.
        socket: String,
        /// What was asked.
        call: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The engine.
pub trait Engine: Send + Sync + 'static {
    /// Whether it answers at all: the cheapest call it has.
    fn ping(&self, within: Duration) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Its version. Costs the engine more than a ping: it asks its own parts.
    fn version(
        &self,
        within: Duration,
    ) -> impl Future<Output = Result<EngineVersion, EngineError>> + Send;
}
