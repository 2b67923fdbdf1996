//! Settings of targets.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HealPolicy, HealthPolicy, VolumePolicy};
use crate::model::cgroup::CgroupParent;
use crate::model::fault::Fault;
use crate::model::image::ImageRequest;
use crate::model::path::CleanPath;
use crate::model::registry::RegistryPolicy;
use crate::model::target::{CoreRequest, TargetKind, TargetName, TargetSpec};
use crate::model::units::{duration, octal};

/// Settings that the owners of targets follow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetPolicy {
    /// Settings of targets, and the defaults for fields that a deploy does not name.
    pub target: TargetSettings,
    /// Health probes.
    pub health: HealthPolicy,
    /// Volumes.
    pub volumes: VolumePolicy,
    /// Recovery.
    pub heal: HealPolicy,
    /// Logins at registries, and the settings of the engine that pulls.
    pub registries: RegistryPolicy,
    /// Folder of downloaded images.
    pub image_folder: PathBuf,
}

/// Targets: `[target]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetSettings {
    /// Default kind of a target: `zbs`, `spdk` or `built-in`.
    pub kind: TargetKind,
    /// Default image, for requests that name none; empty: none.
    pub image: String,
    /// URL of a tar that holds the default image; empty: none.
    pub image_url: String,
    /// SHA-256 of the tar at `image_url`; empty if unknown.
    pub image_sha256: String,
    /// Size limit of a downloaded tar, in MiB.
    pub image_max_mib: u64,
    /// Free space that a download leaves on its disk, in MiB.
    pub image_keep_free_mib: u64,
    /// Limit of targets on this node; at most [`MOST_TARGETS`].
    pub max_targets: usize,
    /// Limit of volumes in one target.
    pub max_volumes: usize,
    /// Folders in which a request may place sockets, in addition to `socket_dir`.
    pub socket_roots: Vec<CleanPath>,
    /// Folders in which the client configuration of a request may lie.
    pub client_conf_roots: Vec<CleanPath>,
    /// Folders in which the image tar of a request may lie.
    pub image_tar_roots: Vec<CleanPath>,
    /// Folders in which the file of a volume may lie.
    pub aio_roots: Vec<CleanPath>,
    /// Patterns of the block devices that a volume may use.
    pub aio_devices: Vec<String>,
    /// Images that a request may name, as patterns of repositories or as digests.
    pub allowed_images: Vec<String>,
    /// Prefixes of the URLs from which a request may have images downloaded.
    pub image_urls: Vec<String>,
    /// Methods of a target that a volume with a raw backing may call.
    pub raw_methods: Vec<String>,
    /// Default cgroup below which the engine makes that of a target's container; empty: the engine's own choice.
    pub cgroup_parent: String,
    /// Cgroup parents that a request may name, in addition to `cgroup_parent`.
    pub cgroup_parents: Vec<CgroupParent>,
    /// Default folder of a target's sockets, for requests that name none.
    pub socket_dir: CleanPath,
    /// Owner of a socket folder that the agent creates, by number.
    pub socket_uid: u32,
    /// Group of a socket folder that the agent creates, by number.
    pub socket_gid: u32,
    /// Mode of a socket folder that the agent creates, in octal.
    #[serde(with = "octal")]
    pub socket_mode: u32,
    /// File name of the control socket in the folder of the sockets.
    pub control_sock: String,
    /// Default path of the configuration file of a target's storage client.
    pub client_conf: CleanPath,
    /// Number of CPUs of a target where a request names none.
    pub core_count: u32,
    /// Hugepages of a target, in MiB; `None` for as many as its volumes need.
    pub memory_mib: Option<u64>,
    /// Capabilities of ZBS's and SPDK's targets; all others are dropped.
    pub capabilities: Vec<String>,
    /// `true` if ZBS's and SPDK's targets get all capabilities and all devices.
    pub privileged: bool,
    /// `true` if the root file systems of targets are read-only.
    pub read_only_root: bool,
    /// Folders in memory that a target may write to under a read-only root.
    pub tmpfs: Vec<String>,
    /// Size limit of each folder in `tmpfs`, in MiB.
    pub tmpfs_mib: u64,
    /// Limit of processes and threads in ZBS's and SPDK's targets.
    pub pids_limit: u32,
    /// Command line of ZBS's target, with the placeholders of [`TargetTemplate::command`].
    pub zbs_command: Vec<String>,
    /// Command line of SPDK's target, with the placeholders of [`TargetTemplate::command`].
    pub spdk_command: Vec<String>,
    /// Command line of the built-in target, with the placeholders of [`TargetTemplate::command`].
    pub built_in_command: Vec<String>,
    /// Extra paths of the host that every target sees; `:ro` at the end makes one read-only.
    pub mounts: Vec<String>,
    /// Devices of the host that a target sees.
    pub devices: Vec<String>,
    /// Environment variables of a target, as `NAME=value`.
    pub env: Vec<String>,
    /// Deadline of one call to the engine.
    #[serde(with = "duration")]
    pub call_timeout: Duration,
    /// Deadline of loading an image.
    #[serde(with = "duration")]
    pub load_timeout: Duration,
    /// Time without data after which the download of an image fails.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// Deadline for a started target to serve.
    #[serde(with = "duration")]
    pub ready_timeout: Duration,
    /// Deadline for a replacement to serve where the old target has guests. When it passes, the old target is started
    /// again.
    #[serde(with = "duration")]
    pub exchange_timeout: Duration,
    /// Time between SIGTERM and SIGKILL for a target with guests. It should stay below one second, because guests that
    /// reconnect to a target that is still exiting hang.
    #[serde(with = "duration")]
    pub stop_grace: Duration,
}

/// Hugepages for each started group of [`VOLUMES_PER_STEP`] volumes, in MiB. SPDK serves about 880 vhost-blk
/// controllers from 512 MiB and refuses the next one with `Input/output error`; a tenth is left for I/O
/// (packaging/doc/facts.md, "Measured under an agent").
pub const MEMORY_STEP_MIB: u64 = 512;
/// Number of volumes for which [`MEMORY_STEP_MIB`] MiB of hugepages suffice.
pub const VOLUMES_PER_STEP: u64 = 800;

/// Upper bound of `target.max_targets`. It exists because each target has a task of its own in the agent.
pub const MOST_TARGETS: usize = 64;

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_string).collect()
}

/// Parses a path that is a literal of this file.
fn path(text: &'static str) -> CleanPath {
    text.parse().unwrap_or_else(|fault| unreachable!("{fault}"))
}

/// Parses a cgroup parent that is a literal of this file.
fn slice(text: &'static str) -> CgroupParent {
    text.parse().unwrap_or_else(|fault| unreachable!("{fault}"))
}

impl Default for TargetSettings {
    fn default() -> TargetSettings {
        let spdk = "/usr/local/bin/vhost -m {cores} -S {socketDir} -r {controlSock}";
        TargetSettings {
            kind: TargetKind::Zbs,
            image: String::new(),
            image_url: String::new(),
            image_sha256: String::new(),
            image_max_mib: 4096,
            image_keep_free_mib: 512,
            max_targets: MOST_TARGETS,
            max_volumes: 4096,
            socket_roots: vec![path("/var/tmp/vhost-sockets"), path("/var/zbsvhost/sockets")],
            client_conf_roots: vec![path("/etc/zbs"), path("/etc/ceph")],
            image_tar_roots: vec![path("/var/lib/zstack"), path("/opt/zbs")],
            aio_roots: Vec::new(),
            aio_devices: Vec::new(),
            // Default image names of ZStack. An operator adds those of the site's registry.
            allowed_images: words("zbs-vhost zbs-vhost-*"),
            image_urls: Vec::new(),
            raw_methods: Vec::new(),
            cgroup_parent: String::new(),
            cgroup_parents: vec![slice("zstone.vhost.slice")],
            socket_dir: path("/var/tmp/vhost-sockets"),
            socket_uid: 0,
            socket_gid: 0,
            socket_mode: 0o755,
            control_sock: "vhost.sock".to_string(),
            client_conf: path("/etc/zbs/client.conf"),
            core_count: 2,
            memory_mib: None,
            capabilities: vec!["SYS_NICE".to_string()],
            privileged: false,
            read_only_root: true,
            tmpfs: words("/var/tmp /tmp /run"),
            tmpfs_mib: 64,
            pids_limit: 16_384,
            zbs_command: words(&format!("{spdk} --iova-mode va -z {{clientConf}}")),
            spdk_command: words(&format!(
                "{spdk} --iova-mode va -s {{memoryMib}} --huge-dir {{hugeDir}}"
            )),
            built_in_command: words(
                "/vhost-agent target -m {cores} -S {socketDir} -r {controlSock}",
            ),
            mounts: Vec::new(),
            devices: Vec::new(),
            env: Vec::new(),
            call_timeout: Duration::from_secs(30),
            load_timeout: Duration::from_secs(900),
            stall_timeout: Duration::from_secs(30),
            ready_timeout: Duration::from_secs(20),
            exchange_timeout: Duration::from_secs(3),
            stop_grace: Duration::from_millis(900),
        }
    }
}

/// Parts of a container that depend on the kind of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetTemplate<'a> {
    /// Command line. `{cores}`, `{socketDir}`, `{controlSock}`, `{clientConf}`, `{hugeDir}` and `{memoryMib}` are
    /// filled in. A word whose placeholder has no value is dropped together with the flag before it.
    pub command: &'a [String],
    /// Capabilities; all others are dropped.
    pub capabilities: &'a [String],
    /// `true` if the container gets all capabilities and all devices.
    pub privileged: bool,
}

impl TargetSettings {
    /// Returns the container template for targets of `kind`.
    pub fn template(&self, kind: TargetKind) -> TargetTemplate<'_> {
        let with = |command| TargetTemplate {
            command,
            capabilities: &self.capabilities,
            privileged: self.privileged,
        };
        match kind {
            TargetKind::Zbs => with(&self.zbs_command),
            TargetKind::Spdk => with(&self.spdk_command),
            // The built-in target needs no capability.
            TargetKind::BuiltIn => TargetTemplate {
                command: &self.built_in_command,
                capabilities: &[],
                privileged: false,
            },
        }
    }

    /// Number of 2 MiB pages that a target with `spec` takes when it starts; 0 if its command names no memory or has
    /// `--no-huge`.
    pub fn pages(&self, spec: &TargetSpec) -> u64 {
        let takes = self.says_memory(spec.kind) && self.is_huge(spec.kind);
        if takes { spec.memory_mib.div_ceil(2) } else { 0 }
    }

    /// `true` unless the command of `kind` has `--no-huge`.
    pub fn is_huge(&self, kind: TargetKind) -> bool {
        self.template(kind).command.iter().all(|word| word != "--no-huge")
    }

    /// `true` if the command of `kind` has the placeholder `{memoryMib}`.
    pub fn says_memory(&self, kind: TargetKind) -> bool {
        self.template(kind).command.iter().any(|word| word.contains("{memoryMib}"))
    }

    /// Extra paths of the host that every target sees: (path, read-only).
    pub fn binds(&self) -> impl Iterator<Item = (String, bool)> + '_ {
        self.mounts.iter().map(|text| match text.strip_suffix(":ro") {
            Some(path) => (path.to_string(), true),
            None => (text.clone(), false),
        })
    }

    /// Default image; `None` if none is set.
    pub fn image(&self) -> Option<&str> {
        Some(self.image.as_str()).filter(|image| !image.is_empty())
    }

    /// Builds the spec of the target `name` from the settings alone. The caller validates it, after adding the fields
    /// of a request if there is one.
    ///
    /// # Errors
    /// A control socket whose name makes no valid path.
    pub fn spec(&self, name: TargetName, kind: TargetKind) -> Result<TargetSpec, Fault> {
        let usual = match kind {
            TargetKind::BuiltIn => ImageRequest::default(),
            TargetKind::Zbs | TargetKind::Spdk => ImageRequest {
                image: self.image().map(str::to_string),
                // Validated when the settings were loaded.
                url: self.image_url.parse().ok(),
                sha256: self.image_sha256.parse().ok(),
            },
        };
        Ok(TargetSpec {
            name,
            kind,
            image: usual.image,
            image_tar: None,
            image_url: usual.url,
            image_sha256: usual.sha256,
            cores: CoreRequest::Count(self.core_count),
            socket_dir: self.socket_dir.clone(),
            control_sock: self.control_in(&self.socket_dir)?,
            client_conf: Some(self.client_conf.clone()),
            memory_mib: self.memory_mib.unwrap_or(MEMORY_STEP_MIB),
            memory_by_volumes: self.memory_mib.is_none(),
            // Validated when the settings were loaded; an empty text is none.
            cgroup_parent: self.cgroup_parent.parse().ok(),
        })
    }

    /// Path of the control socket in `socket_dir`.
    ///
    /// # Errors
    /// An invalid path.
    pub fn control_in(&self, socket_dir: &CleanPath) -> Result<CleanPath, Fault> {
        socket_dir.join(&self.control_sock).parse()
    }
}

#[cfg(test)]
impl TargetSettings {
    /// Settings for tests.
    pub fn example() -> TargetSettings {
        let command = |text: &str| text.split(' ').map(str::to_string).collect();
        TargetSettings {
            image_max_mib: 1,
            image_keep_free_mib: 0,
            socket_dir: path("/sockets"),
            socket_roots: vec![path("/s"), path("/other")],
            allowed_images: vec!["*".into()],
            core_count: 1,
            memory_mib: Some(0),
            zbs_command: command(
                "/vhost -m {cores} -S {socketDir} -r {controlSock} -z {clientConf}",
            ),
            spdk_command: command("vhost -m {cores} -s {memoryMib} --huge-dir {hugeDir} --last"),
            built_in_command: command("/vhost-agent target -m {cores} -r {controlSock}"),
            mounts: vec!["/opt:ro".into()],
            env: vec!["A=b".into()],
            call_timeout: Duration::from_secs(10),
            load_timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(5),
            ..TargetSettings::default()
        }
    }
}

#[cfg(test)]
impl TargetPolicy {
    /// A policy for tests.
    pub fn example() -> TargetPolicy {
        TargetPolicy { target: TargetSettings::example(), ..TargetPolicy::default() }
    }
}
