//! Targets: spec, observation and status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bounds::Links;
use super::cgroup::CgroupParent;
use super::code::Code;
use super::container::{ContainerSeen, Restarts, SPEC_LABEL};
use super::cpu::{CoreList, Cpu, CpuUse};
use super::fault::Fault;
use super::image::{ImageSha256, ImageUrl};
pub use super::names::TargetName;
use super::path::{CleanPath, validate_socket};
use super::pools::PageLimit;
pub use super::target_health::{TargetHealth, TargetState};
use super::units::NumaNode;
use super::volume::{VolumeName, VolumeSpecs};

/// MiB of hugepages that a target may take: more than any machine has.
const MOST_MEMORY_MIB: u64 = 1 << 26;

/// Program of a target. It decides the command line and the needs of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// ZBS's vhost, an SPDK application.
    Zbs,
    /// SPDK's own vhost.
    Spdk,
    /// Vhost target of the agent itself, in an image that the agent makes.
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
    /// Path of a tar that holds the image, loaded if the engine lacks the image.
    pub image_tar: Option<CleanPath>,
    /// URL of a tar that holds the image.
    pub image_url: Option<ImageUrl>,
    /// SHA-256 of the tar at `image_url`.
    pub image_sha256: Option<ImageSha256>,
    pub cores: CoreRequest,
    pub socket_dir: CleanPath,
    pub control_sock: CleanPath,
    /// Configuration file of the target's storage client, mounted into the container if the file exists.
    pub client_conf: Option<CleanPath>,
    /// Hugepages, in MiB.
    pub memory_mib: u64,
    /// Set if the request named no size. `memory_mib` then follows from the volumes each time the container is made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory_by_volumes: bool,
    /// Cgroup below which the engine makes that of the container; `None` for the engine's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<CgroupParent>,
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

    /// Copies the spec, without `image_tar` if `has_image` is set: the tar is not opened then.
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
            cgroup_parent: None,
        }
    }

    /// Spec of a running target that is left as it is, with the origins of its image and its memory. They are those of
    /// `request`; the origin of another size than the running one stays that of `before`, the spec desired until now.
    pub fn with_origins(self, request: &TargetSpec, before: Option<&TargetSpec>) -> TargetSpec {
        let is_other_size = request.memory_mib != self.memory_mib;
        let was_by_volumes = before.is_some_and(|before| before.memory_by_volumes);
        TargetSpec {
            image_tar: request.image_tar.clone(),
            image_url: request.image_url.clone(),
            image_sha256: request.image_sha256.clone(),
            memory_by_volumes: request.memory_by_volumes || is_other_size && was_by_volumes,
            ..self
        }
    }

    /// Fields in which the spec differs from `running`.
    pub fn drift(&self, running: &TargetSpec) -> Vec<Drift> {
        let fields = |spec: &TargetSpec| match serde_json::to_value(spec) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (wanted, is) = (fields(self), fields(running));
        // Fields that only tell where the image and the memory's size come from, and make no difference to a running
        // target.
        const ORIGINS: [&str; 4] = ["imageTar", "imageUrl", "imageSha256", "memoryByVolumes"];
        // A field without a value can be missing on either side.
        let names: BTreeSet<&String> = wanted.keys().chain(is.keys()).collect();
        let value = |of: &serde_json::Map<String, serde_json::Value>, field: &String| {
            of.get(field).cloned().unwrap_or_default()
        };
        let differs = |field: &String| {
            let (is, wanted) = (value(&is, field), value(&wanted, field));
            (is != wanted).then(|| Drift { field: field.clone(), is, wanted })
        };
        let compared = names.into_iter().filter(|field| !ORIGINS.contains(&field.as_str()));
        compared.filter_map(differs).collect()
    }
}

/// Checks that `name` has the form of the engine's image references, and no more (github.com/distribution/reference).
/// It becomes part of the path of a request to the engine.
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
    /// `true` if the target is replaced even while virtual machines are connected.
    pub force: bool,
    /// `true` if an exited target gets a new container instead of a restart of the old one.
    pub anew: bool,
    /// `true` for the recovery of a target that ran before. Doubts that would refuse a new target are only reported
    /// then.
    pub recovers: bool,
}

/// Observation that the target planner works on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetSeen {
    /// Container with the target's name.
    pub container: Option<ContainerSeen>,
    /// Containers with the names of [`TargetName::beside`], which a replacement uses; empty if they were not looked up.
    pub beside: Vec<(String, ContainerSeen)>,
    /// Version that the control socket reported; `None` if the socket did not answer.
    pub version: Option<String>,
    /// Reason why the control socket did not answer; empty if it did.
    pub silence: String,
    /// Number of disks that virtual machines are connected to; `None` if unknown.
    pub sessions: Option<usize>,
    /// Number of volumes whose guest was connected before the target's last exit and has not reconnected, from the
    /// agent's records.
    pub disconnected: usize,
    /// Set if the engine has the target's image.
    pub has_image: bool,
    /// The engine's id of the target's image.
    pub image_id: String,
    /// Name of the built-in target's image.
    pub built_in_image: String,
    /// Set if the file `TargetSpec::client_conf` exists.
    pub has_client_conf: bool,
    /// Mount point of a hugetlbfs of 2 MiB pages.
    pub huge_dir: Option<String>,
    /// Online CPUs.
    pub cpus: Vec<Cpu>,
    /// Users of the CPUs other than the target.
    pub cpu_use: CpuUse,
    /// Spec that was desired before, from the agent's records. It was authorized when it was new.
    pub known: Option<TargetSpec>,
    /// Destinations of the paths that a request named, links followed.
    pub links: Links,
    /// Reason why the target's sockets cannot be made in their place; `None` if they can.
    pub socket_obstacle: Option<String>,
    /// Way in which another user could swap the target's sockets; `None` if there is none.
    pub socket_doubt: Option<String>,
    /// Free 2 MiB pages by NUMA node, those of the process that the target replaces included. Empty if the target takes
    /// none, or the machine does not report them.
    pub free_pages: BTreeMap<NumaNode, u64>,
    /// Pages in `free_pages` that are kept for guests, by NUMA node; empty for a target that is recovered.
    pub promised_pages: BTreeMap<NumaNode, u64>,
    /// Number of 2 MiB pages that dead processes left on any NUMA node, and that return before the target takes its
    /// own. Counted only if no node has enough free pages.
    pub returning_pages: u64,
    /// Limit of the 2 MiB pages of containers, the pages of the process that the target replaces not counted as used;
    /// `None` if the target takes none, or nothing limits them.
    pub page_limit: Option<PageLimit>,
}

impl TargetName {
    /// Names of the new and the old container during a replacement.
    pub fn beside(&self) -> [String; 2] {
        [".next", ".previous"].map(|end| format!("{self}{end}"))
    }
}

impl ContainerSeen {
    /// `true` if the agent made the container for the target `name`.
    pub fn is_of(&self, name: &TargetName) -> bool {
        self.made_for().is_some_and(|spec| spec.name == *name)
    }

    /// Spec that the container was made for; `None` if the agent did not make it.
    pub fn made_for(&self) -> Option<TargetSpec> {
        serde_json::from_str(self.labels.get(SPEC_LABEL)?).ok()
    }
}

impl TargetSeen {
    /// Spec that the target's container was made for; `None` if the agent did not make it.
    pub fn made_for(&self) -> Option<TargetSpec> {
        self.container.as_ref().and_then(ContainerSeen::made_for)
    }

    /// Free 2 MiB pages on these NUMA nodes, without those that are kept for guests.
    pub fn free_pages_on(&self, nodes: &[NumaNode]) -> u64 {
        let pages = |of: &BTreeMap<NumaNode, u64>, node| of.get(node).copied().unwrap_or(0);
        let free = nodes.iter().map(|node| {
            pages(&self.free_pages, node).saturating_sub(pages(&self.promised_pages, node))
        });
        free.fold(0, u64::saturating_add)
    }

    /// `true` if the target's container runs and its control socket answers.
    pub fn serves(&self) -> bool {
        self.version.is_some() && self.container.as_ref().is_some_and(|seen| seen.running)
    }
}

/// Trial of a replacement. The old target is kept until the new one serves everything that the old one served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Spec of the old target; `None` if it was not desired.
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
    /// Desired volumes by target. The target itself may not be desired, because something else made its container.
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
    fn drift_is_found_in_a_field_that_only_one_side_has() {
        let plain = TargetSpec::example("a");
        let parent: CgroupParent = "zstone.vhost.slice".parse().unwrap();
        let below = TargetSpec { cgroup_parent: Some(parent), ..plain.clone() };
        let drift = |is, wanted| Drift { field: "cgroupParent".into(), is, wanted };
        let (none, some) = (serde_json::Value::Null, serde_json::json!("zstone.vhost.slice"));
        assert_eq!(below.drift(&plain), [drift(none.clone(), some.clone())]);
        assert_eq!(plain.drift(&below), [drift(some, none)]);
        assert_eq!(below.drift(&below), []);
        let text = serde_json::to_string(&plain).unwrap();
        assert!(!text.contains("cgroupParent"), "labels are as those of older agents: {text}");
    }

    #[test]
    fn size_that_is_not_applied_does_not_pin_the_one_that_runs() {
        let spec = |memory_mib, memory_by_volumes| TargetSpec {
            memory_mib,
            memory_by_volumes,
            ..TargetSpec::example("a")
        };
        let (runs, by_volumes, set) = (spec(512, false), spec(512, true), spec(512, false));
        for (request, before, kept) in [
            (spec(1024, false), Some(&by_volumes), true),
            (spec(512, false), Some(&by_volumes), false),
            (spec(1024, false), Some(&set), false),
            (spec(1024, false), None, false),
            (spec(512, true), Some(&set), true),
        ] {
            let left = runs.clone().with_origins(&request, before);
            assert_eq!(left, spec(512, kept), "{request:?} {before:?}");
        }
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
