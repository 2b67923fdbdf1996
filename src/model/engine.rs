//! Observation of the engine (Docker).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::network::NodeNetwork;

/// Version of the engine's API, such as 1.41.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u32, pub u32);

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for ApiVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<ApiVersion, String> {
        text.split_once('.')
            .and_then(|(major, minor)| Some(ApiVersion(major.parse().ok()?, minor.parse().ok()?)))
            .ok_or_else(|| format!("'{text}' is not an API version; write it like 1.41"))
    }
}

impl Serialize for ApiVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ApiVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ApiVersion, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Version of an answering engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineVersion {
    /// The engine's own version, such as 20.10.24.
    pub version: String,
    /// Newest API version that the engine speaks.
    pub api: ApiVersion,
}

/// Version in the output of `dockerd --version`, such as `Docker version 20.10.24+dfsg1, build 297e128`.
pub fn version_in(output: &str) -> Option<String> {
    let words = output.split_once("version ")?.1;
    let version = words.split([',', ' ', '\n']).next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_string())
}

/// Major and minor number of an engine's version, such as 20.10 of `20.10.24+dfsg1`.
pub fn release(version: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        text.get(..digits)?.parse().ok()
    };
    let (major, rest) = version.split_once('.')?;
    Some((number(major)?, number(rest)?))
}

/// Result of a call to the engine's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineApi {
    Answers(EngineVersion),
    /// No listener: no socket, or nobody behind it.
    Absent,
    /// Another engine at the socket; the text names it and the socket.
    NotDocker(String),
    /// Listener that does not answer as an engine does; the text says how.
    Broken(String),
}

/// Advice where another engine has Docker's socket.
pub const NOT_DOCKER: &str = "the agent works with Docker alone: set engine.socket to Docker's own socket, or take \
    away what puts the other engine's in its place (the package podman-docker, a link), then prepare again; Docker and \
    podman can be on one node";

/// Process of the engine's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineProcess {
    pub pid: u32,
    /// Start time in seconds since 1970.
    pub started_at: u64,
    pub args: Vec<String>,
    /// systemd unit in which it runs, by its cgroup.
    pub unit: Option<String>,
}

/// Command line of the engine's daemon: of its process, else of its next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// Arguments, without the program.
    Known(Vec<String>),
    /// Text that says why it cannot be found out.
    Unknown(String),
}

impl CommandLine {
    /// Takes away the socket that the agent names to a daemon that it starts itself: its file names others, and it does not
    /// start with both.
    pub fn drop_own_host(&mut self) {
        if let CommandLine::Known(args) = self {
            args.retain(|arg| !arg.starts_with("--host="));
        }
    }

    /// Arguments, without the program; empty if unknown.
    pub fn args(&self) -> &[String] {
        match self {
            CommandLine::Known(args) => args,
            CommandLine::Unknown(_) => &[],
        }
    }
}

/// Configuration file of the engine, usually `/etc/docker/daemon.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonJson {
    Absent,
    /// Valid file: a JSON object, or blank, which newer engines take for an empty object.
    Object {
        /// Content, word for word.
        text: String,
        /// Time of the last change, in seconds since 1970.
        modified_at: u64,
    },
    /// File that cannot be used; the text says why.
    Unusable(String),
}

/// Service manager of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Init {
    /// systemd as PID 1.
    Systemd,
    /// Other PID 1, named here.
    Other(String),
}

/// systemd's view of the engine's unit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitState {
    pub name: String,
    /// `LoadState`: `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `ActiveState`: `active`, `inactive`, `activating`, `failed`, …
    pub active: String,
    /// `UnitFileState`: `enabled`, `disabled`, `static`, `masked`, …, empty when unknown.
    pub file: String,
    /// Command line of `ExecStart`, before the substitution of variables.
    pub args: Vec<String>,
    /// Assignments of `Environment`, such as `A=1`.
    pub environment: Vec<String>,
    /// Paths of `EnvironmentFile`, each with `true` if the file may be absent. They override `environment`.
    pub environment_files: Vec<(String, bool)>,
}

/// Package manager that the agent knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackageManager {
    /// Debian and its family.
    Apt,
    /// Fedora, RHEL 8 and later and their family.
    Dnf,
    /// RHEL 7 and its family.
    Yum,
    /// SUSE.
    Zypper,
}

impl PackageManager {
    /// Every package manager, in the order in which they are looked for. dnf comes before yum: where both are, `yum` is
    /// a link to `dnf`.
    pub const ALL: [PackageManager; 4] =
        [PackageManager::Apt, PackageManager::Dnf, PackageManager::Yum, PackageManager::Zypper];

    /// Name of the executable.
    pub fn command(self) -> &'static str {
        match self {
            PackageManager::Apt => "apt-get",
            PackageManager::Dnf => "dnf",
            PackageManager::Yum => "yum",
            PackageManager::Zypper => "zypper",
        }
    }
}

impl fmt::Display for PackageManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.command())
    }
}

/// Sets of packages to try by package manager, the preferred one first.
pub type PackageSets = BTreeMap<PackageManager, Vec<Vec<String>>>;

/// Observation that the engine planner works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSeen {
    pub api: EngineApi,
    /// Process of the daemon, if it runs.
    pub process: Option<EngineProcess>,
    /// Path of the daemon's executable, if it is installed.
    pub installed: Option<String>,
    /// Path to which the engine's socket of the settings leads, if it is a link.
    pub socket_target: Option<String>,
    /// Path of a stopped daemon's executable, also where its packages are installed half-way.
    pub executable: Option<String>,
    /// Set if there has been no engine here yet: no executable, no unit, and no images or containers.
    pub is_new: bool,
    /// Version of a stopped daemon's executable, such as 20.10.24, if it says one.
    pub installed_version: Option<String>,
    pub command_line: CommandLine,
    /// Path of the configuration file that the daemon reads.
    pub config_file: String,
    pub daemon_json: DaemonJson,
    /// Service manager, which is PID 1.
    pub init: Init,
    /// Unit of the daemon, if PID 1 is systemd and could be asked.
    pub unit: Option<UnitState>,
    /// Reason why systemd could not be asked, where it should have been.
    pub unit_error: Option<String>,
    pub package_manager: Option<PackageManager>,
    pub network: NodeNetwork,
}

impl EngineSeen {
    /// Name of the unit in which the daemon runs, else of the one that starts it; `None` if neither is known.
    pub fn unit_name(&self) -> Option<&str> {
        let of_process = self.process.as_ref().and_then(|process| process.unit.as_deref());
        of_process.or(self.unit.as_ref().map(|unit| unit.name.as_str()))
    }
}

#[cfg(test)]
impl EngineSeen {
    /// A machine with nothing on it, whose PID 1 is not systemd.
    pub(crate) fn bare() -> EngineSeen {
        EngineSeen {
            api: EngineApi::Absent,
            process: None,
            installed: None,
            socket_target: None,
            executable: None,
            is_new: true,
            installed_version: None,
            command_line: CommandLine::Known(Vec::new()),
            config_file: "/etc/docker/daemon.json".into(),
            daemon_json: DaemonJson::Absent,
            init: Init::Other("bash".into()),
            unit: None,
            unit_error: None,
            package_manager: None,
            network: NodeNetwork::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_what_the_daemon_prints() {
        for (text, version) in [
            ("Docker version 20.10.24+dfsg1, build 297e128\n", Some("20.10.24+dfsg1")),
            ("Docker version 18.09.0, build 172f8da\n", Some("18.09.0")),
            ("Docker version library-import, build unknown\n", None),
            ("", None),
        ] {
            assert_eq!(version_in(text).as_deref(), version, "{text}");
        }
    }

    #[test]
    fn versions_of_distributions_are_read() {
        for (text, read) in [
            ("20.10.24+dfsg1", Some((20, 10))),
            ("27.5.1-ce", Some((27, 5))),
            ("18.09.0.332", Some((18, 9))),
            ("29.0-rc1", Some((29, 0))),
            ("dev", None),
            ("", None),
            ("library-import", None),
        ] {
            assert_eq!(release(text), read, "{text}");
        }
    }
}
