//! The engine's API, as few calls as are needed, in types of our own.
//!
//! Everything about bollard stays in `client`; the other rooms see the trait, so that an engine
//! that hangs, is old or comes up late can be played in tests.

pub mod client;
#[cfg(test)]
pub mod fake;
mod progress;

use std::future::Future;
use std::time::Duration;

use tokio::io::AsyncRead;

use crate::model::container::{ContainerSeen, ContainerSpec, Restarts};
use crate::model::engine::EngineVersion;
use crate::model::registry::Credentials;

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
    /// It refused.
    #[error("the engine at {socket} refused {call}: {message} ({status})")]
    Refused {
        /// The socket's path.
        socket: String,
        /// What was asked.
        call: &'static str,
        /// HTTP's status.
        status: u16,
        /// The engine's words.
        message: String,
    },
    /// It ended, or was ended, before it had answered.
    #[error("the engine at {socket} went away during {call}")]
    Gone {
        /// The socket's path.
        socket: String,
        /// What was asked; it may have been done, or half of it.
        call: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
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

impl EngineError {
    /// Whether the engine says that the container or image is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, EngineError::Refused { status: 404, .. })
    }

    /// Whether the engine says that somebody else is taking the container away at this moment.
    pub fn is_being_removed(&self) -> bool {
        matches!(self, EngineError::Refused { status: 409, message, .. } if message.contains("already in progress"))
    }

    /// Whether the engine says that something else stands against it, such as a container of that name.
    pub fn is_conflict(&self) -> bool {
        matches!(self, EngineError::Refused { status: 409, .. })
    }
}

/// What the engine tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// From now on nothing is missed.
    Listening,
    /// Something happened to the container of that name.
    Container(String),
}

/// A tar on its way to the engine.
pub type Tar = Box<dyn AsyncRead + Send + Unpin>;

/// The engine's containers and images. Each call has its deadline.
pub trait Containers: Send + Sync + 'static {
    /// The container of exactly that name or full id; `None` when there is none.
    fn container(
        &self,
        name: &str,
        within: Duration,
    ) -> impl Future<Output = Result<Option<ContainerSeen>, EngineError>> + Send;

    /// Makes a container and tells its id.
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

    /// Thaws a container that was paused.
    fn unpause(
        &self,
        id: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Tells the engine when to start a container again by itself; none is never.
    fn set_restarts(
        &self,
        id: &str,
        restarts: Option<&Restarts>,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Gives the container of that name or id another name.
    fn rename(
        &self,
        name: &str,
        to: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Takes a container away that does not run.
    fn remove(
        &self,
        id: &str,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Tells what happens to containers, for as long as the engine goes on telling. It answers within the
    /// deadline, or not at all.
    fn events(
        &self,
        tell: impl Fn(EngineEvent) + Send + Sync,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// The last lines that the container of that name or full id printed, 16 KiB of them at the most.
    fn last_lines(
        &self,
        name: &str,
        lines: usize,
        within: Duration,
    ) -> impl Future<Output = Result<Vec<String>, EngineError>> + Send;

    /// The id of an image that the engine has; `None` when it has none of that name.
    fn image(
        &self,
        reference: &str,
        within: Duration,
    ) -> impl Future<Output = Result<Option<String>, EngineError>> + Send;

    /// Pulls an image from the registry that its name begins with; what happens goes to `line`.
    fn pull(
        &self,
        reference: &str,
        login: Option<&Credentials>,
        line: impl Fn(String) + Send + Sync,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Whether the engine trusts a registry that cannot prove who it is.
    fn trusts_blindly(
        &self,
        registry: &str,
        within: Duration,
    ) -> impl Future<Output = Result<bool, EngineError>> + Send;

    /// Loads the images of a tar.
    fn load(
        &self,
        tar: Tar,
        within: Duration,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;
}
