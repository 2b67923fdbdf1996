//! Paths that a caller names, with the checks for sockets.

use crate::model::code::Code;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// Length limit of a UNIX socket's path in bytes: `sockaddr_un.sun_path` without its closing zero (unix(7)).
pub const SUN_PATH: usize = 107;
/// Absolute path without `.`, `..`, control characters and colons, which a mount option could not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CleanPath(pub(super) String);

impl CleanPath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Path of the entry `name` in this folder.
    pub fn join(&self, name: &str) -> String {
        format!("{}/{name}", self.0.trim_end_matches('/'))
    }
}

impl FromStr for CleanPath {
    type Err = Fault;

    fn from_str(text: &str) -> Result<CleanPath, Fault> {
        let refused = |why: &str| {
            let shown: String = text.chars().take(120).collect();
            Err(Fault::new(Code::InvalidPath, format!("'{shown}' is no path to be used: {why}")))
        };
        if !text.starts_with('/') {
            return refused("it is not absolute");
        }
        if text.len() > 4000 {
            return refused("it is longer than paths are");
        }
        if text.chars().any(|c| c.is_control() || c == ':') {
            return refused("it holds a control character or a colon");
        }
        if text.split('/').any(|part| part == "." || part == "..") {
            return refused("it holds '.' or '..'");
        }
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        Ok(CleanPath(format!("/{}", parts.join("/"))))
    }
}

impl TryFrom<String> for CleanPath {
    type Error = Fault;

    fn try_from(text: String) -> Result<CleanPath, Fault> {
        text.parse()
    }
}

impl From<CleanPath> for String {
    fn from(path: CleanPath) -> String {
        path.0
    }
}

/// Checks that `path` can be a control socket. Its name has to end with `.sock`, as no volume's name does, because the
/// agent must never connect to the socket of a volume.
///
/// # Errors
/// A path that is longer than a socket's may be, or is not a control socket's.
pub fn validate_socket(path: &CleanPath) -> Result<(), Fault> {
    validate_length(path)?;
    if path.as_str().ends_with(".sock") {
        return Ok(());
    }
    Err(Fault::new(
        Code::InvalidControlSocket,
        format!(
            "{} is taken for no control socket, whose name ends with .sock: what else lies beside it \
             are the sockets of volumes, and to those the agent never connects",
            path.as_str()
        ),
    ))
}

/// Checks that `path` is short enough for a UNIX socket.
///
/// # Errors
/// A path that is longer than a socket's may be.
pub fn validate_length(path: &CleanPath) -> Result<(), Fault> {
    if path.as_str().len() <= SUN_PATH {
        return Ok(());
    }
    Err(Fault::new(
        Code::SocketPathTooLong,
        format!(
            "a socket cannot lie at {}: its path has {} bytes, and a socket's has at most {SUN_PATH}",
            path.as_str(),
            path.as_str().len()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_lead_where_they_say() {
        let clean = |text: &str| text.parse::<CleanPath>().map(String::from);
        assert_eq!(clean("/var//tmp/").unwrap(), "/var/tmp");
        assert_eq!(clean("/").unwrap(), "/");
        let long = format!("/{}", "x".repeat(4000));
        for path in ["", "a", "../a", "/a/../b", "/a/./b", "/a\nb", "/a:/etc", long.as_str()] {
            assert_eq!(clean(path).unwrap_err().code, Code::InvalidPath, "{path}");
        }
    }

    #[test]
    fn a_socket_path_fits_into_its_structure() {
        let path = |length: usize| format!("/{}.sock", "x".repeat(length - 6)).parse().unwrap();
        assert!(validate_socket(&path(107)).is_ok());
        assert_eq!(validate_socket(&path(108)).unwrap_err().code, Code::SocketPathTooLong);
    }

    #[test]
    fn what_is_not_named_as_a_control_socket_may_be_a_volumes() {
        let volume = "/var/tmp/vhost-sockets/zbs-vhost-0123".parse().unwrap();
        assert_eq!(validate_socket(&volume).unwrap_err().code, Code::InvalidControlSocket);
    }
}
