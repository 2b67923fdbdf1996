//! Cgroups of containers, in the form in which the engine is asked for them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::code::Code;
use super::fault::Fault;

/// Cgroup below which the engine makes that of a container: for its cgroup driver `systemd` the name of a slice, such as
/// `zstone.vhost.slice`, for `cgroupfs` an absolute path, such as `/zstone/vhost` (dockerd(8), `--cgroup-parent`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupParent(String);

impl CgroupParent {
    /// Length limit in bytes. A group is a folder of the kernel's (`NAME_MAX`), and a slice a unit of systemd's.
    const MOST: usize = 255;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CgroupParent {
    type Err = Fault;

    fn from_str(text: &str) -> Result<CgroupParent, Fault> {
        let is_parent = match text.strip_prefix('/') {
            Some(path) => path.split('/').all(is_group),
            None => text.strip_suffix(".slice").is_some_and(is_slice),
        };
        if is_parent && text.len() <= CgroupParent::MOST {
            return Ok(CgroupParent(text.to_string()));
        }
        let shown: String = text.chars().take(80).collect();
        Err(Fault::new(
            Code::InvalidPath,
            format!(
                "'{shown}' is no cgroup of containers: with the engine's cgroup driver systemd it is a slice such as \
                 zstone.vhost.slice, with cgroupfs an absolute path such as /zstone/vhost; of letters, digits, '_', \
                 '.' and '-', with at most {} characters",
                CgroupParent::MOST
            ),
        ))
    }
}

/// `true` if `name` can be a folder of the cgroup file system. It has no colon, for the engine hands parent and name to
/// its runtime as one text with colons.
fn is_group(name: &str) -> bool {
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    begins && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// `true` if `name` can stand before `.slice`. Each of its dashes separates a slice from the one it lies in, so that none
/// can be first, last or beside another one (systemd.slice(5)).
fn is_slice(name: &str) -> bool {
    is_group(name) && !name.ends_with('-') && !name.contains("--")
}

impl TryFrom<String> for CgroupParent {
    type Error = Fault;

    fn try_from(text: String) -> Result<CgroupParent, Fault> {
        text.parse()
    }
}

impl From<CgroupParent> for String {
    fn from(parent: CgroupParent) -> String {
        parent.0
    }
}

impl fmt::Display for CgroupParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slices by systemd.slice(5), paths by dockerd(8).
    #[test]
    fn slices_and_absolute_paths_are_parents() {
        for text in
            ["zstone.vhost.slice", "a-b.slice", "machine.slice", "/docker", "/zstone/vhost-1"]
        {
            assert_eq!(text.parse::<CgroupParent>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn texts_that_lead_elsewhere_or_mean_something_else_are_refused() {
        let long = format!("{}.slice", "x".repeat(250));
        let refused = [
            "",
            "/",
            "//a",
            "/a/",
            "/a/../b",
            "/../a",
            "/.",
            "zstone",
            "a/b",
            "../a.slice",
            "a/../b.slice",
            ".slice",
            "-.slice",
            "-a.slice",
            "a-.slice",
            "a--b.slice",
            "a:b.slice",
            "/a:docker:b",
            "a b.slice",
            "a\n.slice",
            "ä.slice",
            "$(id).slice",
            long.as_str(),
        ];
        for text in refused {
            assert_eq!(text.parse::<CgroupParent>().unwrap_err().code, Code::InvalidPath, "{text}");
        }
    }
}
