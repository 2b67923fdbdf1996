//! The engine (Docker): what is seen of it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of the engine's API, such as 1.41.
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

/// What an answering engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineVersion {
    /// The engine's own version, such as 20.10.24.
    pub version: String,
    /// The newest API it speaks.
    pub api: ApiVersion,
}

/// Whether the API answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineApi {
    /// It answered.
    Answers(EngineVersion),
    /// Nobody listens: no socket, or nobody behind it.
    Absent,
    /// Somebody listens and does not answer as an engine does; the text says how.
    Broken(String),
}

/// The engine's daemon as a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineProcess {
    /// Its pid.
    pub pid: u32,
    /// Start time in seconds since 1970.
    pub started_at: u64,
    /// Its command line.
    pub args: Vec<String>,
}

/// `/etc/docker/daemon.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonJson {
    /// There is none.
    Absent,
    /// It is a JSON object.
    Object {
        /// What it says, word for word.
        text: String,
        /// Time of its last change, in seconds since 1970.
        modified_at: u64,
    },
    /// It is there and cannot be used; the text says why.
    Unusable(String),
}

/// Who starts services on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Init {
    /// PID 1 is systemd.
    Systemd,
    /// PID 1 is something else, named here.
    Other(String),
}

/// systemd's view of the engine's unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// `LoadState`: `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `ActiveState`: `active`, `inactive`, `activating`, `failed`, …
    pub active: String,
    /// `UnitFileState`: `enabled`, `disabled`, `static`, `masked`, …, empty when unknown.
    pub file: String,
    /// The command line of `ExecStart`.
    pub args: Vec<String>,
}

/// A package manager that the agent knows.
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
    /// Each, in the order in which they are looked for. dnf before yum: where both are, yum is a
    /// link to it.
    pub const ALL: [PackageManager; 4] =
        [PackageManager::Apt, PackageManager::Dnf, PackageManager::Yum, PackageManager::Zypper];

    /// The executable's name.
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

/// For each package manager the sets of packages to try, the preferred one first.
pub type PackageSets = BTreeMap<PackageManager, Vec<Vec<String>>>;

/// All that the engine planner looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSeen {
    /// Whether its API answers.
    pub api: EngineApi,
    /// Its daemon, when it runs.
    pub process: Option<EngineProcess>,
    /// Path of the daemon's executable.
    pub installed: Option<String>,
    /// Its configuration file.
    pub daemon_json: DaemonJson,
    /// PID 1.
    pub init: Init,
    /// Its unit, where PID 1 is systemd and could be asked.
    pub unit: Option<UnitState>,
    /// Why systemd could not be asked, where it should have been.
    pub unit_error: Option<String>,
    /// The package manager of this machine.
    pub package_manager: Option<PackageManager>,
}

#[cfg(test)]
impl EngineSeen {
    /// A machine with nothing on it, whose PID 1 is not systemd.
    pub(crate) fn bare() -> EngineSeen {
        EngineSeen {
            api: EngineApi::Absent,
            process: None,
            installed: None,
            daemon_json: DaemonJson::Absent,
            init: Init::Other("bash".into()),
            unit: None,
            unit_error: None,
            package_manager: None,
        }
    }
}
