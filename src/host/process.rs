//! Processes in procfs, and executables.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use procfs::FromRead;
use procfs::process::Stat;

use super::Root;
use super::files::read_table;

/// Parsed `stat` of the process or thread with the folder `folder` (proc_pid_stat(5)). Lines that do not begin as the
/// kernel's do, `7 (name) S …`, are refused first: the parser fails on them.
pub(super) fn stat(folder: &Path) -> Option<Stat> {
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

/// Name of the process `pid`, of which the kernel keeps 15 bytes, and its start time in clock ticks since the boot; `None`
/// if there is no such process, or only a zombie.
pub(super) fn name_and_start(root: &Root, pid: u32) -> Option<(String, u64)> {
    let stat = stat(&root.path(format!("/proc/{pid}")))?;
    (stat.state != 'Z').then_some((stat.comm, stat.starttime))
}

/// State of the process `pid` (proc_pid_stat(5), `state`); `None` if there is no such process.
pub(super) fn state(root: &Root, pid: u32) -> Option<char> {
    stat(&root.path(format!("/proc/{pid}"))).map(|stat| stat.state)
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
}
