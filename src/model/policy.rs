//! The operator's choices that the planners follow, as they come out of the settings.

use std::time::Duration;

use super::engine::{ApiVersion, PackageSets};

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
