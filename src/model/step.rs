//! One thing to do, as a planner writes it down.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::container::{ContainerSpec, Restarts};
use super::engine::{ApiVersion, PackageManager};
use super::image::Download;
use super::pools::PoolKey;
use super::units::{NumaNode, PageSize};

/// One thing to do. The planners make them, `agent::apply` does them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Raise a pool.
    Grow(ResizePool),
    /// Lower a pool.
    Shrink(ResizePool),
    /// Ask the kernel to gather free memory on a NUMA node.
    Compact(NumaNode),
    /// Drop the page cache of the whole machine.
    DropPageCache,
    /// Mount a hugetlbfs.
    Mount {
        /// Where.
        path: String,
        /// For pages of this size.
        size: PageSize,
    },
    /// Write the engine's configuration.
    WriteDaemonJson {
        /// Where.
        path: String,
        /// The whole new text; it may hold the operator's secrets and is not told.
        text: String,
        /// What is new in it.
        adds: String,
        /// Whether a file is there already.
        replaces: bool,
    },
    /// Install the engine.
    Install {
        /// With this package manager.
        manager: PackageManager,
        /// The sets of packages to try, the preferred one first.
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
    },
    /// Wait until the API answers with a version that will do.
    AwaitEngine {
        /// The API's socket.
        socket: String,
        /// Oldest version that will do.
        min_api: ApiVersion,
        /// How long to wait.
        within: Duration,
    },
    /// Bring an image into the engine.
    LoadImage {
        /// Its name.
        image: String,
        /// From where; the next one when one fails.
        from: Vec<ImageSource>,
    },
    /// Make the folder of a target's sockets, and clear it of what a dead predecessor left.
    PrepareSockets {
        /// The folder.
        folder: String,
        /// The control socket.
        control: String,
    },
    /// Make a target's container.
    CreateContainer(Box<ContainerSpec>),
    /// Start it.
    StartContainer {
        /// Its name.
        name: String,
    },
    /// Wait until the target serves.
    AwaitTarget {
        /// Its name.
        name: String,
        /// Its container, by name or id.
        container: String,
        /// Its control socket.
        socket: String,
        /// How long to wait.
        within: Duration,
    },
    /// Stop a container: SIGTERM, a grace, SIGKILL.
    StopContainer {
        /// Its name.
        name: String,
        /// The engine's id.
        id: String,
        /// How long it may take by itself.
        grace: Duration,
    },
    /// Tell the engine when to start a container again by itself.
    SetRestarts {
        /// Its name.
        name: String,
        /// The engine's id.
        id: String,
        /// When; none is never.
        restarts: Option<Restarts>,
    },
    /// Give a container another name.
    RenameContainer {
        /// Its name.
        name: String,
        /// The engine's id, where it is known; else it is the one of that name.
        id: Option<String>,
        /// The new name.
        to: String,
    },
    /// Take a container away that does not run.
    RemoveContainer {
        /// Its name.
        name: String,
        /// The engine's id.
        id: String,
    },
}

/// Where an image comes from that the engine has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// The agent makes it of itself.
    BuiltIn,
    /// The registry that its name begins with.
    Registry,
    /// A tar on this node.
    Tar(String),
    /// A tar that is downloaded.
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

/// A change of one pool's `nr_hugepages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizePool {
    /// Which pool.
    pub pool: PoolKey,
    /// Pages when it was planned.
    pub from: u64,
    /// Pages wanted.
    pub to: u64,
}

/// The part of the node that a step changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Area {
    /// Hugepage pools.
    Pools,
    /// hugetlbfs mounts.
    Mount,
    /// The engine.
    Engine,
    /// A target.
    Target,
}

impl Step {
    /// The part of the node that it changes.
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

    /// Its stable name in reports.
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

    /// What it works on, in the operator's words.
    pub fn subject(&self) -> String {
        match self {
            Step::Grow(resize) | Step::Shrink(resize) => resize.pool.to_string(),
            Step::Compact(node) => node.to_string(),
            Step::DropPageCache => "page cache".to_string(),
            Step::Mount { path, size } => format!("{path} (pagesize={size})"),
            Step::WriteDaemonJson { path, .. } => path.clone(),
            Step::Install { manager, .. } => manager.to_string(),
            Step::EnableUnit(unit) | Step::StartUnit(unit) => unit.clone(),
            Step::StartDaemon { binary } => binary.clone(),
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

    /// How things stand before it, and how they are meant to stand after.
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
                let cpus = spec.cpus.as_deref().unwrap_or("any");
                ("absent".to_string(), format!("CPUs {cpus}"))
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
