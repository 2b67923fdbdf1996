//! The built-in target as a process: its control socket, and its disks through a real frontend.
#![allow(unsafe_code)]

mod disks;
pub(crate) mod guest;
mod life;
mod migration;
pub(crate) mod process;
mod restarts;
mod rpc;
mod stream;
