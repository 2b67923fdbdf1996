//! The engine's settings.

use serde::{Deserialize, Serialize};

use super::units::Span;
use crate::model::engine::{ApiVersion, PackageManager, PackageSets};

/// Docker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
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
    pub ping_timeout: Span,
    /// How old an answer of the engine's process may be while that lives; zero asks every time.
    pub ping_max_age: Span,
    /// How long a started engine may take to answer.
    pub ready_timeout: Span,
    /// How long the package manager may take.
    pub install_timeout: Span,
    /// How long a locked package manager is waited for.
    pub lock_timeout: Span,
    /// Sets of packages to try, in this order, by package manager.
    pub packages: PackageSets,
    /// More arguments for the package manager's install command.
    pub install_args: Vec<String>,
    /// Whether it may be told to trust a registry that cannot prove who it is.
    pub insecure_registries: bool,
}

impl Default for Engine {
    fn default() -> Engine {
        Engine {
            manage: true,
            install: true,
            socket: "/var/run/docker.sock".to_string(),
            unit: "docker.service".to_string(),
            binary: "dockerd".to_string(),
            daemon_json: "/etc/docker/daemon.json".to_string(),
            pid_file: "/var/run/docker.pid".to_string(),
            require_iptables_false: false,
            min_api: ApiVersion(1, 41),
            ping_timeout: Span::from_secs(5),
            ping_max_age: Span::from_secs(1),
            ready_timeout: Span::from_secs(60),
            install_timeout: Span::from_secs(900),
            lock_timeout: Span::from_secs(120),
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
