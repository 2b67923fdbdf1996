//! The built-in target as a process: its control socket, and its disks through a real frontend.
#![allow(clippy::disallowed_methods)]
#![allow(unsafe_code)]

mod disks;
mod guest;
mod life;
mod process;
mod restarts;
mod rpc;
mod stream;
