//! Preparing the node: the request, the steps, the report.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::engine::{ApiVersion, PackageManager};
use super::fault::{Fault, Finding};
use super::image::Download;
use super::pools::{PoolKey, PoolPages, PoolWant};
use super::target::ContainerSpec;
use super::units::{NumaNode, PageSize};

/// What the node is to be made fit for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareRequest {
    /// Free pages, at most one wish for each page size and placement.
    pub hugepages: Vec<PoolWant>,
    /// Whether a growth that came out short is kept.
    pub keep_partial: bool,
    /// Whether the engine is looked after.
    pub engine: bool,
    /// Whether only the plan is wanted.
    pub dry_run: bool,
}

impl PrepareRequest {
    /// Whether the outcome of `self` answers `other` too: it wants the same or more pages, and the
    /// same of the engine, so that nobody waits for an installation who did not ask for it.
    pub fn covers(&self, other: &PrepareRequest) -> bool {
        self.dry_run == other.dry_run
            && self.keep_partial == other.keep_partial
            && self.engine == other.engine
            && other.hugepages.iter().all(|want| {
                self.hugepages.iter().any(|mine| {
                    mine.size == want.size
                        && mine.placement == want.placement
                        && mine.move_shortfall == want.move_shortfall
                        && mine.pages >= want.pages
                })
            })
    }
}

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
                let cores = spec.cpus.as_deref().unwrap_or("any");
                ("absent".to_string(), format!("cores {cores}"))
            }
            Step::AwaitTarget { .. } => words("no answer", "serving"),
            Step::StopContainer { .. } => words("running", "stopped"),
            Step::RemoveContainer { .. } => words("stopped", "absent"),
            Step::AwaitEngine { min_api, .. } => {
                ("no answer".to_string(), format!("answers with API {min_api} or newer"))
            }
        }
    }
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepOutcome {
    /// Dry run: it would be done.
    Planned,
    /// Done, and read back.
    Done,
    /// Done in part: `after` says how far.
    Short,
    /// It failed; the report's error says why.
    Failed,
}

impl StepOutcome {
    /// As it stands in reports.
    pub fn word(self) -> &'static str {
        match self {
            StepOutcome::Planned => "planned",
            StepOutcome::Done => "done",
            StepOutcome::Short => "short",
            StepOutcome::Failed => "failed",
        }
    }
}

/// One step as it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// The part of the node.
    pub area: Area,
    /// The step's name.
    pub step: String,
    /// What it worked on.
    pub subject: String,
    /// How things stood.
    pub before: String,
    /// How they stand, read back; in a dry run how they would stand.
    pub after: String,
    /// What became of it.
    pub outcome: StepOutcome,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
}

impl StepReport {
    /// The report of a step that was only planned.
    pub fn planned(step: &Step) -> StepReport {
        let (before, after) = step.before_after();
        StepReport::of(step, before, after, StepOutcome::Planned, Duration::ZERO)
    }

    /// The report of a step that was tried.
    pub fn of(
        step: &Step,
        before: String,
        after: String,
        outcome: StepOutcome,
        took: Duration,
    ) -> StepReport {
        StepReport {
            area: step.area(),
            step: step.name().to_string(),
            subject: step.subject(),
            before,
            after,
            outcome,
            duration_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}

/// How a prepare ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Everything was there already.
    Holds,
    /// Something was done, and now everything is there.
    Changed,
    /// Dry run: something would be done.
    WouldChange,
    /// Something is missing still.
    Failed,
}

impl Outcome {
    /// As it stands in reports.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Holds => "holds",
            Outcome::Changed => "changed",
            Outcome::WouldChange => "wouldChange",
            Outcome::Failed => "failed",
        }
    }
}

/// What one part of a prepare did: the pools with their mounts, or the engine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PartReport {
    /// The steps, in order.
    pub steps: Vec<StepReport>,
    /// What the operator should know.
    pub findings: Vec<Finding>,
    /// Why it stopped before everything held.
    pub errors: Vec<Fault>,
    /// hugetlbfs mounts to use.
    pub mounts: Vec<String>,
    /// The engine's version, when it answered.
    pub engine_version: Option<String>,
}

impl PartReport {
    /// Takes over what another part did.
    pub fn merge(&mut self, other: PartReport) {
        self.steps.extend(other.steps);
        self.findings.extend(other.findings);
        self.errors.extend(other.errors);
        self.mounts.extend(other.mounts);
        self.engine_version = self.engine_version.take().or(other.engine_version);
    }
}

/// What a prepare did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether nothing was to be changed.
    pub dry_run: bool,
    /// Every step; the pools' first, then the engine's, which went on at the same time.
    pub steps: Vec<StepReport>,
    /// What the operator should know though nothing failed by it.
    pub findings: Vec<Finding>,
    /// What failed; empty unless the outcome is `failed`.
    pub errors: Vec<Fault>,
    /// The hugetlbfs mounts that a target would be given.
    pub mounts: Vec<String>,
    /// The engine's version.
    pub engine_version: Option<String>,
    /// From the first look to the last, in milliseconds.
    pub duration_ms: f64,
}

impl PrepareReport {
    /// Sums the parts up.
    pub fn of(dry_run: bool, parts: PartReport, took: Duration) -> PrepareReport {
        let outcome = match (parts.errors.is_empty(), parts.steps.is_empty(), dry_run) {
            (false, ..) => Outcome::Failed,
            (true, true, _) => Outcome::Holds,
            (true, false, true) => Outcome::WouldChange,
            (true, false, false) => Outcome::Changed,
        };
        PrepareReport {
            outcome,
            dry_run,
            steps: parts.steps,
            findings: parts.findings,
            errors: parts.errors,
            mounts: parts.mounts,
            engine_version: parts.engine_version,
            duration_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
        }
    }

    /// All errors in one line; empty when there are none.
    pub fn error_text(&self) -> String {
        self.errors.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join("; ")
    }
}

/// What giving pages back did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReclaimReport {
    /// The steps.
    pub steps: Vec<StepReport>,
    /// Pages grown by the agent that remain, because they are in use or were to be kept.
    pub remaining: Vec<PoolPages>,
    /// What failed.
    pub errors: Vec<Fault>,
}

/// Something that happens while a long call runs, for whoever watches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Progress {
    /// A step began.
    Begun {
        /// The part of the node.
        area: Area,
        /// The step's name.
        step: String,
        /// What it works on.
        subject: String,
    },
    /// A line of output of the step at work.
    Line {
        /// The part of the node.
        area: Area,
        /// The line.
        text: String,
    },
    /// A step ended.
    Ended(StepReport),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pools::Placement;

    fn request(pages: u64) -> PrepareRequest {
        let want = PoolWant {
            size: PageSize::MIB_2,
            pages,
            placement: Placement::Spread,
            move_shortfall: false,
        };
        PrepareRequest { hugepages: vec![want], keep_partial: false, engine: true, dry_run: false }
    }

    #[test]
    fn a_request_covers_the_same_and_less_and_nothing_of_another_kind() {
        let big = request(10);
        assert!(big.covers(&request(10)) && big.covers(&request(3)));
        assert!(!big.covers(&request(11)));
        assert!(!big.covers(&PrepareRequest { engine: false, ..request(5) }));
        assert!(!PrepareRequest { engine: false, ..request(10) }.covers(&request(5)));
        assert!(!big.covers(&PrepareRequest { dry_run: true, ..request(5) }));
        let mut bound = request(5);
        bound.hugepages[0].placement = Placement::Bound(vec![NumaNode(1)]);
        assert!(!big.covers(&bound));
    }
}
