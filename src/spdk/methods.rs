//! RPC methods that report a target's state, with one typed function for each; `disks` has those for block devices.
//! Members that a target adds to an answer are ignored. If one is missing, the answer is [`SpdkError::Garbage`].

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Spdk, SpdkError, shortened};
use crate::model::buffers::{BufferAnswer, BufferWaits, WaitsByModule};

/// Method that each health probe calls first.
pub(super) const GET_VERSION: &str = "spdk_get_version";

/// Maximum modules of a target whose counters are kept; SPDK has a dozen.
const MOST_MODULES: usize = 64;

/// Counters of one module of the target, in the result of `iobuf_get_stats`.
#[derive(Debug, Deserialize)]
struct ModuleBuffers {
    #[serde(default)]
    module: String,
    #[serde(default)]
    small_pool: PoolCounters,
    #[serde(default)]
    large_pool: PoolCounters,
}

/// Counters of one pool of buffers: of those that a target reports, the one of requests that had to wait.
#[derive(Debug, Default, Deserialize)]
struct PoolCounters {
    #[serde(default)]
    retry: u64,
}

/// Result of `spdk_get_version`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// Version text, such as `SPDK v24.01 git sha1 …`.
    pub version: String,
}

impl Spdk {
    /// Reads the target's version. An answer means that the control socket is served.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn version(&self, within: Duration) -> Result<Version, SpdkError> {
        let Version { version } = self.typed(GET_VERSION, None, within).await?;
        Ok(Version { version: shortened(version) })
    }

    /// Waits until the target's start has ended: from then on it serves. A target without this method counts as
    /// started.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn wait_init(&self, within: Duration) -> Result<(), SpdkError> {
        match self.call("framework_wait_init", None, within).await {
            Err(error) if error.is_unknown_method() => Ok(()),
            answered => answered.map(drop),
        }
    }

    /// Reads the version of a target, after waiting until its start has ended: the control socket is served earlier
    /// than the disks.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn serving(&self, within: Duration) -> Result<Version, SpdkError> {
        let (version, started) = tokio::join!(self.version(within), self.wait_init(within));
        let version = version?;
        started.map(|()| version)
    }

    /// Counts the target's reactors. Each has to run an event for the answer, so an answer means that none is
    /// unresponsive.
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

    /// Counts the requests that had to wait for an I/O buffer, for each module of the target. Each thread of the target
    /// has to run an event for the answer.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn buffer_waits(&self, within: Duration) -> Result<BufferAnswer, SpdkError> {
        let counted = self.typed::<Vec<ModuleBuffers>>("iobuf_get_stats", None, within).await;
        let modules = match counted {
            Err(error) if error.is_unknown_method() => return Ok(BufferAnswer::NotCounted),
            counted => counted?,
        };
        let waits = modules.into_iter().take(MOST_MODULES).map(|it| {
            let (small, large) = (it.small_pool.retry, it.large_pool.retry);
            (shortened(it.module), BufferWaits { small, large })
        });
        Ok(BufferAnswer::Counted(waits.collect::<WaitsByModule>()))
    }

    /// Lists the methods that the target offers now.
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
