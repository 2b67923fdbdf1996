//! Containers: as one is made, and as the engine shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A container as the engine shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSeen {
    /// The engine's id.
    pub id: String,
    /// Whether its process lives.
    pub running: bool,
    /// The pid of its first process, on the host.
    pub pid: Option<u32>,
    /// The exit code of a process that has ended.
    pub exit_code: Option<i64>,
    /// Whether the kernel killed it for want of memory.
    pub oom_killed: bool,
    /// The id of its image.
    pub image_id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The engine's word on why it could not be started.
    pub error: String,
    /// When the engine starts it again by itself; none where it does not, as with the agent's own.
    pub restarts: Option<Restarts>,
}

/// When the engine starts a container again by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// The engine's word, such as `always`.
    pub policy: String,
    /// How often at the most, with `on-failure`.
    pub most: Option<i64>,
}

/// The label that holds the wish a container was made for.
pub const SPEC_LABEL: &str = "vhost-agent.spec";
/// The label that holds the digest of all that a container was made with.
pub const DIGEST_LABEL: &str = "vhost-agent.digest";
/// The label that holds the [`Isolation`] of a container; one that an older agent made has none.
pub const ISOLATION_LABEL: &str = "vhost-agent.isolation";

impl ContainerSeen {
    /// How its process ended, in a sentence.
    pub fn how_it_ended(&self) -> String {
        let code = self.exit_code.unwrap_or_default();
        if self.oom_killed {
            return format!("it was killed for want of memory (exit code {code})");
        }
        if !self.error.is_empty() {
            return format!("it could not be started: {} (exit code {code})", self.error);
        }
        format!("its process has ended with exit code {code}")
    }
}

/// Isolation of a container beyond its capabilities, as far as the settings say it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// Read-only root file system.
    pub read_only_root: bool,
    /// Folders in memory, writable all the same.
    pub tmpfs: Vec<String>,
    /// MiB that each of these holds at the most.
    pub tmpfs_mib: u64,
    /// Processes and threads that it has at the most.
    pub pids_limit: u32,
}

/// A container as it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Paths of the host that it sees under the same path: (path, read-only).
    pub binds: Vec<(String, bool)>,
    /// Isolation from the rest of the machine; none of one that comes back as an older agent made it.
    pub isolation: Option<Isolation>,
    /// Devices of the host.
    pub devices: Vec<String>,
    /// Capabilities, all others are dropped.
    pub capabilities: Vec<String>,
    /// All of them, and all devices.
    pub privileged: bool,
    /// CPUs that it may run on, as a list.
    pub cpus: Option<String>,
    /// NUMA nodes that its memory comes from, as a list.
    pub memory_nodes: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}
