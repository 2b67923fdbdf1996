//! This machine: sysfs pools, procfs facts, mounts, processors, packages, systemd, processes,
//! memory that is shared with a target.
//!
//! Functions here do one thing and say what the kernel answered; whether it should be done is not
//! decided here. Every path lies under a [`Root`], so that the same code runs on captured trees.
//! Blocking calls are made from blocking threads by the callers in `agent::{observe, apply}`.

#![allow(clippy::disallowed_methods)] // this is one of the rooms that touch files

pub mod cpus;
pub mod cpuset;
pub mod daemon_json;
pub mod door;
pub mod dpkg;
pub mod facts;
pub mod files;
pub mod footprint;
pub mod guests;
pub mod holders;
pub mod leftovers;
pub mod links;
pub mod mounts;
pub mod own_image;
pub mod own_process;
pub mod packages;
pub mod partial;
pub mod peer;
pub mod pidfd;
pub mod pools;
pub mod process;
pub mod shared_memory;
pub mod socket_place;
pub mod spawn;
#[cfg(test)]
pub mod spawn_fake;
pub mod systemd;
pub mod unchanged;
pub mod vitals;
pub mod watch;

use std::path::{Path, PathBuf};

use self::systemd::SystemdError;
use crate::model::code::Code;
use crate::model::fault::{Fault, chain, closed_or};
use crate::model::pools::PoolKey;

/// The folder that stands for `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// A root at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// Where the absolute `path` lies under this root.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// An operation on this machine that failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file could not be read.
    #[error("cannot read {path} (does the agent run as root, with /proc and /sys mounted?)")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds '{value}', which is not {expected}: report it, with `uname -a`")]
    Parse {
        /// Which.
        path: PathBuf,
        /// What it holds, shortened.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// There is no such pool.
    #[error("this machine has no pool {key}: see `vhost-agent status` for those it has")]
    NoPool {
        /// Which.
        key: PoolKey,
    },
    /// A value could not be written.
    #[error("cannot write '{value}' to {path}{}", closed_or(source, hint))]
    Write {
        /// Where.
        path: PathBuf,
        /// What.
        value: String,
        /// What the operator can do, with a leading separator, or nothing.
        hint: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A file that grows could not be written on.
    #[error("cannot write {path}{hint}")]
    Grow {
        /// Which.
        path: PathBuf,
        /// What the operator can do, with a leading separator, or nothing.
        hint: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A folder could not be made.
    #[error(
        "cannot make the folder {path}{}",
        closed_or(source, " (is there room, and nothing else in its place?)")
    )]
    MakeFolder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// mount(2) failed.
    #[error(
        "cannot mount a hugetlbfs with {options} at {path} (is the agent root and not in a container, \
         and does the kernel have such pages? `dmesg` says more)"
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// With which options.
        options: String,
        /// Why.
        source: nix::Error,
    },
    /// Something is mounted there, and it is not usable, or nothing would have to be mounted.
    #[error(
        "something else is mounted at {path}: pages of another size, read-only, or with a limit of its own (size=, \
         nr_inodes=); see it with `findmnt {path}`, and unmount it, or set mount.path (mount.path_1g) to another folder"
    )]
    Occupied {
        /// Where.
        path: PathBuf,
    },
    /// A mount is not what was asked for.
    #[error(
        "{path} was mounted but is not a hugetlbfs of {expected} pages: see what is there with \
         `findmnt {path}`, and unmount that"
    )]
    MountReadBack {
        /// Where.
        path: PathBuf,
        /// The wanted page size.
        expected: String,
    },
    /// systemd did not mount what it was asked for.
    #[error(
        "cannot have systemd mount a hugetlbfs with {options} at {path} (does the kernel have such pages?)"
    )]
    MountUnit {
        /// Where.
        path: PathBuf,
        /// With which options.
        options: String,
        /// Why.
        source: Box<SystemdError>,
    },
    /// systemd did not run a program to its end.
    #[error("cannot have systemd run {program} as a service of its own")]
    Service {
        /// Which.
        program: String,
        /// Why.
        source: Box<SystemdError>,
    },
    /// A program could not be started.
    #[error("cannot start {program} (is it installed, and may it be executed?)")]
    Spawn {
        /// Which.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// Memory to share with a target could not be taken.
    #[error(
        "cannot take {bytes} bytes of {what} (are so many free? `vhost-agent status` shows the pools, \
         `vhost-agent prepare` grows them)"
    )]
    NoPages {
        /// Of what.
        what: &'static str,
        /// How much.
        bytes: usize,
        /// Why.
        source: std::io::Error,
    },
    /// A process could not be ended.
    #[error("cannot send a signal to the process {pid}")]
    Kill {
        /// Its pid.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
    /// A process could not be told something.
    #[error("cannot tell {program} (pid {pid}) to read its configuration again")]
    Signal {
        /// Which.
        program: String,
        /// Its pid.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
    /// A file with a secret is no secret.
    #[error(
        "{path} holds a secret, and everybody may read it (mode {mode:04o}): take that away with `chmod o= {path}`"
    )]
    NoSecret {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Waiting for a file event failed.
    #[error("cannot watch {path} (raise fs.inotify.max_user_instances)")]
    Watch {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl From<HostError> for Fault {
    fn from(error: HostError) -> Fault {
        let code = match &error {
            HostError::Read { .. } | HostError::Parse { .. } | HostError::NoPool { .. } => {
                Code::HostUnreadable
            }
            HostError::Write { .. } | HostError::Grow { .. } | HostError::MakeFolder { .. } => {
                Code::HostUnwritable
            }
            HostError::Mount { .. }
            | HostError::MountUnit { .. }
            | HostError::Occupied { .. }
            | HostError::MountReadBack { .. } => Code::MountFailed,
            HostError::Spawn { .. } | HostError::Service { .. } | HostError::Watch { .. } => {
                Code::ProgramNotStarted
            }
            HostError::NoSecret { .. } => Code::SecretExposed,
            HostError::NoPages { .. } => Code::NoFreeHugepage,
            HostError::Kill { .. } => Code::ProcessNotEnded,
            HostError::Signal { .. } => Code::ProgramNotTold,
        };
        Fault::new(code, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_write_is_told_how_the_unit_is_opened_unless_more_is_known() {
        let read_only = || std::io::Error::from(nix::errno::Errno::EROFS);
        let path = || PathBuf::from("/srv/sockets");
        let told = |error: HostError| error.to_string();
        let no_folder = told(HostError::MakeFolder { path: path(), source: read_only() });
        assert!(no_folder.contains("ReadWritePaths="), "{no_folder}");
        let write =
            |hint, source| told(HostError::Write { path: path(), value: "1".into(), hint, source });
        assert!(write("", read_only()).contains("systemctl edit vhost-agent"));
        assert!(write(" (it is mounted read-only: remount it)", read_only()).ends_with("it)"));
        let full = nix::errno::Errno::ENOSPC.into();
        assert_eq!(write("", full), "cannot write '1' to /srv/sockets");
    }
}
