//! The methods that the agent calls, one typed function for each. Members that a target adds are ignored;
//! members that it lacks make the answer [`SpdkError::Garbage`].

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Spdk, SpdkError, shortened};

/// What `spdk_get_version` tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// Such as `SPDK v24.01 git sha1 …`.
    pub version: String,
}

/// A block device of a target.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Bdev {
    /// Its name.
    pub name: String,
    /// Bytes of a block.
    pub block_size: u64,
    /// Its size in blocks.
    pub num_blocks: u64,
}

/// A vhost controller of a target.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Controller {
    /// Its name.
    pub ctrlr: String,
    /// Its socket, where the target tells it.
    #[serde(default)]
    pub socket: String,
    /// Who is connected.
    #[serde(default)]
    pub sessions: Vec<Session>,
}

/// A virtual machine that is connected to a controller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Session {
    /// Whether its queues run.
    #[serde(default)]
    pub started: bool,
    /// Its queues.
    #[serde(default)]
    pub max_queues: u64,
    /// Requests at work.
    #[serde(default)]
    pub inflight_task_cnt: u64,
}

impl Spdk {
    /// Its version: the control socket is served.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn version(&self, within: Duration) -> Result<Version, SpdkError> {
        let Version { version } = self.typed("spdk_get_version", None, within).await?;
        Ok(Version { version: shortened(version) })
    }

    /// Returns when its start has ended: from then on it serves. One that does not know the question is
    /// taken to be there.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn wait_init(&self, within: Duration) -> Result<(), SpdkError> {
        match self.call("framework_wait_init", None, within).await {
            Err(error) if error.is_unknown_method() => Ok(()),
            answered => answered.map(drop),
        }
    }

    /// Its version, from one whose start has ended: the control socket is served earlier than the disks.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn serving(&self, within: Duration) -> Result<Version, SpdkError> {
        let (version, started) = tokio::join!(self.version(within), self.wait_init(within));
        let version = version?;
        started.map(|()| version)
    }

    /// How many reactors it has. Each has to run an event for that: an answer means that none is frozen.
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

    /// The methods that it has now.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn methods(&self, within: Duration) -> Result<Vec<String>, SpdkError> {
        self.typed("rpc_get_methods", Some(json!({"current": true})), within).await
    }

    /// Its block devices.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn bdevs(&self, within: Duration) -> Result<Vec<Bdev>, SpdkError> {
        self.typed("bdev_get_bdevs", None, within).await
    }

    /// Makes a block device of memory.
    ///
    /// # Errors
    /// See [`Spdk::call`]; [`SpdkError::is_exists`] when there is one of that name.
    pub async fn create_malloc(
        &self,
        name: &str,
        blocks: u64,
        block_size: u32,
        within: Duration,
    ) -> Result<(), SpdkError> {
        let params = json!({"name": name, "num_blocks": blocks, "block_size": block_size});
        self.call("bdev_malloc_create", Some(params), within).await.map(drop)
    }

    /// Takes a block device of memory away. Never one that a controller uses: its guest gets I/O errors.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn delete_malloc(&self, name: &str, within: Duration) -> Result<(), SpdkError> {
        self.call("bdev_malloc_delete", Some(json!({"name": name})), within).await.map(drop)
    }

    /// Its vhost controllers with their sessions.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn controllers(&self, within: Duration) -> Result<Vec<Controller>, SpdkError> {
        self.typed("vhost_get_controllers", None, within).await
    }

    /// Makes a vhost-blk controller on a block device; its socket gets its name.
    ///
    /// The name is used as it is: SPDK unlinks whatever socket lies there, cuts what is too long and
    /// follows `..`, so the caller has judged it.
    ///
    /// # Errors
    /// See [`Spdk::call`]; [`SpdkError::is_exists`] when there is one of that name.
    pub async fn create_controller(
        &self,
        name: &str,
        bdev: &str,
        read_only: bool,
        within: Duration,
    ) -> Result<(), SpdkError> {
        let params = json!({"ctrlr": name, "dev_name": bdev, "readonly": read_only});
        self.call("vhost_create_blk_controller", Some(params), within).await.map(drop)
    }

    /// Takes a controller away. Never one with a session: a target may then hang for ever.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn delete_controller(&self, name: &str, within: Duration) -> Result<(), SpdkError> {
        self.call("vhost_delete_controller", Some(json!({"ctrlr": name})), within).await.map(drop)
    }

    async fn typed<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: Option<Value>,
        within: Duration,
    ) -> Result<T, SpdkError> {
        let result = self.call(method, params, within).await?;
        serde_json::from_value(result).map_err(|e| SpdkError::Garbage {
            socket: self.socket().to_path_buf(),
            method,
            why: shortened(e.to_string()),
        })
    }
}
