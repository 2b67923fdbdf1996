//! RPC methods that report a target's state, one typed function for each; those for its disks are in `disks`. Members
//! that a target adds are ignored; members that it lacks make the answer [`SpdkError::Garbage`].

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Spdk, SpdkError, shortened};

/// First method of each health probe.
pub(super) const GET_VERSION: &str = "spdk_get_version";

/// Result of `spdk_get_version`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// Version text, such as `SPDK v24.01 git sha1 …`.
    pub version: String,
}

impl Spdk {
    /// Reads its version: an answer means that the control socket is served.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn version(&self, within: Duration) -> Result<Version, SpdkError> {
        let Version { version } = self.typed(GET_VERSION, None, within).await?;
        Ok(Version { version: shortened(version) })
    }

    /// Returns when its start has ended: from then on it serves. A target without the method counts as started.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn wait_init(&self, within: Duration) -> Result<(), SpdkError> {
        match self.call("framework_wait_init", None, within).await {
            Err(error) if error.is_unknown_method() => Ok(()),
            answered => answered.map(drop),
        }
    }

    /// Reads the version of a target whose start has ended: the control socket is served earlier than the disks.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn serving(&self, within: Duration) -> Result<Version, SpdkError> {
        let (version, started) = tokio::join!(self.version(within), self.wait_init(within));
        let version = version?;
        started.map(|()| version)
    }

    /// Counts its reactors. Each has to run an event for that: a reply means that none is unresponsive.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn reactors(&self, within: Duration) -> Result<usize, SpdkError> {
        #[derive(Deserialize)]
        struct Reactors {
            reactors: Vec<Value>,
        }
        let answer: Reactors = self.typed("framework_get_reactors", None, within).await?;
        Ok(answer.reactors.len())
    }

    /// Lists the methods that it offers now.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn methods(&self, within: Duration) -> Result<Vec<String>, SpdkError> {
        self.typed("rpc_get_methods", Some(json!({"current": true})), within).await
    }

    pub(super) async fn typed<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: Option<Value>,
        within: Duration,
    ) -> Result<T, SpdkError> {
        let result = self.call(method, params, within).await?;
        serde_json::from_str(result.get()).map_err(|e| SpdkError::Garbage {
            socket: self.socket().to_path_buf(),
            method: method.into(),
            why: shortened(e.to_string()),
        })
    }
}
