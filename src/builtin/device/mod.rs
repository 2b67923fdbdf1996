//! Vhost-user-blk device of a controller: from the socket that a VM connects to, down to its requests.
//!
//! ```text
//! controller   listens, one thread; accepts one VM at a time
//!   session    requests of the VM's frontend: features, memory, rings, the in-flight record
//!     worker   one or more threads; each serves some of the rings (service)
//!       ring → chain → request     the guest's input, validated
//!       aio                        asynchronous requests in the kernel
//! ```
//!
//! Everything that comes from the guest is validated before it is used: an invalid request is answered with an error,
//! an invalid ring is stopped, and neither ends the process.

mod aio;
mod chain;
mod config;
mod controller;
mod disk;
mod guest;
mod inflight;
mod log;
mod negotiation;
mod notice;
mod request;
mod ring;
mod service;
mod session;
mod session_progress;
mod vring;
mod worker;

pub(super) use controller::BlkController;
pub(super) use disk::ControllerDisk;
