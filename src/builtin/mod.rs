//! Built-in target: a vhost-user-blk device process that is controlled like an SPDK vhost application. The command
//! `vhost-agent target` runs it.
//!
//! One thread owns every named object (`target`): it serves the control socket (`rpc`), and creates and deletes block
//! devices (`bdev`) and controllers (`device`). Each controller has a thread that listens for its VM and speaks
//! vhost-user with it. A connected VM has worker threads that serve its queues. These threads share only the block
//! device and its counters.
//!
//! The protocol and its guarantees are SPDK's; this module knows nothing of the agent.
#![allow(clippy::disallowed_methods)] // one of the modules that touch files

mod bdev;
mod cores;
mod device;
mod faults;
mod process;
mod rpc;
mod socket;
mod target;

use std::path::PathBuf;

pub use cores::{CoreError, Cores};
pub use process::{TargetError, run};

/// Start options of a target.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Path of the control socket.
    pub rpc_socket: PathBuf,
    /// Folder of the vhost sockets.
    pub socket_dir: PathBuf,
    /// Cores that threads are pinned to; `None` leaves placement to the kernel.
    pub cores: Option<Cores>,
    /// Upper bound on the total memory of malloc bdevs, in MiB; `None` means no bound.
    pub memory_mib: Option<u64>,
    /// Set to serve only start-up methods until `framework_start_init` is called.
    pub wait_for_rpc: bool,
    /// Folder with files in place of ZBS volumes; `None` disables the methods `bdev_zbs_*`.
    pub zbs_dir: Option<PathBuf>,
    /// File with deliberate faults, for tests.
    pub debug_faults: Option<PathBuf>,
}
