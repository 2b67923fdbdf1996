//! The engine's API, reduced to the calls that are needed, in types of our own.
//!
//! Everything about bollard stays in `client`; other modules use the traits, so that tests can fake an engine that
//! hangs, is old or comes up late.

pub mod client;
#[cfg(test)]
pub mod fake;
mod pull_progress;

use std::future::Future;
use std::time::Duration;

use tokio::io::AsyncRead;

use crate::model::container::{ContainerSeen, ContainerSpec, Restarts};
use crate::model::engine::EngineVersion;
use crate::model::registry::Credentials;

/// Failed call to the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No listener at the socket.
    #[error("nobody listens at {socket}")]
    Absent { socket: String },
    #[error("{socket} did not answer {call} within {within:?}")]
    Timeout {
        socket: String,
        /// Name of the call.
        call: &'static str,
        /// Deadline of the call.
        within: Duration,
    },
    /// The engine refused the call.
    #[error("the engine at {socket} refused {call}: {message} ({status})")]
    Refused {
        socket: String,
        /// Name of the call.
        call: &'static str,
        /// HTTP status.
        status: u16,
        /// Message of the engine.
        message: String,
    },
    /// The engine exited, or the connection broke, before it had answered.
    #[error("the engine at {socket} went away during {call}")]
    Gone {
        socket: String,
        /// Name of the call; it may have been carried out, or half of it.
        call: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Invalid answer.
    #[error("{call} at {socket} failed")]
    Call {
        socket: String,
        /// Name of the call.
        call: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub trait Engine: Send + Sync + 'static {
    /// Checks that the engine answers at all: the cheapest call it has.
    fn ping(&self, within: Duration) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Reads its version. Costs the engine more than a ping: it queries its own parts.
    fn version(
        &self,
        within: Duration,
    ) -> impl Future<Output = Result<EngineVersion, EngineError>> + Send;
}

impl EngineError {
    /// `true` if the engine reports that the container or image does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, EngineError::Refused { status: 404, .. })
    }

    /// `true` if the engine reports that the container is being removed by another caller.
    pub fn is_being_removed(&self) -> bool {
        matches!(self, EngineError::Refused { status: 409, message, .. } if message.contains("already in progress"))
    }

    /// `true` if the engine reports a conflict, such as a container of that name.
    pub fn is_conflict(&self) -> bool {
        matches!(self, EngineError::Refused { status: 409, .. })
    }
}

/// Event from the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// Start of the stream: from now on no event is missed.
    Listening,
    /// Event of the container of that name.
    Container(String),
}

/// Tar on its way to the engine.
pub type Tar = Box<dyn AsyncRead + Send + Unpin>;

/// Containers and images of the engine. Each call has a deadline.
pub trait Containers: Send + Sync + 'static {
    /// Reads the container of exactly that name or full id; `None` if there is none.
    fn container(
        &self,
        name: &str,
        within: Duration,
    ) -> impl Future<Output = Result<Option<ContainerSeen>, EngineError>> + Send;

    /// Creates a container and returns its id.
    fn create(
        &self,
        spec: &ContainerSpec,
        within: Duration,
    ) -> impl Future<Output = Result<String, EngineError>> + Send;

    /// Starts the container of that name.
    fn start(
        &self,
        name: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Sends a signal, such as `SIGTERM`, to the first process of a container.
    fn kill(
        &self,
        id: &str,
        signal: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Unfreezes a paused container.
    fn unpause(
        &self,
        id: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Sets the engine's restart policy of a container; `None` means never.
    fn set_restarts(
        &self,
        id: &str,
        restarts: Option<&Restarts>,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Renames the container of that name or id.
    fn rename(
        &self,
        name: &str,
        to: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Removes a container that does not run.
    fn remove(
        &self,
        id: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Reports container events for as long as the engine sends them. Fails if the engine does not answer within the
    /// deadline.
    fn events(
        &self,
        notify: impl Fn(EngineEvent) + Send + Sync,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Reads the last lines of output of the container of that name or full id, at most 16 KiB.
    fn last_lines(
        &self,
        name: &str,
        lines: usize,
        within: Duration,
    ) -> impl Future<Output = Result<Vec<String>, EngineError>> + Send;

    /// Reads the id of an image; `None` if the engine has none of that name.
    fn image(
        &self,
        reference: &str,
        within: Duration,
    ) -> impl Future<Output = Result<Option<String>, EngineError>> + Send;

    /// Pulls an image from the registry that its name begins with; progress goes to `line`.
    fn pull(
        &self,
        reference: &str,
        login: Option<&Credentials>,
        line: impl Fn(String) + Send + Sync,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Checks whether the engine trusts a registry without verifying its identity.
    fn trusts_blindly(
        &self,
        registry: &str,
        within: Duration,
    ) -> impl Future<Output = Result<bool, EngineError>> + Send;

    /// Loads the images in a tar.
    fn load(
        &self,
        tar: Tar,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;
}
