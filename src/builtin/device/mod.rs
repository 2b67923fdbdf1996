//! A controller's vhost-user-blk device: from the socket that a VM connects to, down to its requests.
//!
//! ```text
//! controller   listens, one thread; takes one VM at a time
//!   session    what the VM's frontend asks for: features, memory, rings, the in-flight record
//!     worker   one or more threads; each serves some of the rings (service)
//!       ring → chain → request     what the guest wrote, judged
//!       aio                        requests that the kernel serves on its own
//! ```
//!
//! Everything that comes from the guest is judged before it is used: a request that cannot be served
//! is answered with an error, a ring that makes no sense is stopped, and neither ends the process.

mod aio;
mod chain;
mod config;
mod controller;
mod disk;
mod guest;
mod inflight;
mod negotiation;
mod notice;
mod progress;
mod request;
mod ring;
mod service;
mod session;
mod vring;
mod worker;

pub(super) use controller::Controller;
pub(super) use disk::Disk;
