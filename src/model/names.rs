//! Names of targets and of volumes, valid for Docker, SPDK and a folder of sockets alike.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::code::Code;
use super::fault::Fault;

/// Prefix of the names of disks that deep probes make. The pid and start time of the agent and a number follow. A
/// client of such a disk is no virtual machine.
pub const PROBE_PREFIX: &str = "vhost-agent-probe-";

/// Name of a target and of its container: valid for Docker, at most 63 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(pub(super) String);

impl TargetName {
    /// Name of the default target.
    pub fn usual() -> TargetName {
        TargetName("zbs-vhost".to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TargetName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<TargetName, Fault> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if first && rest && text.len() <= 63 {
            return Ok(TargetName(text.to_string()));
        }
        let shown: String = text.chars().take(80).collect();
        Err(Fault::new(
            Code::InvalidTargetName,
            format!(
                "'{shown}' is no name for a target: it begins with a letter or digit, goes on with \
                 those and '_', '.', '-', and has at most 63 characters"
            ),
        ))
    }
}

impl TryFrom<String> for TargetName {
    type Error = Fault;

    fn try_from(text: String) -> Result<TargetName, Fault> {
        text.parse()
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> String {
        name.0
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a volume or of a bdev. The name of a volume is also that of its controller and of its socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(pub(super) String);

impl VolumeName {
    /// Limit of a volume name's characters. It leaves room for the folder in the path of the volume's socket.
    const MOST: usize = 96;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<VolumeName, Fault> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        // Control sockets and their locks lie in the same folder.
        let reserved = text.ends_with(".sock") || text.ends_with(".lock");
        let probes = text.starts_with(PROBE_PREFIX);
        let fits = text.len() <= VolumeName::MOST;
        if first && fits && !reserved && !probes && text.bytes().all(plain) {
            return Ok(VolumeName(text.to_string()));
        }
        let shown: String = text.chars().take(120).collect();
        Err(Fault::new(
            Code::InvalidVolumeName,
            format!(
                "'{shown}' is no name for a volume or a bdev: it begins with a letter or digit, goes on \
                 with those and '_', '.', '-', has at most {} characters, ends neither with .sock nor \
                 with .lock, and does not begin with {PROBE_PREFIX}",
                VolumeName::MOST
            ),
        ))
    }
}

impl TryFrom<String> for VolumeName {
    type Error = Fault;

    fn try_from(text: String) -> Result<VolumeName, Fault> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers_and_nothing_that_a_path_or_a_shell_could_take_for_its_own() {
        for name in ["zbs-vhost", "zbsvhost-10.0.0.1", "a"] {
            assert_eq!(name.parse::<TargetName>().unwrap().as_str(), name);
        }
        let long = "x".repeat(64);
        for name in ["", "-a", ".a", "a/b", "../a", "a b", "a;id", "ä", "a\n", long.as_str()] {
            assert_eq!(name.parse::<TargetName>().unwrap_err().code, Code::InvalidTargetName);
        }
    }

    #[test]
    fn names_lead_nowhere_else_and_are_no_control_sockets() {
        for name in ["zbs-bdev-0123456789abcdef0123456789abcdef", "a", "A_b.c-1"] {
            assert_eq!(name.parse::<VolumeName>().unwrap().as_str(), name);
        }
        let long = "x".repeat(97);
        for name in [
            "",
            "../x",
            "a/b",
            ".a",
            "-a",
            "a b",
            "vhost.sock",
            "a.sock.lock",
            "ä",
            "a\0",
            "vhost-agent-probe-1-2-3",
            long.as_str(),
        ] {
            assert_eq!(
                name.parse::<VolumeName>().unwrap_err().code,
                Code::InvalidVolumeName,
                "{name}"
            );
        }
    }
}
