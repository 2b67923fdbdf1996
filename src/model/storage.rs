//! Storage of the node's volumes, as the controller checks and prepares it: the heartbeat volume, and the packages of the
//! storage's client.

use std::fmt;
use std::str::FromStr;

use super::code::Code;
use super::engine::PackageManager;
use super::fault::Fault;
use super::path::CleanPath;
use super::volume::ZBS_SUFFIX;

/// Scheme of the path of a volume, and name of QEMU's driver for it.
pub const CBD: &str = "cbd";
/// Length limit of each part of a volume's path, in bytes.
const MOST_PART: usize = 128;

/// Volume whose first block is read to see whether the node reaches its storage: `cbd:<pool>/<logical pool>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeartbeatVolume(String);

impl HeartbeatVolume {
    /// File name under which QEMU's driver opens the volume, with the configuration `conf` of the storage's client.
    pub fn file_name(&self, conf: &CleanPath) -> String {
        format!("{}{ZBS_SUFFIX}:{}", self.0, conf.as_str())
    }
}

impl FromStr for HeartbeatVolume {
    type Err = Fault;

    /// Reads a path, with or without the suffix under which the volume is opened. Its parts are plain words: QEMU and its
    /// driver would take a colon, a comma or an equals sign in them for the begin of something else.
    fn from_str(text: &str) -> Result<HeartbeatVolume, Fault> {
        let parts = text.strip_prefix(CBD).and_then(|rest| rest.strip_prefix(':'));
        let parts: Vec<&str> = parts.map(|parts| parts.split('/').collect()).unwrap_or_default();
        if parts.len() == 3 && parts.iter().all(|part| is_part(part)) {
            let volume = text.strip_suffix(ZBS_SUFFIX).unwrap_or(text);
            return Ok(HeartbeatVolume(volume.to_string()));
        }
        let shown: String = text.chars().take(120).collect();
        Err(Fault::new(
            Code::InvalidBacking,
            format!(
                "'{shown}' is no heartbeat volume, which looks like {CBD}:pool/logical-pool/name, of letters, digits, \
                 '_', '.' and '-'"
            ),
        ))
    }
}

impl fmt::Display for HeartbeatVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_part(part: &str) -> bool {
    let begins = part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    begins && part != ZBS_SUFFIX && part.len() <= MOST_PART && part.bytes().all(plain)
}

/// Limit of the packages, and of the repositories, that one request names.
const MOST_NAMES: usize = 16;
/// Length limit of the name of a package or a repository, in bytes.
const MOST_NAME: usize = 100;

/// Packages of the storage's client that a caller requires, and the package repositories that have them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependencies {
    packages: Vec<String>,
    repositories: Vec<String>,
}

impl Dependencies {
    /// Dependencies from two lists with commas; no repositories means those that the node uses anyway.
    ///
    /// # Errors
    /// `invalid-body` if a list has a name that no package or repository has, or if there is no package.
    pub fn parse(packages: &str, repositories: &str) -> Result<Dependencies, Fault> {
        let list = |text: &str, field: &str| {
            let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
            let names: Vec<String> = names.map(str::to_string).collect();
            let wrong = names.iter().find_map(|name| name_problem(name));
            let long = (names.len() > MOST_NAMES)
                .then(|| format!("{} names are more than {MOST_NAMES}", names.len()));
            match wrong.or(long) {
                Some(why) => Err(Fault::new(Code::InvalidBody, format!("{field}: {why}"))),
                None => Ok(names),
            }
        };
        let packages = list(packages, "updatePackages")?;
        if packages.is_empty() {
            return Err(Fault::new(Code::InvalidBody, "updatePackages is missing"));
        }
        Ok(Dependencies { packages, repositories: list(repositories, "zstackRepo")? })
    }

    /// Names of the packages; at least one.
    pub fn packages(&self) -> &[String] {
        &self.packages
    }

    /// Ids of the repositories to install from.
    pub fn repositories(&self) -> &[String] {
        &self.repositories
    }
}

/// Reason why `name` cannot be the name of a package or a repository; `None` if it can. No name begins like an option of a
/// package manager or has a pattern in it (Debian policy, 5.6.7; dnf.conf(5), "Repo Options").
pub fn name_problem(name: &str) -> Option<String> {
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"+._-".contains(&b);
    if begins && name.len() <= MOST_NAME && name.bytes().all(plain) {
        return None;
    }
    let shown: String = name.chars().take(80).collect();
    Some(format!("'{shown}' is no name of a package or a package repository"))
}

/// Observation of the packages that a caller requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DependenciesSeen {
    /// Versions of the packages; `None` if one of them is not installed.
    pub versions: Option<Vec<String>>,
    /// Package manager of this machine.
    pub manager: Option<PackageManager>,
}

/// Installation of packages, as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallDependencies {
    pub manager: PackageManager,
    pub packages: Vec<String>,
    /// Repositories that alone are used; empty for those that the node uses anyway.
    pub repositories: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form is that of the controller's heartbeat volume.
    #[test]
    fn heartbeat_volume_is_opened_with_its_suffix_and_the_clients_configuration() {
        let conf = "/etc/zbs/client.conf".parse().unwrap();
        let opened = "cbd:pool/lpool1/zbs_zstack_heartbeat_zbs_:/etc/zbs/client.conf";
        for text in
            ["cbd:pool/lpool1/zbs_zstack_heartbeat", "cbd:pool/lpool1/zbs_zstack_heartbeat_zbs_"]
        {
            let volume: HeartbeatVolume = text.parse().unwrap();
            assert_eq!(volume.file_name(&conf), opened, "{text}");
            assert_eq!(volume.to_string(), "cbd:pool/lpool1/zbs_zstack_heartbeat");
        }
        assert!("cbd:lpool1_physical/lpool1/a-b.c".parse::<HeartbeatVolume>().is_ok());
    }

    #[test]
    fn paths_that_a_command_line_or_a_parser_would_take_for_more_are_refused() {
        let long = format!("cbd:p/l/{}", "x".repeat(129));
        let refused = [
            "",
            "cbd",
            "cbd:",
            "cbd:p/l",
            "cbd:p/l/v/w",
            "cbd:p//v",
            "cbd:p/l/",
            "cbd:/p/l/v",
            "cbd:p/l/_zbs_",
            "p/l/v",
            "zbs://p/l/v",
            "rbd:p/l/v",
            "nbd:p/l/v",
            "json:{\"driver\":\"file\"}",
            "cbd:p/l/v:/etc/shadow",
            "cbd:p/l/v,file.driver=nbd",
            "cbd:p/l/v=1",
            "cbd:p/../v",
            "cbd:../../etc/shadow",
            "cbd:p/l/.",
            "cbd:p/l/-c",
            "--version",
            "-f raw /etc/shadow",
            "cbd:p/l/v w",
            "cbd:p/l/v;reboot",
            "cbd:p/l/$(reboot)",
            "cbd:p/l/`reboot`",
            "cbd:p/l/v\nquit",
            "cbd:p/l/v\0",
            "cbd:p/l/{{v}}",
            "cbd:p/l/\u{e4}",
            long.as_str(),
        ];
        for text in refused {
            let refused = text.parse::<HeartbeatVolume>().unwrap_err();
            assert_eq!(refused.code, Code::InvalidBacking, "{text}");
        }
    }

    #[test]
    fn dependencies_are_lists_with_commas_of_plain_names() {
        let all = Dependencies::parse("libcbd, qemu-kvm", "zstack-mn,qemu-kvm-ev-mn").unwrap();
        assert_eq!(all.packages(), ["libcbd", "qemu-kvm"]);
        assert_eq!(all.repositories(), ["zstack-mn", "qemu-kvm-ev-mn"]);
        assert_eq!(Dependencies::parse("libcbd", "").unwrap().repositories(), [] as [&str; 0]);
        let many = vec!["a"; 17].join(",");
        for (packages, repositories) in [
            ("", ""),
            (" , ", ""),
            ("--reinstall", ""),
            ("libcbd;id", ""),
            ("libcbd id", ""),
            ("/tmp/evil.rpm", ""),
            ("http://evil.example/a.rpm", ""),
            ("*", ""),
            ("@core", ""),
            ("libcbd", "*"),
            ("libcbd", "-x"),
            ("libcbd", "a --nogpgcheck"),
            (many.as_str(), ""),
        ] {
            let refused = Dependencies::parse(packages, repositories).unwrap_err();
            assert_eq!(refused.code, Code::InvalidBody, "{packages} {repositories}");
        }
    }
}
