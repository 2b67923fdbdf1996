//! The engine's daemon, found by its pid file and proven by procfs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use procfs::FromRead;
use procfs::process::Stat;

use super::Root;
use super::files::read_number;
use crate::model::engine::EngineProcess;

/// The daemon whose pid stands in `pid_file`, when a process of that name lives.
///
/// It writes that file when it starts, so the file's time is its start.
pub fn engine_process(root: &Root, pid_file: &str, binary: &str) -> Option<EngineProcess> {
    let pid_file = root.path(pid_file);
    let pid = u32::try_from(read_number(&pid_file).ok()?).ok()?;
    let folder = root.path(format!("/proc/{pid}"));
    let stat = Stat::from_file(folder.join("stat")).ok()?;
    let name = binary.rsplit('/').next().unwrap_or(binary);
    // The kernel keeps 15 characters of a name; a zombie serves nobody.
    if !name.starts_with(&stat.comm) || stat.comm.is_empty() || stat.state == 'Z' {
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

/// Where an executable lies, by the usual search path; an absolute name is taken as it is.
pub fn find_executable(root: &Root, name: &str) -> Option<String> {
    const FOLDERS: [&str; 6] =
        ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let candidates: Vec<String> = match name.starts_with('/') {
        true => vec![name.to_string()],
        false => FOLDERS.iter().map(|folder| format!("{folder}/{name}")).collect(),
    };
    candidates.into_iter().find(|path| {
        fs::metadata(root.path(path))
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}
