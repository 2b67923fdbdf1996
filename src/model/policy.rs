//! The operator's choices that the planners follow, as they come out of the settings.

use std::time::Duration;

use super::engine::{ApiVersion, PackageSets};
use super::fault::Fault;
use super::image::{ImagePolicy, ImageSha256, ImageUrl};
use super::path::CleanPath;
use super::target::{TargetKind, TargetName};

/// How pools may be grown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPolicy {
    /// `MemAvailable` that must remain, at least this many KiB …
    pub floor_kib: u64,
    /// … and at least this share of `MemTotal`, in percent.
    pub floor_percent: u64,
    /// Whether the page cache may be dropped as the last resort (hurts every tenant of the node).
    pub drop_page_cache: bool,
    /// How long one write to the kernel may take before the growth stops.
    pub write_timeout: Duration,
}

/// How the hugetlbfs mount is made when there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPolicy {
    /// Where 2 MiB pages are mounted.
    pub path_2m: String,
    /// Where 1 GiB pages are mounted.
    pub path_1g: String,
    /// Owner of the mount's root.
    pub uid: u32,
    /// Group of the mount's root.
    pub gid: u32,
    /// Mode of the mount's root.
    pub mode: u32,
}

/// What is wanted of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnginePolicy {
    /// Whether prepare looks after the engine at all.
    pub manage: bool,
    /// Whether it may be installed.
    pub install: bool,
    /// Path of the API's Unix socket.
    pub socket: String,
    /// systemd's name of its service.
    pub unit: String,
    /// Name of the daemon's executable.
    pub binary: String,
    /// Path of its configuration.
    pub daemon_json: String,
    /// Path of the file in which the daemon writes its pid.
    pub pid_file: String,
    /// Whether a running engine that may touch iptables is a failure instead of a finding.
    pub require_iptables_false: bool,
    /// Oldest API that will do.
    pub min_api: ApiVersion,
    /// How long the API may take to answer when it should be there.
    pub ping_timeout: Duration,
    /// How old a sign of life of a process that still lives may be; zero asks every time.
    pub ping_max_age: Duration,
    /// How long a started engine may take until its API answers.
    pub ready_timeout: Duration,
    /// How long the package manager may take.
    pub install_timeout: Duration,
    /// How long the package manager waits for its own lock.
    pub lock_timeout: Duration,
    /// Which packages, by package manager, in order of preference.
    pub packages: PackageSets,
    /// Extra arguments for the package manager.
    pub install_args: Vec<String>,
}

/// How the container of one kind of target is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTemplate {
    /// Its command; `{cores}`, `{socketDir}`, `{controlSock}`, `{clientConf}`, `{hugeDir}` and
    /// `{memoryMib}` are filled in, and a word that cannot be goes with the flag before it.
    pub command: Vec<String>,
    /// Its capabilities; all others are dropped.
    pub capabilities: Vec<String>,
    /// All of them, and all devices.
    pub privileged: bool,
}

/// How targets are brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPolicy {
    /// ZBS's vhost.
    pub zbs: TargetTemplate,
    /// SPDK's own.
    pub spdk: TargetTemplate,
    /// The agent's own.
    pub built_in: TargetTemplate,
    /// More paths of the host that every target sees: (path, read-only).
    pub binds: Vec<(String, bool)>,
    /// Devices of the host.
    pub devices: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Owner of a socket folder that is made.
    pub socket_uid: u32,
    /// Its group.
    pub socket_gid: u32,
    /// Its mode.
    pub socket_mode: u32,
    /// How long the engine may take for one call.
    pub call_timeout: Duration,
    /// How long loading an image may take.
    pub load_timeout: Duration,
    /// How long a started target may take until it serves.
    pub ready_timeout: Duration,
    /// How long one may take to end by itself; under a second, for a slow end strands guests.
    pub stop_grace: Duration,
    /// How long an answer of a control socket may take.
    pub answer_timeout: Duration,
    /// How old an answer may be that is still told as health; zero asks every time.
    pub max_age: Duration,
    /// Between two probes of a target.
    pub probe_interval: Duration,
    /// How images are brought in.
    pub images: ImagePolicy,
    /// How volumes are brought about.
    pub volumes: VolumePolicy,
    /// How targets are brought back.
    pub heal: HealPolicy,
}

/// How volumes are brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePolicy {
    /// Owner of a volume's socket.
    pub socket_uid: u32,
    /// Its group.
    pub socket_gid: u32,
    /// Its mode.
    pub socket_mode: u32,
    /// How long a target may take for one call about a volume.
    pub call_timeout: Duration,
    /// Between two looks at all volumes of a target: nobody tells when a VM connects.
    pub look_interval: Duration,
    /// How long the session of a VM may take to start until its volume is stuck.
    pub stuck_after: Duration,
    /// Free 2 MiB pages that stay when the last volume goes.
    pub keep_pages: u64,
}

/// How targets are brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealPolicy {
    /// Whether they are at all.
    pub enabled: bool,
    /// Between the first two attempts; doubled with each failure …
    pub first: Duration,
    /// … up to this.
    pub most: Duration,
    /// Taken off at random, at most, in percent of it.
    pub jitter_percent: u32,
    /// Service after which earlier failures are forgotten.
    pub clear_after: Duration,
    /// How long a target that fell again has to stand and answer before it gets a controller: a guest that
    /// reconnects to one that dies in the first moments never comes back (field note 21).
    pub prove: Duration,
    /// How long a target that is stopped, or makes no progress, may be silent until it is killed.
    pub frozen_after: Duration,
    /// How long one with volumes or guests that computes may be silent until it is killed; zero is for ever.
    pub kill_unresponsive_after: Duration,
    /// After controllers were made, how long their target is not killed: guests are just reconnecting.
    pub settle: Duration,
}

impl TargetPolicy {
    /// The template of a kind.
    pub fn template(&self, kind: TargetKind) -> &TargetTemplate {
        match kind {
            TargetKind::Zbs => &self.zbs,
            TargetKind::Spdk => &self.spdk,
            TargetKind::BuiltIn => &self.built_in,
        }
    }
}

/// What a call for a target means that does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetDefaults {
    /// Its name.
    pub name: TargetName,
    /// What it runs.
    pub kind: TargetKind,
    /// Its image.
    pub image: Option<String>,
    /// The address of that image's tar.
    pub image_url: Option<ImageUrl>,
    /// The digest of that tar.
    pub image_sha256: Option<ImageSha256>,
    /// The folder of its sockets.
    pub socket_dir: CleanPath,
    /// Its control socket's name in that folder.
    pub control_name: String,
    /// Its client's configuration.
    pub client_conf: Option<CleanPath>,
    /// How many CPUs it gets.
    pub core_count: u32,
    /// MiB of hugepages that it takes.
    pub memory_mib: u64,
}

impl TargetDefaults {
    /// The control socket in `socket_dir`.
    ///
    /// # Errors
    /// When that is no path.
    pub fn control_sock(&self, socket_dir: &CleanPath) -> Result<CleanPath, Fault> {
        socket_dir.join(&self.control_name).parse()
    }
}

#[cfg(test)]
impl TargetPolicy {
    /// A policy for tests.
    pub fn example() -> TargetPolicy {
        let template = |command: &str, capabilities: &[&str]| TargetTemplate {
            command: command.split(' ').map(str::to_string).collect(),
            capabilities: capabilities.iter().map(ToString::to_string).collect(),
            privileged: false,
        };
        let zbs = "/vhost -m {cores} -S {socketDir} -r {controlSock} -z {clientConf}";
        let spdk = "vhost -m {cores} -s {memoryMib} --huge-dir {hugeDir} --last";
        TargetPolicy {
            zbs: template(zbs, &["SYS_NICE"]),
            spdk: template(spdk, &["SYS_NICE"]),
            built_in: template("/vhost-agent target -m {cores} -r {controlSock}", &[]),
            binds: vec![("/opt".into(), true)],
            devices: Vec::new(),
            env: vec!["A=b".into()],
            socket_uid: 0,
            socket_gid: 0,
            socket_mode: 0o755,
            call_timeout: Duration::from_secs(10),
            load_timeout: Duration::from_secs(600),
            ready_timeout: Duration::from_secs(20),
            stop_grace: Duration::from_millis(900),
            answer_timeout: Duration::from_secs(1),
            max_age: Duration::from_secs(1),
            probe_interval: Duration::from_millis(500),
            images: ImagePolicy {
                most_bytes: 1 << 20,
                stall_timeout: Duration::from_secs(5),
                ..ImagePolicy::default()
            },
            volumes: VolumePolicy {
                socket_uid: 0,
                socket_gid: 0,
                socket_mode: 0o660,
                call_timeout: Duration::from_secs(30),
                look_interval: Duration::from_secs(10),
                stuck_after: Duration::from_secs(3),
                keep_pages: 0,
            },
            heal: HealPolicy {
                enabled: true,
                first: Duration::from_secs(1),
                most: Duration::from_secs(64),
                jitter_percent: 20,
                clear_after: Duration::from_secs(60),
                prove: Duration::from_secs(3),
                frozen_after: Duration::from_secs(3),
                kill_unresponsive_after: Duration::from_secs(60),
                settle: Duration::from_secs(1),
            },
        }
    }
}

#[cfg(test)]
impl TargetDefaults {
    /// Defaults for tests.
    pub fn example() -> TargetDefaults {
        TargetDefaults {
            name: TargetName::usual(),
            kind: TargetKind::Zbs,
            image: None,
            image_url: None,
            image_sha256: None,
            socket_dir: "/sockets".parse().unwrap(),
            control_name: "vhost.sock".into(),
            client_conf: None,
            core_count: 1,
            memory_mib: 0,
        }
    }
}
