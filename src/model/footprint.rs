//! Resources that the agent itself takes.

use std::time::Duration;

/// Resources of the agent's own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// CPU time in user and kernel.
    pub cpu: Duration,
    /// Memory in RAM.
    pub resident_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    pub threads: u64,
    pub open_files: u64,
    /// Limit of open file descriptors; `None` for no limit.
    pub most_files: Option<u64>,
    /// Start time, since 1970.
    pub started: Duration,
}
