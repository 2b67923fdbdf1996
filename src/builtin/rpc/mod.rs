//! The control socket: JSON-RPC 2.0 as SPDK speaks it.
//!
//! `server` holds the connections and reads requests from them; `methods` finds what a request names
//! and whether it may be called now; `framework`, `bdev` and `vhost` do it on the target. One thread
//! does all this, so that a method has the target for itself.

mod bdev;
mod connection;
mod fault;
mod framework;
mod methods;
mod server;
mod vhost;

pub(super) use server::Server;
