//! Access to this machine: hugepage pools in sysfs, facts in procfs, mounts, processors, packages, systemd, processes,
//! and memory shared with a target.
//!
//! Each function does one thing and returns the kernel's answer; the policy is elsewhere. Every path lies under a
//! [`Root`], so that the same code runs on captured trees. Most calls block: the callers in `agent::{observe, apply}`
//! make them on blocking threads.

#![allow(clippy::disallowed_methods)] // this is one of the rooms that touch files

pub mod client_conf;
pub mod cpu_flags;
pub mod cpu_users;
pub mod cpus;
pub mod cpuset;
pub mod daemon_json;
pub mod dpkg;
pub mod engine_process;
pub mod engine_socket;
pub mod facts;
pub mod files;
pub mod footprint;
pub mod guests;
pub mod hugetlb_limit;
pub mod leftovers;
pub mod links;
mod mount_table;
pub mod mounts;
pub mod numa;
pub mod own_image;
pub mod own_process;
pub mod packages;
pub mod parent_group;
pub mod partial;
pub mod peer;
pub mod pidfd;
pub mod pools;
mod proc_cmdline;
pub mod process;
pub mod qemu_io;
pub mod routes;
pub mod shared_memory;
pub mod socket_place;
pub mod spawn;
#[cfg(test)]
pub mod spawn_fake;
pub mod systemd;
pub mod unchanged;
pub mod unix_socket;
pub mod vitals;
pub mod watch;

use std::path::{Path, PathBuf};

use self::systemd::SystemdError;
use crate::model::code::Code;
use crate::model::fault::{Fault, chain, closed_or};
use crate::model::pools::PoolKey;

/// Folder that is used as the machine's `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// Maps the absolute `path` to its place under this root.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Failed operation on this machine.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot read {path} (does the agent run as root, with /proc and /sys mounted?)")]
    Read { path: PathBuf, source: std::io::Error },
    /// A file has unexpected content.
    #[error("{path} holds '{value}', which is not {expected}: report it, with `uname -a`")]
    Parse {
        path: PathBuf,
        /// Content of the file, shortened.
        value: String,
        expected: &'static str,
    },
    /// This machine has no such pool.
    #[error("this machine has no pool {key}: see `vhost-agent status` for those it has")]
    NoPool { key: PoolKey },
    #[error("cannot write '{value}' to {path}{}", closed_or(source, hint))]
    Write {
        path: PathBuf,
        value: String,
        /// Advice for the operator, with a leading separator; may be empty.
        hint: &'static str,
        source: std::io::Error,
    },
    /// A download could not be written.
    #[error("cannot write {path}{hint}")]
    Grow {
        path: PathBuf,
        /// Advice for the operator, with a leading separator; may be empty.
        hint: &'static str,
        source: std::io::Error,
    },
    /// A folder could not be created.
    #[error(
        "cannot make the folder {path}{}",
        closed_or(source, " (is there room, and nothing else in its place?)")
    )]
    MakeFolder { path: PathBuf, source: std::io::Error },
    #[error(
        "cannot mount a hugetlbfs with {options} at {path} (is the agent root and not in a container, \
         and does the kernel have such pages? `dmesg` says more)"
    )]
    Mount { path: PathBuf, options: String, source: nix::Error },
    /// Another mount is in place: one with other pages, read-only, or with a limit of its own.
    #[error(
        "something else is mounted at {path}: pages of another size, read-only, or with a limit of its own (size=, \
         nr_inodes=); see it with `findmnt {path}`, and unmount it, or set mount.path (mount.path_1g) to another folder"
    )]
    Occupied { path: PathBuf },
    /// The mount succeeded, but no hugetlbfs of the requested page size is there.
    #[error(
        "{path} was mounted but is not a hugetlbfs of {expected} pages: see what is there with \
         `findmnt {path}`, and unmount that"
    )]
    MountReadBack {
        path: PathBuf,
        /// Requested page size.
        expected: String,
    },
    /// systemd did not mount the requested file system.
    #[error(
        "cannot have systemd mount a hugetlbfs with {options} at {path} (does the kernel have such pages?)"
    )]
    MountUnit { path: PathBuf, options: String, source: Box<SystemdError> },
    /// systemd did not run a program to completion.
    #[error("cannot have systemd run {program} as a service of its own")]
    Service { program: String, source: Box<SystemdError> },
    #[error("cannot start {program} (is it installed, and may it be executed?)")]
    Spawn { program: String, source: std::io::Error },
    /// Memory to share with a target could not be allocated.
    #[error(
        "cannot take {bytes} bytes of {what} (are so many free? `vhost-agent status` shows the pools, \
         `vhost-agent prepare` grows them)"
    )]
    NoPages {
        /// Kind of memory.
        what: &'static str,
        bytes: usize,
        source: std::io::Error,
    },
    /// A signal could not be sent to a process.
    #[error("cannot send a signal to the process {pid}")]
    Kill { pid: u32, source: std::io::Error },
    /// A daemon could not be signalled to reload its configuration.
    #[error("cannot tell {program} (pid {pid}) to read its configuration again")]
    Signal { program: String, pid: u32, source: std::io::Error },
    /// Users other than the owner and the group have rights to a file with a secret.
    #[error(
        "{path} holds a secret, and everybody may read it (mode {mode:04o}): take that away with `chmod o= {path}`"
    )]
    NoSecret { path: PathBuf, mode: u32 },
    #[error("cannot watch {path} (raise fs.inotify.max_user_instances)")]
    Watch { path: PathBuf, source: std::io::Error },
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
            HostError::Signal { .. } => Code::SignalFailed,
        };
        Fault::new(code, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_error_explains_the_unit_unless_more_is_known() {
        let read_only = || std::io::Error::from(nix::errno::Errno::EROFS);
        let path = || PathBuf::from("/srv/sockets");
        let text = |error: HostError| error.to_string();
        let no_folder = text(HostError::MakeFolder { path: path(), source: read_only() });
        assert!(no_folder.contains("ReadWritePaths="), "{no_folder}");
        let write =
            |hint, source| text(HostError::Write { path: path(), value: "1".into(), hint, source });
        assert!(write("", read_only()).contains("systemctl edit vhost-agent"));
        assert!(write(" (it is mounted read-only: remount it)", read_only()).ends_with("it)"));
        let full = nix::errno::Errno::ENOSPC.into();
        assert_eq!(write("", full), "cannot write '1' to /srv/sockets");
    }
}
