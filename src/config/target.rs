//! The settings of targets and of their health.

use std::path::Path;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::{Mode, Span};
use super::volume::{Heal, Volume};
use crate::model::image::{ImagePolicy, ImageSha256, ImageUrl};
use crate::model::path::CleanPath;
use crate::model::policy::{TargetDefaults, TargetPolicy, TargetTemplate};
use crate::model::registry::RegistryPolicy;
use crate::model::target::{TargetKind, TargetName};

/// Targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
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
    /// The folder of its sockets.
    pub socket_dir: CleanPath,
    /// Its control socket's name in that folder.
    pub control_sock: String,
    /// Its client's configuration.
    pub client_conf: CleanPath,
    /// CPUs that it gets where a call names none.
    pub core_count: u32,
    /// MiB of hugepages that it takes.
    pub memory_mib: u64,
    /// Capabilities of ZBS's and SPDK's; all others are dropped.
    pub capabilities: Vec<String>,
    /// Whether they get all of them, and all devices.
    pub privileged: bool,
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
    /// Owner of a socket folder that is made, by number.
    pub socket_uid: u32,
    /// Its group, by number.
    pub socket_gid: u32,
    /// Its mode, in octal.
    pub socket_mode: Mode,
    /// How long the engine may take for one call.
    pub call_timeout: Span,
    /// How long loading an image may take.
    pub load_timeout: Span,
    /// How long a download may stand still.
    pub stall_timeout: Span,
    /// How long a started target may take until it serves.
    pub ready_timeout: Span,
    /// How long one may take to end by itself; under a second, for a slow end strands guests.
    pub stop_grace: Span,
}

/// How the health of targets is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// How old an answer may be that is still told; zero asks every time.
    pub max_age: Span,
    /// How long an answer may take.
    pub timeout: Span,
    /// Between two probes of a target. At most half of `max_age` keeps an answer at hand, and finds a frozen
    /// target within `max_age` and `timeout`.
    pub interval: Span,
    /// How long a deep probe may take, its tidying up included.
    pub deep_timeout: Span,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_string).collect()
}

/// A path that is written here.
fn path(text: &'static str) -> CleanPath {
    text.parse().unwrap_or_else(|fault| unreachable!("{fault}"))
}

impl Default for Target {
    fn default() -> Target {
        let spdk = "/usr/local/bin/vhost -m {cores} -S {socketDir} -r {controlSock}";
        Target {
            kind: TargetKind::Zbs,
            image: String::new(),
            image_url: String::new(),
            image_sha256: String::new(),
            image_max_mib: 4096,
            socket_dir: path("/var/tmp/vhost-sockets"),
            control_sock: "vhost.sock".to_string(),
            client_conf: path("/etc/zbs/client.conf"),
            core_count: 2,
            memory_mib: 512,
            capabilities: vec!["SYS_NICE".to_string()],
            privileged: false,
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
            socket_uid: 0,
            socket_gid: 0,
            socket_mode: Mode(0o755),
            call_timeout: Span::from_secs(30),
            load_timeout: Span::from_secs(900),
            stall_timeout: Span::from_secs(30),
            ready_timeout: Span::from_secs(20),
            stop_grace: Span::from_millis(900),
        }
    }
}

impl Default for Health {
    fn default() -> Health {
        Health {
            max_age: Span::from_secs(1),
            timeout: Span::from_secs(1),
            interval: Span::from_millis(500),
            deep_timeout: Span::from_secs(5),
        }
    }
}

impl Health {
    /// What is wrong with it, as the key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        const LEAST: Duration = Duration::from_millis(10);
        const MOST: Duration = Duration::from_secs(60);
        let interval = self.interval.0;
        if !(LEAST..=MOST).contains(&interval) {
            let text = format!("{interval:?} is not between {LEAST:?} and {MOST:?}");
            return Some(("health.interval", text));
        }
        (self.max_age.0 > MOST)
            .then(|| ("health.max_age", format!("{:?} is more than {MOST:?}", self.max_age.0)))
    }
}

impl Target {
    /// The planner's share.
    pub(super) fn policy(
        &self,
        health: &Health,
        (volume, heal): (&Volume, &Heal),
        state_dir: &Path,
        registries: RegistryPolicy,
    ) -> TargetPolicy {
        let template = |command: &[String]| TargetTemplate {
            command: command.to_vec(),
            capabilities: self.capabilities.clone(),
            privileged: self.privileged,
        };
        let bind = |text: &String| match text.strip_suffix(":ro") {
            Some(path) => (path.to_string(), true),
            None => (text.clone(), false),
        };
        let built_in = template(&self.built_in_command);
        TargetPolicy {
            zbs: template(&self.zbs_command),
            spdk: template(&self.spdk_command),
            // It does without any.
            built_in: TargetTemplate { capabilities: Vec::new(), privileged: false, ..built_in },
            binds: self.mounts.iter().map(bind).collect(),
            devices: self.devices.clone(),
            env: self.env.clone(),
            socket_uid: self.socket_uid,
            socket_gid: self.socket_gid,
            socket_mode: self.socket_mode.0,
            call_timeout: self.call_timeout.0,
            load_timeout: self.load_timeout.0,
            ready_timeout: self.ready_timeout.0,
            stop_grace: self.stop_grace.0,
            answer_timeout: health.timeout.0,
            max_age: health.max_age.0,
            probe_interval: health.interval.0,
            images: ImagePolicy {
                folder: state_dir.join("images"),
                most_bytes: self.image_max_mib * 1024 * 1024,
                stall_timeout: self.stall_timeout.0,
                registries,
            },
            volumes: volume.policy(),
            heal: heal.policy(),
        }
    }

    /// What a call means that does not say.
    pub(super) fn defaults(&self) -> TargetDefaults {
        TargetDefaults {
            name: TargetName::usual(),
            kind: self.kind,
            image: Some(self.image.clone()).filter(|image| !image.is_empty()),
            // Judged when they were loaded.
            image_url: self.image_url.parse().ok(),
            image_sha256: self.image_sha256.parse().ok(),
            socket_dir: self.socket_dir.clone(),
            control_name: self.control_sock.clone(),
            client_conf: Some(self.client_conf.clone()),
            core_count: self.core_count,
            memory_mib: self.memory_mib,
        }
    }

    /// What is wrong with it, as the key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let name = &self.control_sock;
        if name.is_empty() || name.contains('/') {
            return Some(("target.control_sock", format!("'{name}' is not the name of a file")));
        }
        let bad = |path: &&String| path.trim_end_matches(":ro").parse::<CleanPath>().is_err();
        if let Some(path) = self.mounts.iter().chain(&self.devices).find(bad) {
            return Some(("target.mounts", format!("'{path}' is not a plain absolute path")));
        }
        self.image_problem().or((self.core_count == 0)
            .then(|| ("target.core_count", "0 is not at least 1".to_string())))
    }

    fn image_problem(&self) -> Option<(&'static str, String)> {
        /// Far more than a target's image has, and far from where bytes overflow.
        const MOST_MIB: u64 = 1 << 30;
        let url = match self.image_url.as_str() {
            "" => None,
            url => url.parse::<ImageUrl>().err().map(|fault| ("target.image_url", fault.text)),
        };
        let digest = match self.image_sha256.as_str() {
            "" => None,
            _ if self.image_url.is_empty() => {
                let text = "it is the digest of what target.image_url names: set that too";
                Some(("target.image_sha256", text.to_string()))
            }
            digest => {
                let judged = digest.parse::<ImageSha256>();
                judged.err().map(|fault| ("target.image_sha256", fault.text))
            }
        };
        let size = (!(1..=MOST_MIB).contains(&self.image_max_mib)).then(|| {
            let text = format!("{} is not between 1 and {MOST_MIB}", self.image_max_mib);
            ("target.image_max_mib", text)
        });
        url.or(digest).or(size)
    }
}
