//! Targets: what is wanted of one, what is seen of it, and what is told of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bounds::Links;
use super::code::Code;
use super::container::{ContainerSeen, Restarts, SPEC_LABEL};
use super::cpu::{CoreList, Cpu, CpuUse};
use super::fault::Fault;
use super::image::{ImageSha256, ImageUrl};
pub use super::names::TargetName;
use super::path::{CleanPath, judge_socket};
use super::units::NumaNode;
use super::volume::{VolumeName, VolumeSpecs};

/// MiB of hugepages that a target may take: more than any machine has.
const MOST_MEMORY_MIB: u64 = 1 << 26;

/// Which program a target runs, and so how it is called and what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// ZBS's vhost, an SPDK application.
    Zbs,
    /// SPDK's own vhost.
    Spdk,
    /// The agent's own, in an image that it makes itself.
    BuiltIn,
}

/// Which CPUs a target gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CoreWish {
    /// These.
    These(CoreList),
    /// So many, chosen by topology.
    Count(u32),
}

/// What is wanted of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetSpec {
    /// Its name.
    pub name: TargetName,
    /// What it runs.
    pub kind: TargetKind,
    /// The image; `None` for the built-in one.
    pub image: Option<String>,
    /// A tar that holds the image, where it is not there yet.
    pub image_tar: Option<CleanPath>,
    /// The address of such a tar.
    pub image_url: Option<ImageUrl>,
    /// The digest of what is there.
    pub image_sha256: Option<ImageSha256>,
    /// Its CPUs.
    pub cores: CoreWish,
    /// The folder of its sockets.
    pub socket_dir: CleanPath,
    /// Its control socket.
    pub control_sock: CleanPath,
    /// Its client's configuration, mounted when it is there.
    pub client_conf: Option<CleanPath>,
    /// MiB of hugepages that it takes.
    pub memory_mib: u64,
    /// Whether nobody has said how many, so that they follow from its volumes each time when it is made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory_by_volumes: bool,
}

impl TargetSpec {
    /// What of it is wrong as a whole.
    ///
    /// # Errors
    /// A control socket whose path no socket can have, an image by a name that no image has, and more
    /// memory than any machine has.
    pub fn judge(self) -> Result<TargetSpec, Fault> {
        judge_socket(&self.control_sock)?;
        self.image.as_deref().map_or(Ok(()), judge_image)?;
        if self.memory_mib > MOST_MEMORY_MIB {
            let text =
                format!("{} MiB of hugepages are more than any machine has", self.memory_mib);
            return Err(Fault::new(Code::InvalidMemory, text));
        }
        Ok(self)
    }

    /// The same without the tar that is not opened for it, for its image is there.
    pub fn as_opened(&self, has_image: bool) -> TargetSpec {
        TargetSpec { image_tar: self.image_tar.clone().filter(|_| !has_image), ..self.clone() }
    }

    /// One for tests.
    #[cfg(test)]
    pub(crate) fn example(name: &str) -> TargetSpec {
        TargetSpec {
            name: TargetName(name.to_string()),
            kind: TargetKind::BuiltIn,
            image: None,
            image_tar: None,
            image_url: None,
            image_sha256: None,
            cores: CoreWish::Count(1),
            socket_dir: CleanPath("/sockets".to_string()),
            control_sock: CleanPath("/sockets/vhost.sock".to_string()),
            client_conf: None,
            memory_mib: 0,
            memory_by_volumes: false,
        }
    }

    /// The difference to what runs, field by field: (field, is, should be).
    pub fn drift(&self, running: &TargetSpec) -> Vec<Drift> {
        let fields = |spec: &TargetSpec| match serde_json::to_value(spec) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (wanted, is) = (fields(self), fields(running));
        // Where the image and the size of the memory came from is nothing that runs.
        const ORIGINS: [&str; 4] = ["imageTar", "imageUrl", "imageSha256", "memoryByVolumes"];
        wanted
            .into_iter()
            .filter(|(field, _)| !ORIGINS.contains(&field.as_str()))
            .filter_map(|(field, wanted)| {
                let is = is.get(&field).cloned().unwrap_or_default();
                (is != wanted).then_some(Drift { field, is, wanted })
            })
            .collect()
    }
}

/// Whether an image can have that name: what the engine's references are made of, and no more
/// (github.com/distribution/reference), for it becomes part of a request's path.
///
/// # Errors
/// When it cannot.
pub fn judge_image(name: &str) -> Result<(), Fault> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@[]".contains(&b);
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'[');
    let parts = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if first && parts && name.len() <= 255 && name.bytes().all(plain) {
        return Ok(());
    }
    let shown: String = name.chars().take(120).collect();
    Err(Fault::new(
        Code::InvalidImage,
        format!("'{shown}' is no image's name, such as registry.example:5000/storage/vhost:1"),
    ))
}

/// One field in which what runs differs from what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// The field's name.
    pub field: String,
    /// As it runs.
    pub is: serde_json::Value,
    /// As it is wanted.
    pub wanted: serde_json::Value,
}

/// How a target is to be brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EnsureWish {
    /// Whether one that differs from the wish, or does not serve, is replaced.
    pub recreate: bool,
    /// Whether that is done with virtual machines connected.
    pub force: bool,
    /// Whether one that has ended is made anew, and not started again as it is.
    pub anew: bool,
    /// Whether it is one that ran already and is brought back: what would be refused of a new one is told then.
    pub recovers: bool,
}

/// Everything the target planner looks at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetSeen {
    /// The container of its name.
    pub container: Option<ContainerSeen>,
    /// Containers with the names that are used while one replaces another ([`TargetName::beside`]); only where they
    /// were looked for.
    pub beside: Vec<(String, ContainerSeen)>,
    /// The version that its control socket told, when it answered.
    pub version: Option<String>,
    /// Why it did not, otherwise.
    pub silence: String,
    /// Disks that virtual machines are connected to; `None` when that cannot be told.
    pub sessions: Option<usize>,
    /// Volumes whose guest was connected before the process exited last, and is not back; of what the agent remembers.
    pub disconnected: usize,
    /// Whether the engine has its image …
    pub has_image: bool,
    /// … and that one's id.
    pub image_id: String,
    /// The name of the built-in target's image.
    pub built_in_image: String,
    /// Whether its client's configuration is there.
    pub has_client_conf: bool,
    /// A hugetlbfs of 2 MiB pages.
    pub huge_dir: Option<String>,
    /// The CPUs that are online.
    pub cpus: Vec<Cpu>,
    /// Who else runs on them.
    pub cpu_use: CpuUse,
    /// It as it was desired before, of what the agent remembers: that was judged when it was new.
    pub known: Option<TargetSpec>,
    /// What the paths lead to that are not the operator's.
    pub links: Links,
    /// What stands in the way of its sockets.
    pub socket_obstacle: Option<String>,
    /// Why somebody else could swap them.
    pub socket_doubt: Option<String>,
    /// Free pages of 2 MiB by node, with those of the process that it replaces, where it takes some and the machine tells.
    pub free_pages: BTreeMap<NumaNode, u64>,
    /// Pages of dead processes, on whatever node, which come back before it takes its own.
    pub returning_pages: u64,
}

impl TargetName {
    /// Names of the new container and of the old one while one replaces the other.
    pub fn beside(&self) -> [String; 2] {
        [".next", ".previous"].map(|end| format!("{self}{end}"))
    }
}

impl ContainerSeen {
    /// Whether the agent made it for the target of that name.
    pub fn is_of(&self, name: &TargetName) -> bool {
        self.made_for().is_some_and(|spec| spec.name == *name)
    }

    /// The wish that it was made for, when the agent made it.
    pub fn made_for(&self) -> Option<TargetSpec> {
        serde_json::from_str(self.labels.get(SPEC_LABEL)?).ok()
    }
}

impl TargetSeen {
    /// The wish that its container was made for, when the agent made it.
    pub fn made_for(&self) -> Option<TargetSpec> {
        self.container.as_ref().and_then(ContainerSeen::made_for)
    }

    /// Whether its process lives and its control socket answers.
    pub fn serves(&self) -> bool {
        self.version.is_some() && self.container.as_ref().is_some_and(|seen| seen.running)
    }
}

/// Trial of a target that replaces another one: that one is kept until all that it served is served again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The replaced one as it was desired; none where nobody desired it.
    pub old: Option<TargetSpec>,
    /// The engine's id of its container.
    pub id: String,
    /// The volumes that it served.
    pub served: Vec<VolumeName>,
    /// When the engine was to start it again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,
}

/// The targets that this node is to have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// Each as it was wanted last.
    pub targets: BTreeMap<TargetName, TargetSpec>,
    /// Trials of those that replace others.
    pub trials: BTreeMap<TargetName, Arc<Trial>>,
    /// The volumes of each; also of one that is not wanted itself, for its container may be somebody else's.
    pub volumes: BTreeMap<TargetName, Arc<VolumeSpecs>>,
}

impl Desired {
    /// The volumes that are wanted in a target.
    pub fn volumes_of(&self, target: &TargetName) -> Arc<VolumeSpecs> {
        self.volumes.get(target).cloned().unwrap_or_default()
    }
}

/// What an owner does with its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It makes it run.
    BringUp,
    /// It takes it away.
    TakeAway,
}

/// How a target stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetState {
    /// None is wanted, and none is there.
    Absent,
    /// It is being brought up.
    Starting,
    /// It lives and answers.
    Serving,
    /// It lives and does not answer as it should.
    Degraded,
    /// Its cgroup is frozen: somebody paused its container.
    Paused,
    /// It is wanted and not there.
    Failed,
}

impl fmt::Display for TargetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetState::Absent => "absent",
            TargetState::Starting => "starting",
            TargetState::Serving => "serving",
            TargetState::Degraded => "degraded",
            TargetState::Paused => "paused",
            TargetState::Failed => "failed",
        })
    }
}

/// What is told of a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetHealth {
    /// Its name.
    pub name: TargetName,
    /// How it stands.
    pub state: TargetState,
    /// Why.
    pub reason: String,
    /// Since when, in RFC 3339.
    pub since: String,
    /// The version that it tells.
    pub version: Option<String>,
    /// How old the last answer of its control socket is, in milliseconds.
    pub age_ms: Option<u64>,
    /// The pid of its process.
    pub pid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_takes_no_more_memory_than_a_machine_can_have() {
        let with = |memory_mib| TargetSpec { memory_mib, ..TargetSpec::example("a") }.judge();
        assert!(with(MOST_MEMORY_MIB).is_ok());
        assert_eq!(with(u64::MAX).unwrap_err().code, Code::InvalidMemory);
    }

    #[test]
    fn an_images_name_leads_nowhere_else() {
        for name in ["a", "a/b:1", "127.0.0.1:5000/a@sha256:00", "[::1]:5000/a", "A_b-c.d/e"] {
            assert!(judge_image(name).is_ok(), "{name}");
        }
        let long = "x".repeat(256);
        for name in
            ["", "/a", "a//b", "../a", "a/../b", "a?b", "a#b", "a b", "-a", "ä", long.as_str()]
        {
            assert_eq!(judge_image(name).unwrap_err().code, Code::InvalidImage, "{name}");
        }
    }
}
