//! Facts that procfs tells: memory, boot id, kernel, PID 1.

use procfs::{FromRead, Meminfo};

use super::files::read_text;
use super::{HostError, Root};
use crate::model::engine::Init;
use crate::model::pools::Memory;

/// `MemTotal` and `MemAvailable`.
///
/// # Errors
/// When `/proc/meminfo` cannot be read or lacks them.
pub fn memory(root: &Root) -> Result<Memory, HostError> {
    let path = root.path("/proc/meminfo");
    let unusable = |value: String| HostError::Parse {
        path: path.clone(),
        value,
        expected: "the kernel's memory information with MemAvailable",
    };
    let info = Meminfo::from_file(&path).map_err(|e| unusable(e.to_string()))?;
    let available = info.mem_available.ok_or_else(|| unusable("no MemAvailable".to_string()))?;
    // procfs gives bytes.
    Ok(Memory { total_kib: info.mem_total / 1024, available_kib: available / 1024 })
}

/// The id of this boot, which tells one boot from the next.
///
/// # Errors
/// When it cannot be read.
pub fn boot_id(root: &Root) -> Result<String, HostError> {
    read_text(&root.path("/proc/sys/kernel/random/boot_id"))
}

/// The kernel's release, such as `6.1.0-37-cloud-amd64`.
///
/// # Errors
/// When it cannot be read.
pub fn kernel(root: &Root) -> Result<String, HostError> {
    read_text(&root.path("/proc/sys/kernel/osrelease"))
}

/// The machine's name.
///
/// # Errors
/// When it cannot be read.
pub fn hostname(root: &Root) -> Result<String, HostError> {
    read_text(&root.path("/proc/sys/kernel/hostname"))
}

/// Who starts services here. The folder is what sd_booted(3) looks at.
pub fn init(root: &Root) -> Init {
    if root.path("/run/systemd/system").is_dir() {
        return Init::Systemd;
    }
    Init::Other(read_text(&root.path("/proc/1/comm")).unwrap_or_else(|_| "unknown".to_string()))
}
