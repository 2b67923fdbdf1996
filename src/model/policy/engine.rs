//! Settings of the container engine.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::engine::{ApiVersion, PackageManager, PackageSets};
use crate::model::engine_options::plain_run;
use crate::model::units::duration;

/// Docker: `[engine]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnginePolicy {
    /// `true` if the agent manages the engine at all.
    pub manage: bool,
    /// `true` if the agent may install the engine.
    pub install: bool,
    /// Path of the engine's API socket.
    pub socket: String,
    /// Name of the engine's systemd unit.
    pub unit: String,
    /// Name or path of the engine's executable.
    pub binary: String,
    /// Path of the engine's configuration file, if its command line names no other.
    pub daemon_json: String,
    /// Path of the file with the pid of the engine's daemon. The daemon is found by its name if it has another.
    pub pid_file: String,
    /// `true` if a prepare fails where the running engine may change iptables.
    pub require_iptables_false: bool,
    /// Oldest API version that is accepted.
    pub min_api: ApiVersion,
    /// Deadline for an answer of a running engine.
    #[serde(with = "duration")]
    pub ping_timeout: Duration,
    /// Age up to which the engine's last answer is reused, as long as the same engine process lives. Zero: the engine
    /// is asked each time.
    #[serde(with = "duration")]
    pub ping_max_age: Duration,
    /// Deadline for the first answer of a started engine.
    #[serde(with = "duration")]
    pub ready_timeout: Duration,
    /// Deadline of one run of the package manager.
    #[serde(with = "duration")]
    pub install_timeout: Duration,
    /// Time to wait while another process holds the package manager's lock.
    #[serde(with = "duration")]
    pub lock_timeout: Duration,
    /// Sets of packages to try, in this order, by package manager.
    pub packages: PackageSets,
    /// Extra arguments for the package manager's install command.
    pub install_args: Vec<String>,
    /// `true` if the agent may add a registry that cannot prove its identity to the engine's `insecure-registries`.
    pub insecure_registries: bool,
}

impl EnginePolicy {
    /// `true` if `comm`, a process's name in procfs, is that of the engine. The kernel keeps 15 bytes of a name.
    pub fn is_engine_name(&self, comm: &[u8]) -> bool {
        let name = self.binary.rsplit('/').next().unwrap_or(&self.binary).as_bytes();
        comm == name.get(..name.len().min(15)).unwrap_or(name)
    }

    /// Arguments with which the agent starts the daemon where no service manager does: what differs from the daemon's
    /// own defaults; its socket only with `names_socket`.
    pub fn own_arguments(&self, names_socket: bool) -> Vec<String> {
        let own = EnginePolicy::default();
        let mut args = Vec::new();
        if self.daemon_json != own.daemon_json {
            args.push(format!("--config-file={}", self.daemon_json));
        }
        if names_socket && plain_run(&self.socket) != plain_run(&own.socket) {
            args.push(format!("--host=unix://{}", self.socket));
        }
        args
    }
}

impl Default for EnginePolicy {
    fn default() -> EnginePolicy {
        EnginePolicy {
            manage: true,
            install: true,
            socket: "/var/run/docker.sock".to_string(),
            unit: "docker.service".to_string(),
            binary: "dockerd".to_string(),
            daemon_json: "/etc/docker/daemon.json".to_string(),
            pid_file: "/var/run/docker.pid".to_string(),
            require_iptables_false: false,
            min_api: ApiVersion(1, 41),
            ping_timeout: Duration::from_secs(5),
            ping_max_age: Duration::from_secs(1),
            ready_timeout: Duration::from_secs(60),
            install_timeout: Duration::from_secs(900),
            lock_timeout: Duration::from_secs(120),
            packages: default_packages(),
            install_args: Vec::new(),
            insecure_registries: false,
        }
    }
}

/// Default packages, Docker's own first. Debian's `docker.io` only recommends `apparmor`, needed where AppArmor is on,
/// and `ca-certificates`, needed to pull images over TLS. Recommended packages are not installed, because they would
/// bring systemd to a machine without it. So these two are listed.
fn default_packages() -> PackageSets {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect::<Vec<_>>();
    let docker_ce = set(&["docker-ce", "docker-ce-cli", "containerd.io"]);
    let rpm = vec![docker_ce.clone(), set(&["docker-engine"])];
    PackageSets::from([
        (PackageManager::Apt, vec![docker_ce, set(&["docker.io", "apparmor", "ca-certificates"])]),
        (PackageManager::Dnf, rpm.clone()),
        (PackageManager::Yum, rpm.clone()),
        (PackageManager::Zypper, rpm),
    ])
}
