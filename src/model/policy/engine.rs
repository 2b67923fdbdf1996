//! The engine.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::engine::{ApiVersion, PackageManager, PackageSets};
use crate::model::units::duration;

/// Docker: `[engine]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnginePolicy {
    /// Whether the agent looks after the engine at all.
    pub manage: bool,
    /// Whether it may install it.
    pub install: bool,
    /// The API's socket.
    pub socket: String,
    /// systemd's unit.
    pub unit: String,
    /// The daemon's executable.
    pub binary: String,
    /// Its configuration.
    pub daemon_json: String,
    /// Its pid file.
    pub pid_file: String,
    /// Whether a running engine that may change iptables fails a prepare.
    pub require_iptables_false: bool,
    /// The oldest API that will do.
    pub min_api: ApiVersion,
    /// How long a running engine may take to answer.
    #[serde(with = "duration")]
    pub ping_timeout: Duration,
    /// How old an answer of the engine's process may be while that lives; zero asks every time.
    #[serde(with = "duration")]
    pub ping_max_age: Duration,
    /// How long a started engine may take to answer.
    #[serde(with = "duration")]
    pub ready_timeout: Duration,
    /// How long the package manager may take.
    #[serde(with = "duration")]
    pub install_timeout: Duration,
    /// How long a locked package manager is waited for.
    #[serde(with = "duration")]
    pub lock_timeout: Duration,
    /// Sets of packages to try, in this order, by package manager.
    pub packages: PackageSets,
    /// More arguments for the package manager's install command.
    pub install_args: Vec<String>,
    /// Whether it may be told to trust a registry that cannot prove who it is.
    pub insecure_registries: bool,
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

/// Docker's own packages first. Debian's `docker.io` only recommends what it needs where AppArmor is
/// on and where images are pulled over TLS, and recommended packages are not installed, for they
/// would bring systemd to a machine without it.
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
