//! The engine's daemon, found by its pid file and verified in procfs.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use procfs::FromRead;
use procfs::process::Stat;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::files::{read_number, read_table};
use super::{HostError, Root};
use crate::model::engine::EngineProcess;

/// The engine's daemon: the process whose pid is in `pid_file`, if it is alive and has the name of `binary`.
///
/// The modification time of `pid_file` is taken for the daemon's start, because the daemon writes that file when it
/// starts.
pub fn engine_process(root: &Root, pid_file: &str, binary: &str) -> Option<EngineProcess> {
    let pid_file = root.path(pid_file);
    let pid = u32::try_from(read_number(&pid_file).ok()?).ok()?;
    let folder = root.path(format!("/proc/{pid}"));
    let stat = stat(&folder)?;
    let name = binary.rsplit('/').next().unwrap_or(binary);
    // The kernel keeps 15 bytes of a process name. A zombie does not count: it serves nothing.
    let kept = &name.as_bytes()[..name.len().min(15)];
    if stat.comm.as_bytes() != kept || stat.state == 'Z' {
        return None;
    }
    let cmdline = fs::read(folder.join("cmdline")).unwrap_or_default();
    let args = cmdline
        .split(|byte| *byte == 0)
        .filter(|arg| !arg.is_empty())
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect();
    let started_at = u64::try_from(fs::metadata(&pid_file).ok()?.mtime()).ok()?;
    Some(EngineProcess { pid, started_at, args })
}

/// Makes the daemon reload its configuration by SIGHUP, as systemd does.
///
/// # Errors
/// When the process `seen` no longer exists, or cannot be signalled.
pub fn reload(
    root: &Root,
    seen: &EngineProcess,
    pid_file: &str,
    binary: &str,
) -> Result<(), HostError> {
    let failed = |source| HostError::Signal { program: binary.to_string(), pid: seen.pid, source };
    let gone = || failed(io::ErrorKind::NotFound.into());
    let pid = i32::try_from(seen.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
    // Checked after the pidfd is open: it refers to the process `seen`, not to a later one with the same pid.
    if engine_process(root, pid_file, binary).as_ref() != Some(seen) {
        return Err(gone());
    }
    pidfd_send_signal(process, Signal::HUP).map_err(|e| failed(e.into()))
}

/// Parsed `stat` of the process with the folder `folder` (proc_pid_stat(5)). Lines that do not begin as the kernel's
/// do, `7 (name) S …`, are refused first: the parser fails on them.
fn stat(folder: &Path) -> Option<Stat> {
    let line = read_table(&folder.join("stat")).ok()?;
    let opens = line.iter().position(|byte| *byte == b'(')?;
    let closes = line.iter().rposition(|byte| *byte == b')')?;
    let (pid, behind) = (line[..opens].strip_suffix(b" ")?, line.get(closes + 1..)?);
    let begins = !pid.is_empty() && pid.iter().all(u8::is_ascii_digit) && opens < closes;
    let goes_on = matches!(behind, [b' ', state, b' ', ..] if state.is_ascii_alphabetic());
    if begins && goes_on { Stat::from_read(line.as_slice()).ok() } else { None }
}

/// Start time of the process `pid`, in clock ticks since the boot; `None` if there is no such process, or only a
/// zombie. Pid and start time together identify one process for ever.
pub fn started(root: &Root, pid: u32) -> Option<u64> {
    let stat = stat(&root.path(format!("/proc/{pid}")))?;
    (stat.state != 'Z').then_some(stat.starttime)
}

/// State of the process `pid` (proc_pid_stat(5), `state`); `None` if there is no such process.
pub(super) fn state(root: &Root, pid: u32) -> Option<char> {
    state_of(&root.path(format!("/proc/{pid}")))
}

/// State of the process or thread with the folder `folder`.
pub(super) fn state_of(folder: &Path) -> Option<char> {
    stat(folder).map(|stat| stat.state)
}

/// Folders in which executables are searched, regardless of the agent's own `PATH`.
pub const FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Identity of a file's version on disk. It changes when a package upgrade replaces the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStamp {
    pub path: String,
    inode: u64,
    modified: (i64, i64),
}

/// Current version of the file at `path`; `None` if there is no file.
pub fn file_stamp(root: &Root, path: &str) -> Option<FileStamp> {
    let meta = fs::metadata(root.path(path)).ok()?;
    let modified = (meta.mtime(), meta.mtime_nsec());
    Some(FileStamp { path: path.to_string(), inode: meta.ino(), modified })
}

/// Paths at which the executable `name` may be, in the order of [`FOLDERS`]. An absolute `name` is the only path.
pub fn candidates(name: &str) -> Vec<String> {
    match name.starts_with('/') {
        true => vec![name.to_string()],
        false => FOLDERS.iter().map(|folder| format!("{folder}/{name}")).collect(),
    }
}

/// Finds the executable `name` in [`FOLDERS`], or at its own path if it is absolute.
pub fn find_executable(root: &Root, name: &str) -> Option<String> {
    candidates(name).into_iter().find(|path| {
        fs::metadata(root.path(path))
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `true` if a process that the kernel calls `comm` is taken for `binary`.
    fn taken(comm: &str, binary: &str) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/proc/7")).unwrap();
        fs::create_dir_all(root.path("/run")).unwrap();
        fs::write(root.path("/run/docker.pid"), "7").unwrap();
        let numbers = "0 ".repeat(49);
        fs::write(root.path("/proc/7/stat"), format!("7 ({comm}) S {numbers}\n")).unwrap();
        engine_process(&root, "/run/docker.pid", binary).is_some()
    }

    #[test]
    fn a_process_whose_name_is_not_between_parentheses_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/proc/7")).unwrap();
        let lines = [
            "",
            "7",
            "7 (a",
            "7 a)",
            "7 a) S 0 (0",
            "7 ) S (",
            "7 (a)\u{e9}S 0",
            "(a) S 0",
            " (a) S 0",
        ];
        for line in lines.map(str::as_bytes).into_iter().chain([b"7 (a)\x9aS 0".as_slice()]) {
            fs::write(root.path("/proc/7/stat"), line).unwrap();
            assert_eq!(started(&root, 7), None, "{line:?}");
        }
    }

    #[test]
    fn a_process_is_the_engines_by_its_whole_name() {
        assert!(taken("dockerd", "dockerd"));
        assert!(taken("dockerd", "/opt/engine/dockerd"));
        assert!(!taken("docker", "dockerd"), "the command line tool is not the daemon");
        assert!(!taken("dockerd-rootles", "dockerd"));
        assert!(!taken("", "dockerd"));
    }

    #[test]
    fn of_a_long_name_as_much_is_compared_as_the_kernel_keeps() {
        assert!(taken("dockerd-patched", "dockerd-patched-by-us"));
        assert!(!taken("dockerd-patche", "dockerd-patched-by-us"));
    }
}
