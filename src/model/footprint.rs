//! What the agent itself takes of the machine.

use std::time::Duration;

/// The agent's own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// CPU time in user and kernel.
    pub cpu: Duration,
    /// Memory that it has in RAM.
    pub resident_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// How many it may have open; `None` where there is no limit.
    pub most_files: Option<u64>,
    /// When it was started, since 1970.
    pub started: Duration,
}
