//! What a process takes, as procfs tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

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
