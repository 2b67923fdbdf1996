//! Facts from procfs: memory, boot id, kernel, PID 1.

use std::path::Path;
use std::time::Duration;

use procfs::{FromRead, Uptime};

use super::files::{HeldFile, read_text};
use super::{HostError, Root};
use crate::model::engine::Init;
use crate::model::pools::NodeMemory;
use crate::model::units::PageSize;

/// Memory of the machine, as the kernel reports it.
#[derive(Debug)]
pub struct Meminfo(HeldFile);

impl Meminfo {
    /// Reader of `/proc/meminfo` under `root`, which is opened on the first read.
    pub fn new(root: &Root) -> Meminfo {
        Meminfo(HeldFile::new(root.path("/proc/meminfo")))
    }

    /// Reads `MemTotal` and `MemAvailable`.
    ///
    /// # Errors
    /// When `/proc/meminfo` cannot be read or lacks a line.
    pub fn read(&self) -> Result<NodeMemory, HostError> {
        self.0.read(parse_memory)
    }
}

fn parse_memory(path: &Path, text: &str) -> Result<NodeMemory, HostError> {
    let available = || kib(text, "MemAvailable:").or_else(|| available_of_old(text));
    match kib(text, "MemTotal:").zip(available()) {
        Some((total_kib, available_kib)) => Ok(NodeMemory { total_kib, available_kib }),
        None => Err(HostError::Parse {
            path: path.to_owned(),
            value: text.chars().take(80).collect(),
            expected: "the kernel's memory information with MemTotal, and MemAvailable or MemFree",
        }),
    }
}

/// Estimate of `MemAvailable` for kernels before 3.14, which do not tell: the free memory, and half of the files' pages
/// and of the slabs that can be given up. Newer kernels count at least that half (si_mem_available in mm/page_alloc.c).
fn available_of_old(text: &str) -> Option<u64> {
    let may_go = ["Active(file):", "Inactive(file):", "SReclaimable:"];
    let may_go: u64 = may_go.iter().filter_map(|key| kib(text, key)).fold(0, u64::saturating_add);
    Some(kib(text, "MemFree:")?.saturating_add(may_go / 2))
}

/// KiB in the line of `/proc/meminfo` that begins with `key`.
fn kib(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Time since the boot, suspended time included.
///
/// # Errors
/// When `/proc/uptime` cannot be read or parsed.
pub fn since_boot(root: &Root) -> Result<Duration, HostError> {
    let path = root.path("/proc/uptime");
    let text = read_text(&path)?;
    let parsed = Uptime::from_read(text.as_bytes()).map(|uptime| uptime.uptime_duration());
    parsed.map_err(|_| HostError::Parse {
        path,
        value: text.chars().take(80).collect(),
        expected: "the kernel's seconds since the boot",
    })
}

/// Default size of hugepages: that of a hugetlbfs mounted without a size. `None` if the kernel has no hugepages.
pub fn default_page_size(root: &Root) -> Option<PageSize> {
    let text = read_text(&root.path("/proc/meminfo")).ok()?;
    PageSize::from_kib(kib(&text, "Hugepagesize:")?)
}

/// Reads the id of this boot, which differs from boot to boot.
///
/// # Errors
/// When the kernel's file cannot be read.
pub fn boot_id(root: &Root) -> Result<String, HostError> {
    read_text(&root.path("/proc/sys/kernel/random/boot_id"))
}

/// Reads the kernel's release, such as `6.1.0-37-cloud-amd64`.
///
/// # Errors
/// When the kernel's file cannot be read.
pub fn kernel(root: &Root) -> Result<String, HostError> {
    read_text(&root.path("/proc/sys/kernel/osrelease"))
}

/// Reads the machine's host name.
///
/// # Errors
/// When the kernel's file cannot be read.
pub fn hostname(root: &Root) -> Result<String, HostError> {
    read_text(&root.path("/proc/sys/kernel/hostname"))
}

/// Service manager of this machine: systemd if the folder that sd_booted(3) checks exists, else the name of PID 1.
pub fn init(root: &Root) -> Init {
    if root.path("/run/systemd/system").is_dir() {
        return Init::Systemd;
    }
    Init::Other(read_text(&root.path("/proc/1/comm")).unwrap_or_else(|_| "unknown".to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_estimated_on_kernels_that_do_not_tell_it() {
        let read = |text: &str| parse_memory(Path::new("/proc/meminfo"), text).ok();
        let memory = |total_kib, available_kib| Some(NodeMemory { total_kib, available_kib });
        assert_eq!(read("MemTotal: 99 kB\nMemFree: 10 kB\nMemAvailable: 50 kB\n"), memory(99, 50));
        // Lines of Linux 3.10 (fs/proc/meminfo.c).
        let old = "MemTotal:      99 kB\nMemFree:       10 kB\nActive(file):  20 kB\nInactive(file): 8 kB\n\
            SReclaimable:   4 kB\n";
        assert_eq!(read(old), memory(99, 26));
        assert_eq!(read("MemTotal: 99 kB\nMemFree: 10 kB\n"), memory(99, 10));
        for text in ["", "MemTotal: 99 kB\n", "MemFree: 10 kB\n", "MemTotal: 99 MB\nMemFree: 1 kB"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
