//! Targets.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HealPolicy, HealthPolicy, VolumePolicy};
use crate::model::fault::Fault;
use crate::model::image::ImageWish;
use crate::model::path::CleanPath;
use crate::model::registry::RegistryPolicy;
use crate::model::target::{CoreWish, TargetKind, TargetName, TargetSpec};
use crate::model::units::{duration, octal};

/// Everything that the owners of targets follow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetPolicy {
    /// How targets are made.
    pub target: TargetSettings,
    /// How their health is known.
    pub health: HealthPolicy,
    /// How their volumes are made.
    pub volumes: VolumePolicy,
    /// How they are brought back.
    pub heal: HealPolicy,
    /// Where their images are pulled from.
    pub registries: RegistryPolicy,
    /// The folder of downloaded images.
    pub image_folder: PathBuf,
}

/// Targets: `[target]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetSettings {
    /// What a target runs where a call does not say: `zbs`, `spdk` or `built-in`.
    pub kind: TargetKind,
    /// Its image where a call names none; empty for none.
    pub image: String,
    /// The address of a tar that holds that image; empty for none.
    pub image_url: String,
    /// The SHA-256 of what is there; empty when it is not known.
    pub image_sha256: String,
    /// The largest tar that is downloaded, in MiB.
    pub image_max_mib: u64,
    /// MiB that a download leaves free on its disk.
    pub image_keep_free_mib: u64,
    /// Targets of this node; [`MOST_TARGETS`] at the most.
    pub max_targets: usize,
    /// Volumes of one target.
    pub max_volumes: usize,
    /// Folders in which callers may have sockets, beside `socket_dir`.
    pub socket_roots: Vec<CleanPath>,
    /// Folders in which a client's configuration may lie that a caller names.
    pub client_conf_roots: Vec<CleanPath>,
    /// Folders in which an image's tar may lie.
    pub image_tar_roots: Vec<CleanPath>,
    /// Folders in which the file of a volume may lie.
    pub aio_roots: Vec<CleanPath>,
    /// Block devices that may be a volume's, by pattern.
    pub aio_devices: Vec<String>,
    /// Images that callers may name, by pattern or digest.
    pub allowed_images: Vec<String>,
    /// Beginnings of the addresses that callers may have images downloaded from.
    pub image_urls: Vec<String>,
    /// Methods of a target that a raw backing may call.
    pub raw_methods: Vec<String>,
    /// The folder of its sockets.
    pub socket_dir: CleanPath,
    /// Owner of a socket folder that is made, by number.
    pub socket_uid: u32,
    /// Its group, by number.
    pub socket_gid: u32,
    /// Its mode, in octal.
    #[serde(with = "octal")]
    pub socket_mode: u32,
    /// Its control socket's name in that folder.
    pub control_sock: String,
    /// Its client's configuration.
    pub client_conf: CleanPath,
    /// CPUs that it gets where a call names none.
    pub core_count: u32,
    /// MiB of hugepages that it takes; without it, as many as its volumes need.
    pub memory_mib: Option<u64>,
    /// Capabilities of ZBS's and SPDK's; all others are dropped.
    pub capabilities: Vec<String>,
    /// Whether they get all of them, and all devices.
    pub privileged: bool,
    /// Read-only root file systems of targets.
    pub read_only_root: bool,
    /// Folders in memory that it may write to then.
    pub tmpfs: Vec<String>,
    /// MiB that each of these holds at the most.
    pub tmpfs_mib: u64,
    /// Processes and threads that ZBS's and SPDK's have at the most.
    pub pids_limit: u32,
    /// ZBS's command.
    pub zbs_command: Vec<String>,
    /// SPDK's command.
    pub spdk_command: Vec<String>,
    /// The built-in one's command.
    pub built_in_command: Vec<String>,
    /// More paths of the host that every target sees; `:ro` at the end makes one read-only.
    pub mounts: Vec<String>,
    /// Devices of the host.
    pub devices: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// How long the engine may take for one call.
    #[serde(with = "duration")]
    pub call_timeout: Duration,
    /// How long loading an image may take.
    #[serde(with = "duration")]
    pub load_timeout: Duration,
    /// How long a download may stand still.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// How long a started target may take until it serves.
    #[serde(with = "duration")]
    pub ready_timeout: Duration,
    /// How long a new one whose predecessor has guests may take until it serves; then the old one comes back.
    #[serde(with = "duration")]
    pub exchange_timeout: Duration,
    /// How long one with guests may take to end by itself; under a second, for a slow end strands them.
    #[serde(with = "duration")]
    pub stop_grace: Duration,
}

/// MiB of hugepages for each [`VOLUMES_PER_STEP`] volumes that are begun. SPDK serves about 880 vhost-blk controllers from
/// 512 MiB and refuses the next with `Input/output error`; a tenth is left for I/O (reference/spdk-rpc.md).
pub const MEMORY_STEP_MIB: u64 = 512;
/// See [`MEMORY_STEP_MIB`].
pub const VOLUMES_PER_STEP: u64 = 800;

/// The ceiling of `target.max_targets`: each has a task of its own.
pub const MOST_TARGETS: usize = 64;

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_string).collect()
}

/// A path that is written here.
fn path(text: &'static str) -> CleanPath {
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
            // As ZStack names them by default; a registry of the site is named by its operator.
            allowed_images: words("zbs-vhost zbs-vhost-*"),
            image_urls: Vec::new(),
            raw_methods: Vec::new(),
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

/// How the container of one kind of target is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetTemplate<'a> {
    /// Its command; `{cores}`, `{socketDir}`, `{controlSock}`, `{clientConf}`, `{hugeDir}` and
    /// `{memoryMib}` are filled in, and a word that cannot be goes with the flag before it.
    pub command: &'a [String],
    /// Its capabilities; all others are dropped.
    pub capabilities: &'a [String],
    /// All of them, and all devices.
    pub privileged: bool,
}

impl TargetSettings {
    /// The template of a kind.
    pub fn template(&self, kind: TargetKind) -> TargetTemplate<'_> {
        let with = |command| TargetTemplate {
            command,
            capabilities: &self.capabilities,
            privileged: self.privileged,
        };
        match kind {
            TargetKind::Zbs => with(&self.zbs_command),
            TargetKind::Spdk => with(&self.spdk_command),
            // It does without any.
            TargetKind::BuiltIn => TargetTemplate {
                command: &self.built_in_command,
                capabilities: &[],
                privileged: false,
            },
        }
    }

    /// Pages of 2 MiB that a target takes when it starts, where its command says how many.
    pub fn pages(&self, spec: &TargetSpec) -> u64 {
        let is_huge = self.template(spec.kind).command.iter().all(|word| word != "--no-huge");
        if self.says_memory(spec.kind) && is_huge { spec.memory_mib.div_ceil(2) } else { 0 }
    }

    /// Whether the command of a kind says how much memory it takes.
    pub fn says_memory(&self, kind: TargetKind) -> bool {
        self.template(kind).command.iter().any(|word| word.contains("{memoryMib}"))
    }

    /// More paths of the host that every target sees: (path, read-only).
    pub fn binds(&self) -> impl Iterator<Item = (String, bool)> + '_ {
        self.mounts.iter().map(|text| match text.strip_suffix(":ro") {
            Some(path) => (path.to_string(), true),
            None => (text.clone(), false),
        })
    }

    /// The image, where one is set.
    pub fn image(&self) -> Option<&str> {
        Some(self.image.as_str()).filter(|image| !image.is_empty())
    }

    /// The target of that name as the settings have it; judged by itself or with what a call says.
    ///
    /// # Errors
    /// When the name of the control socket makes no path.
    pub fn spec(&self, name: TargetName, kind: TargetKind) -> Result<TargetSpec, Fault> {
        let wish = match kind {
            TargetKind::BuiltIn => ImageWish::default(),
            TargetKind::Zbs | TargetKind::Spdk => ImageWish {
                image: self.image().map(str::to_string),
                // Judged when they were loaded.
                url: self.image_url.parse().ok(),
                sha256: self.image_sha256.parse().ok(),
            },
        };
        Ok(TargetSpec {
            name,
            kind,
            image: wish.image,
            image_tar: None,
            image_url: wish.url,
            image_sha256: wish.sha256,
            cores: CoreWish::Count(self.core_count),
            socket_dir: self.socket_dir.clone(),
            control_sock: self.control_in(&self.socket_dir)?,
            client_conf: Some(self.client_conf.clone()),
            memory_mib: self.memory_mib.unwrap_or(MEMORY_STEP_MIB),
            memory_by_volumes: self.memory_mib.is_none(),
        })
    }

    /// The control socket in `socket_dir`.
    ///
    /// # Errors
    /// When that is no path.
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
