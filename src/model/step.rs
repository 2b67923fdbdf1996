//! Steps of a plan, as planners write them down.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::container::{ContainerSpec, Restarts};
use super::engine::{ApiVersion, PackageManager};
use super::image::Download;
use super::pools::PoolKey;
use super::units::{NumaNode, PageSize};

/// Step of a plan. Planners make steps, `agent::apply` performs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Raise a pool's `nr_hugepages`.
    Grow(ResizePool),
    /// Lower a pool's `nr_hugepages`.
    Shrink(ResizePool),
    /// Ask the kernel to gather free memory on a NUMA node.
    Compact(NumaNode),
    /// Drop the page cache of the whole machine.
    DropPageCache,
    Mount {
        path: String,
        size: PageSize,
    },
    /// Write the engine's configuration.
    WriteDaemonJson {
        path: String,
        /// Whole new text; it may hold the operator's secrets and is not reported.
        text: String,
        /// Summary of the new keys, for reports.
        adds: String,
        /// Set if the file exists already.
        replaces: bool,
    },
    Install {
        manager: PackageManager,
        /// Sets of packages to try, the preferred one first.
        sets: Vec<Vec<String>>,
    },
    /// Have the engine's unit started at boot.
    EnableUnit(String),
    /// Start the engine's unit.
    StartUnit(String),
    /// Start the engine's daemon without systemd.
    StartDaemon {
        /// Name or path of its executable.
        binary: String,
        args: Vec<String>,
    },
    /// Wait until the engine's API answers with version `min_api` or newer.
    AwaitEngine {
        socket: String,
        /// Oldest version that is accepted.
        min_api: ApiVersion,
        /// Longest wait.
        within: Duration,
    },
    /// Load an image into the engine.
    LoadImage {
        image: String,
        /// Sources, each tried when the one before it failed.
        from: Vec<ImageSource>,
    },
    /// Make the folder of a target's sockets, and remove from the folder what a dead predecessor left.
    PrepareSockets {
        folder: String,
        /// Path of the control socket.
        control: String,
    },
    CreateContainer(Box<ContainerSpec>),
    StartContainer {
        name: String,
    },
    /// Wait until the target serves.
    AwaitTarget {
        name: String,
        /// Name or id of the target's container.
        container: String,
        /// Path of the control socket.
        socket: String,
        /// Longest wait.
        within: Duration,
    },
    /// Stop a container: SIGTERM, grace period, SIGKILL.
    StopContainer {
        name: String,
        /// The engine's id of the container.
        id: String,
        /// Grace period before SIGKILL.
        grace: Duration,
    },
    /// Set the engine's restart policy of a container.
    SetRestarts {
        name: String,
        /// The engine's id of the container.
        id: String,
        /// Restart policy; `None` for never.
        restarts: Option<Restarts>,
    },
    RenameContainer {
        /// Current name.
        name: String,
        /// The engine's id, if known; else the container is found by its name.
        id: Option<String>,
        /// New name.
        to: String,
    },
    /// Remove a container that does not run.
    RemoveContainer {
        name: String,
        /// The engine's id of the container.
        id: String,
    },
}

/// Source of an image that the engine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// Made by the agent itself.
    BuiltIn,
    /// Registry at the beginning of the image's name.
    Registry,
    /// Path of a tar on this node.
    Tar(String),
    Url(Download),
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageSource::BuiltIn => f.write_str("made by the agent"),
            ImageSource::Registry => f.write_str("pulled from its registry"),
            ImageSource::Tar(path) => write!(f, "loaded from {path}"),
            ImageSource::Url(download) => write!(f, "downloaded from {}", download.url),
        }
    }
}

/// Change of one pool's `nr_hugepages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizePool {
    pub pool: PoolKey,
    /// Pages when the step was planned.
    pub from: u64,
    /// Desired pages after the step.
    pub to: u64,
}

/// Part of the node that a step changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Area {
    /// Hugepage pools.
    Pools,
    /// hugetlbfs mounts.
    Mount,
    Engine,
    Target,
}

impl Step {
    pub fn area(&self) -> Area {
        match self {
            Step::Grow(_) | Step::Shrink(_) | Step::Compact(_) | Step::DropPageCache => Area::Pools,
            Step::Mount { .. } => Area::Mount,
            Step::WriteDaemonJson { .. }
            | Step::Install { .. }
            | Step::EnableUnit(_)
            | Step::StartUnit(_)
            | Step::StartDaemon { .. }
            | Step::AwaitEngine { .. } => Area::Engine,
            _ => Area::Target,
        }
    }

    /// Stable name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Grow(_) => "grow",
            Step::Shrink(_) => "giveBack",
            Step::Compact(_) => "compact",
            Step::DropPageCache => "dropPageCache",
            Step::Mount { .. } => "mount",
            Step::WriteDaemonJson { .. } => "writeDaemonJson",
            Step::Install { .. } => "install",
            Step::EnableUnit(_) => "enableUnit",
            Step::StartUnit(_) => "startUnit",
            Step::StartDaemon { .. } => "startDaemon",
            Step::AwaitEngine { .. } => "awaitEngine",
            Step::LoadImage { .. } => "loadImage",
            Step::PrepareSockets { .. } => "prepareSockets",
            Step::CreateContainer(_) => "createContainer",
            Step::StartContainer { .. } => "startContainer",
            Step::AwaitTarget { .. } => "awaitTarget",
            Step::StopContainer { .. } => "stopContainer",
            Step::SetRestarts { .. } => "setRestarts",
            Step::RenameContainer { .. } => "renameContainer",
            Step::RemoveContainer { .. } => "removeContainer",
        }
    }

    /// Object of the step, in the operator's words.
    pub fn subject(&self) -> String {
        match self {
            Step::Grow(resize) | Step::Shrink(resize) => resize.pool.to_string(),
            Step::Compact(node) => node.to_string(),
            Step::DropPageCache => "page cache".to_string(),
            Step::Mount { path, size } => format!("{path} (pagesize={size})"),
            Step::WriteDaemonJson { path, .. } => path.clone(),
            Step::Install { manager, .. } => manager.to_string(),
            Step::EnableUnit(unit) | Step::StartUnit(unit) => unit.clone(),
            Step::StartDaemon { binary, .. } => binary.clone(),
            Step::AwaitEngine { socket, .. } | Step::AwaitTarget { socket, .. } => socket.clone(),
            Step::LoadImage { image, .. } => image.clone(),
            Step::PrepareSockets { folder, .. } => folder.clone(),
            Step::CreateContainer(spec) => spec.name.clone(),
            Step::StartContainer { name }
            | Step::StopContainer { name, .. }
            | Step::SetRestarts { name, .. }
            | Step::RenameContainer { name, .. }
            | Step::RemoveContainer { name, .. } => name.clone(),
        }
    }

    /// State before the step and intended state after it, in words.
    pub fn before_after(&self) -> (String, String) {
        let words = |before: &str, after: &str| (before.to_string(), after.to_string());
        match self {
            Step::Grow(resize) | Step::Shrink(resize) => {
                (format!("{} pages", resize.from), format!("{} pages", resize.to))
            }
            Step::Compact(_) => words("fragmented", "compacted"),
            Step::DropPageCache => words("cached", "dropped"),
            Step::Mount { .. } => words("absent", "mounted"),
            Step::WriteDaemonJson { adds, replaces, .. } => {
                let before = if *replaces { "without it" } else { "absent" };
                (before.to_string(), adds.clone())
            }
            Step::Install { sets, .. } => {
                let sets: Vec<String> = sets.iter().map(|set| set.join(" ")).collect();
                ("not installed".to_string(), sets.join(" | "))
            }
            Step::EnableUnit(_) => words("disabled", "enabled"),
            Step::StartUnit(_) | Step::StartDaemon { .. } | Step::StartContainer { .. } => {
                words("stopped", "running")
            }
            Step::LoadImage { from, .. } => {
                let from: Vec<String> = from.iter().map(ImageSource::to_string).collect();
                ("absent".to_string(), from.join(", else "))
            }
            Step::PrepareSockets { .. } => words("unknown", "clear"),
            Step::CreateContainer(spec) => {
                let [cpus, nodes] =
                    [&spec.cpus, &spec.memory_nodes].map(|it| it.as_deref().unwrap_or("any"));
                let below = spec.cgroup_parent.as_deref().map(|it| format!(", below {it}"));
                let below = below.unwrap_or_default();
                ("absent".to_string(), format!("CPUs {cpus}, memory of nodes {nodes}{below}"))
            }
            Step::AwaitTarget { .. } => words("no answer", "serving"),
            Step::StopContainer { .. } => words("running", "stopped"),
            Step::SetRestarts { restarts, .. } => {
                let never = "never started again by the engine";
                words("unknown", restarts.as_ref().map_or(never, |it| it.policy.as_str()))
            }
            Step::RenameContainer { name, to, .. } => words(name, to),
            Step::RemoveContainer { .. } => words("stopped", "absent"),
            Step::AwaitEngine { min_api, .. } => {
                ("no answer".to_string(), format!("answers with API {min_api} or newer"))
            }
        }
    }
}
