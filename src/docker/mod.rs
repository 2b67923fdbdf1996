//! The engine's API, reduced to the calls that the agent needs, in the agent's own types.
//!
//! Only `client` uses bollard. Other modules use the traits here, so that tests can fake an engine that hangs, is old
//! or starts late.

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
    /// No process listens at the socket, or a connection to it must not be made now.
    #[error("no engine listens at {socket}")]
    Absent { socket: String },
    /// Another engine has the socket.
    #[error("{engine} listens at {socket} in Docker's place")]
    NotDocker {
        socket: String,
        /// Name of that engine, such as podman.
        engine: String,
    },
    #[error("{socket} did not answer {call} within {within:?}")]
    Timeout {
        socket: String,
        call: &'static str,
        /// Deadline of the call.
        within: Duration,
    },
    /// The engine refused the call.
    #[error("the engine at {socket} refused {call}: {message} ({status})")]
    Refused {
        socket: String,
        call: &'static str,
        /// HTTP status.
        status: u16,
        message: String,
    },
    /// The engine exited, or the connection broke, before it had answered.
    #[error("the engine at {socket} went away during {call}")]
    Gone {
        socket: String,
        /// Name of the call, which may have been carried out fully or in part.
        call: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine's answer is invalid, or the call failed otherwise.
    #[error("{call} at {socket} failed")]
    Call { socket: String, call: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

pub trait Engine: Send + Sync + 'static {
    /// Checks that the engine answers, by its cheapest call.
    fn ping(&self, within: Duration) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Reads the engine's version. Costs the engine more than [`Engine::ping`], because it queries its own components.
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

    /// `true` if the engine reports a conflict, such as a container name that is taken.
    pub fn is_conflict(&self) -> bool {
        matches!(self, EngineError::Refused { status: 409, .. })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// The stream of events has begun: from now on no event is missed.
    Listening,
    /// Something happened to the container of this name.
    Container(String),
}

/// Content of a tar to be sent to the engine.
pub type Tar = Box<dyn AsyncRead + Send + Unpin>;

/// Containers and images of the engine. Each call has a deadline.
pub trait Containers: Send + Sync + 'static {
    /// Reads the container whose name or full id is exactly `name`; `None` if there is none.
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

    /// Starts the container with the name or full id `name`.
    fn start(
        &self,
        name: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Sends `signal`, such as `SIGTERM`, to the first process of the container.
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

    /// Sets the restart policy by which the engine restarts the container; with `None` the engine never does.
    fn set_restarts(
        &self,
        id: &str,
        restarts: Option<&Restarts>,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Renames the container with the name or full id `name` to `to`.
    fn rename(
        &self,
        name: &str,
        to: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Removes a container, which must not be running.
    fn remove(
        &self,
        id: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Passes container events to `notify` for as long as the engine sends them. Fails if the engine does not answer
    /// within `within` at the start.
    fn events(
        &self,
        notify: impl Fn(EngineEvent) + Send + Sync,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Reads the last `lines` lines of output, at most 16 KiB, of the container with the name or full id `name`.
    fn last_lines(
        &self,
        name: &str,
        lines: usize,
        within: Duration,
    ) -> impl Future<Output = Result<Vec<String>, EngineError>> + Send;

    /// Reads the id of the image `reference`; `None` if the engine does not have it.
    fn image(
        &self,
        reference: &str,
        within: Duration,
    ) -> impl Future<Output = Result<Option<String>, EngineError>> + Send;

    /// Pulls the image `reference` from the registry that the reference begins with; lines of progress go to `line`.
    fn pull(
        &self,
        reference: &str,
        login: Option<&Credentials>,
        line: impl Fn(String) + Send + Sync,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// `true` if the engine accepts `registry` without verifying its certificate.
    fn trusts_blindly(
        &self,
        registry: &str,
        within: Duration,
    ) -> impl Future<Output = Result<bool, EngineError>> + Send;

    /// Loads the images in `tar` into the engine.
    fn load(
        &self,
        tar: Tar,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;
}
