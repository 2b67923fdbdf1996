//! Facts from procfs: memory, boot id, kernel, PID 1.

use std::path::Path;

use super::files::{HeldFile, read_text};
use super::{HostError, Root};
use crate::model::engine::Init;
use crate::model::pools::NodeMemory;

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
    /// When `/proc/meminfo` cannot be read or lacks one of the two lines.
    pub fn read(&self) -> Result<NodeMemory, HostError> {
        self.0.read(parse_memory)
    }
}

fn parse_memory(path: &Path, text: &str) -> Result<NodeMemory, HostError> {
    let kib = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?;
        value.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    match (kib("MemTotal:"), kib("MemAvailable:")) {
        (Some(total_kib), Some(available_kib)) => Ok(NodeMemory { total_kib, available_kib }),
        _ => Err(HostError::Parse {
            path: path.to_owned(),
            value: text.chars().take(80).collect(),
            expected: "the kernel's memory information with MemTotal and MemAvailable",
        }),
    }
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
