//! What a process takes, as procfs tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process, and those that it starts, have as many files open as it may grant itself.
pub(crate) fn may_open_many_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// How many minor faults its children had that have ended and were waited for (proc_pid_stat(5), `cminflt`):
/// as many as before when no process was started and ended in between.
pub(crate) fn faults_of_children(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(8).unwrap().parse().unwrap()
}

/// What it has open, by the names that the kernel gives; what is open twice counts twice.
pub(crate) fn files(pid: u32) -> BTreeSet<(PathBuf, usize)> {
    let mut counts: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        // Sockets and pipes have numbers of their own, which say nothing.
        let name = fs::read_link(entry.path()).unwrap_or_default();
        let text = name.to_string_lossy();
        let kind = text.split_once(":[").map(|(kind, _)| PathBuf::from(kind));
        *counts.entry(kind.unwrap_or(name)).or_default() += 1;
    }
    counts.into_iter().collect()
}

/// Its threads.
pub(crate) fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

/// Its resident memory, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
