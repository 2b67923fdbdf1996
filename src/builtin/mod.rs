//! The built-in target: a vhost-user-blk device process that is controlled like an SPDK vhost
//! application. `vhost-agent target` runs it.
//!
//! One thread owns everything that changes by name (`target`): it serves the control socket (`rpc`)
//! and creates and deletes block devices (`bdev`) and controllers (`device`). Each controller has a
//! thread that listens for its VM and speaks vhost-user with it; a VM that is connected has worker
//! threads that serve its queues. They share a block device and its counters, nothing else.
//!
//! What the protocol is and what must hold of it is SPDK's; nothing here knows of the agent.
#![allow(clippy::disallowed_methods)] // this is one of the rooms that touch files

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

/// How a target is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The control socket.
    pub rpc_socket: PathBuf,
    /// The folder of the vhost sockets.
    pub socket_dir: PathBuf,
    /// The cores that threads are pinned to; `None` leaves them where the kernel puts them.
    pub cores: Option<Cores>,
    /// Upper bound of the memory of malloc bdevs, in MiB.
    pub memory_mib: Option<u64>,
    /// Serve only start-up methods until `framework_start_init`.
    pub wait_for_rpc: bool,
    /// The folder whose files stand for ZBS volumes; without it there is no `bdev_zbs_*`.
    pub zbs_dir: Option<PathBuf>,
    /// The file with the faults that it commits on purpose, for tests.
    pub debug_faults: Option<PathBuf>,
}
