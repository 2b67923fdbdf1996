//! Targets: spec, observation and status.

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
use super::path::{CleanPath, validate_socket};
use super::units::NumaNode;
use super::volume::{VolumeName, VolumeSpecs};

/// MiB of hugepages that a target may take: more than any machine has.
const MOST_MEMORY_MIB: u64 = 1 << 26;

/// Program of a target, which decides how it is called and what it needs.
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

/// CPUs of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CoreRequest {
    These(CoreList),
    /// Number of CPUs, chosen by topology.
    Count(u32),
}

/// Desired state of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetSpec {
    pub name: TargetName,
    pub kind: TargetKind,
    /// Image; `None` for the built-in one.
    pub image: Option<String>,
    /// Tar that holds the image, for when the engine lacks it.
    pub image_tar: Option<CleanPath>,
    /// Address of such a tar.
    pub image_url: Option<ImageUrl>,
    /// Digest of the tar at that address.
    pub image_sha256: Option<ImageSha256>,
    pub cores: CoreRequest,
    pub socket_dir: CleanPath,
    pub control_sock: CleanPath,
    /// Configuration of its client, mounted if present.
    pub client_conf: Option<CleanPath>,
    /// Hugepages, in MiB.
    pub memory_mib: u64,
    /// Set if no size was given, so that it follows from the volumes each time the target is made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory_by_volumes: bool,
}

impl TargetSpec {
    /// Checks the spec as a whole.
    ///
    /// # Errors
    /// A control socket whose path no socket can have, an invalid image name, and more memory than any machine has.
    pub fn validate(self) -> Result<TargetSpec, Fault> {
        validate_socket(&self.control_sock)?;
        self.image.as_deref().map_or(Ok(()), validate_image)?;
        if self.memory_mib > MOST_MEMORY_MIB {
            let text =
                format!("{} MiB of hugepages are more than any machine has", self.memory_mib);
            return Err(Fault::new(Code::InvalidMemory, text));
        }
        Ok(self)
    }

    /// Copy without the tar if the image is present, so that the tar is not opened.
    pub fn as_opened(&self, has_image: bool) -> TargetSpec {
        TargetSpec { image_tar: self.image_tar.clone().filter(|_| !has_image), ..self.clone() }
    }

    /// Example for tests.
    #[cfg(test)]
    pub(crate) fn example(name: &str) -> TargetSpec {
        TargetSpec {
            name: TargetName(name.to_string()),
            kind: TargetKind::BuiltIn,
            image: None,
            image_tar: None,
            image_url: None,
            image_sha256: None,
            cores: CoreRequest::Count(1),
            socket_dir: CleanPath("/sockets".to_string()),
            control_sock: CleanPath("/sockets/vhost.sock".to_string()),
            client_conf: None,
            memory_mib: 0,
            memory_by_volumes: false,
        }
    }

    /// Differences from the running target, field by field.
    pub fn drift(&self, running: &TargetSpec) -> Vec<Drift> {
        let fields = |spec: &TargetSpec| match serde_json::to_value(spec) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (wanted, is) = (fields(self), fields(running));
        // The origin of the image and of the memory's size is nothing that runs.
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

/// Checks that an image's name has the form of the engine's references, and no more
/// (github.com/distribution/reference), for it becomes part of a request's path.
///
/// # Errors
/// An invalid name.
pub fn validate_image(name: &str) -> Result<(), Fault> {
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

/// Field in which the running target differs from its spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    pub field: String,
    /// Value of the running target.
    pub is: serde_json::Value,
    /// Desired value.
    pub wanted: serde_json::Value,
}

/// Options of a target's reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EnsureOptions {
    /// `true` if a target that differs from its spec, or does not serve, is replaced.
    pub recreate: bool,
    /// `true` if that is done even with virtual machines connected.
    pub force: bool,
    /// `true` if an exited target is made anew instead of started again as it is.
    pub anew: bool,
    /// `true` for the recovery of a target that ran before: what would refuse a new one is only reported then.
    pub recovers: bool,
}

/// Observation that the target planner works on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetSeen {
    /// Container of the target's name.
    pub container: Option<ContainerSeen>,
    /// Containers with the names that are used during a replacement ([`TargetName::beside`]); only if they were looked
    /// up.
    pub beside: Vec<(String, ContainerSeen)>,
    /// Version that its control socket reported, if it answered.
    pub version: Option<String>,
    /// Reason for no answer, otherwise.
    pub silence: String,
    /// Disks that virtual machines are connected to; `None` if unknown.
    pub sessions: Option<usize>,
    /// Volumes whose guest was connected before the process exited last, and is not back; from what the agent
    /// remembers.
    pub disconnected: usize,
    /// Set if the engine has its image.
    pub has_image: bool,
    /// Id of that image.
    pub image_id: String,
    /// Name of the built-in target's image.
    pub built_in_image: String,
    /// Set if its client's configuration is present.
    pub has_client_conf: bool,
    /// Mount point of a hugetlbfs of 2 MiB pages.
    pub huge_dir: Option<String>,
    /// Online CPUs.
    pub cpus: Vec<Cpu>,
    /// Other users of the CPUs.
    pub cpu_use: CpuUse,
    /// Spec as it was desired before, from what the agent remembers; validated when it was new.
    pub known: Option<TargetSpec>,
    /// Destinations of the paths that are not the operator's, links followed.
    pub links: Links,
    /// Obstacle to its sockets.
    pub socket_obstacle: Option<String>,
    /// Reason why somebody else could swap the sockets.
    pub socket_doubt: Option<String>,
    /// Free pages of 2 MiB by node, with those of the process that it replaces; only if it takes some and the machine
    /// reports them.
    pub free_pages: BTreeMap<NumaNode, u64>,
    /// Pages of dead processes, on whatever node, which return before the target takes its own.
    pub returning_pages: u64,
}

impl TargetName {
    /// Names of the new and the old container during a replacement.
    pub fn beside(&self) -> [String; 2] {
        [".next", ".previous"].map(|end| format!("{self}{end}"))
    }
}

impl ContainerSeen {
    /// `true` if the agent made it for the target of that name.
    pub fn is_of(&self, name: &TargetName) -> bool {
        self.made_for().is_some_and(|spec| spec.name == *name)
    }

    /// Spec that it was made for, if the agent made it.
    pub fn made_for(&self) -> Option<TargetSpec> {
        serde_json::from_str(self.labels.get(SPEC_LABEL)?).ok()
    }
}

impl TargetSeen {
    /// Spec that its container was made for, if the agent made it.
    pub fn made_for(&self) -> Option<TargetSpec> {
        self.container.as_ref().and_then(ContainerSeen::made_for)
    }

    /// `true` if its process lives and its control socket answers.
    pub fn serves(&self) -> bool {
        self.version.is_some() && self.container.as_ref().is_some_and(|seen| seen.running)
    }
}

/// Trial of a replacement: the old target is kept until all that it served is served again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Spec of the old target; `None` if nobody desired it.
    pub old: Option<TargetSpec>,
    /// The engine's id of the old container.
    pub id: String,
    /// Volumes that the old target served.
    pub served: Vec<VolumeName>,
    /// The engine's restart policy of the old container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,
}

/// Desired targets of this node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// Specs as last desired.
    pub targets: BTreeMap<TargetName, TargetSpec>,
    /// Trials of replacements.
    pub trials: BTreeMap<TargetName, Arc<Trial>>,
    /// Desired volumes by target; also of a target that is not desired itself, for its container may be somebody
    /// else's.
    pub volumes: BTreeMap<TargetName, Arc<VolumeSpecs>>,
}

impl Desired {
    /// Desired volumes of a target.
    pub fn volumes_of(&self, target: &TargetName) -> Arc<VolumeSpecs> {
        self.volumes.get(target).cloned().unwrap_or_default()
    }
}

/// Work of an owner on its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerWork {
    /// Make the target run.
    BringUp,
    /// Remove the target.
    TakeAway,
}

/// Published state of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetState {
    /// Neither desired nor present.
    Absent,
    Starting,
    /// Alive and answering.
    Serving,
    /// Alive, but not answering as it should.
    Degraded,
    /// Frozen cgroup: somebody paused the container.
    Paused,
    /// Desired but not present.
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

/// Published status of a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetHealth {
    pub name: TargetName,
    pub state: TargetState,
    /// Reason for the state.
    pub reason: String,
    /// Start of the state, in RFC 3339.
    pub since: String,
    /// Version that the target reports.
    pub version: Option<String>,
    /// Age of the last answer of its control socket, in milliseconds.
    pub age_ms: Option<u64>,
    pub pid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_takes_no_more_memory_than_a_machine_can_have() {
        let with = |memory_mib| TargetSpec { memory_mib, ..TargetSpec::example("a") }.validate();
        assert!(with(MOST_MEMORY_MIB).is_ok());
        assert_eq!(with(u64::MAX).unwrap_err().code, Code::InvalidMemory);
    }

    #[test]
    fn an_images_name_leads_nowhere_else() {
        for name in ["a", "a/b:1", "127.0.0.1:5000/a@sha256:00", "[::1]:5000/a", "A_b-c.d/e"] {
            assert!(validate_image(name).is_ok(), "{name}");
        }
        let long = "x".repeat(256);
        for name in
            ["", "/a", "a//b", "../a", "a/../b", "a?b", "a#b", "a b", "-a", "ä", long.as_str()]
        {
            assert_eq!(validate_image(name).unwrap_err().code, Code::InvalidImage, "{name}");
        }
    }
}
