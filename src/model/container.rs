//! Containers: spec and observation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::exit::signal_of;

/// Container as the engine reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSeen {
    /// The engine's id of the container.
    pub id: String,
    /// Set if the container's first process lives.
    pub running: bool,
    /// Pid of the container's first process, on the host.
    pub pid: Option<u32>,
    /// Exit code of a process that has exited.
    pub exit_code: Option<i64>,
    /// Set if the kernel killed the process for lack of memory.
    pub oom_killed: bool,
    pub image_id: String,
    pub labels: BTreeMap<String, String>,
    /// The engine's reason why the container could not be started; empty if there is none.
    pub error: String,
    /// The engine's restart policy; `None` if the engine does not restart the container, as for containers that the
    /// agent creates.
    pub restarts: Option<Restarts>,
}

/// Restart policy of the engine for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// The engine's word, such as `always`.
    pub policy: String,
    /// Limit of restarts, with `on-failure`.
    pub most: Option<i64>,
}

/// Label that holds the spec that a container was made for.
pub const SPEC_LABEL: &str = "vhost-agent.spec";
/// Label that holds the digest of all that a container was made with.
pub const DIGEST_LABEL: &str = "vhost-agent.digest";
/// Label that holds the [`Isolation`] of a container. A container that an older agent made has no such label.
pub const ISOLATION_LABEL: &str = "vhost-agent.isolation";

impl ContainerSeen {
    /// Describes the exit of the container's process in a sentence.
    pub fn how_it_ended(&self) -> String {
        let code = self.exit_code.unwrap_or_default();
        let signal = signal_of(code).map_or(String::new(), |name| format!(" ({name})"));
        if self.oom_killed {
            return format!("it was killed for want of memory (exit code {code})");
        }
        if !self.error.is_empty() {
            return format!("it could not be started: {} (exit code {code})", self.error);
        }
        format!("its process has ended with exit code {code}{signal}")
    }
}

/// Isolation settings of a container, beyond its capabilities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    pub read_only_root: bool,
    /// Folders in memory that are writable in spite of a read-only root.
    pub tmpfs: Vec<String>,
    /// Size limit of each of these folders, in MiB.
    pub tmpfs_mib: u64,
    /// Limit of processes and threads.
    pub pids_limit: u32,
}

/// Desired container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    pub name: String,
    pub image: String,
    pub command: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Paths of the host that the container sees under the same path: (path, read-only).
    pub binds: Vec<(String, bool)>,
    /// Isolation from the rest of the machine; `None` for a container that is restored as an older agent made it.
    pub isolation: Option<Isolation>,
    /// Devices of the host.
    pub devices: Vec<String>,
    /// Capabilities; all others are dropped.
    pub capabilities: Vec<String>,
    /// Set if the container gets all capabilities and all devices.
    pub privileged: bool,
    /// CPUs on which the container may run, as a list.
    pub cpus: Option<String>,
    /// NUMA nodes from which the container's memory comes, as a list.
    pub memory_nodes: Option<String>,
    /// Cgroup below which the engine makes that of the container; `None` for the engine's own choice.
    pub cgroup_parent: Option<String>,
    pub labels: BTreeMap<String, String>,
}
