//! Control socket: JSON-RPC 2.0 as SPDK speaks it.
//!
//! `server` holds the connections and reads requests from them; `methods` finds a request's method and checks that it
//! may be called now; `framework`, `bdev` and `vhost` execute it on the target. One thread does all this, so that a
//! method has exclusive use of the target.

mod bdev;
mod connection;
mod fault;
mod framework;
mod methods;
mod server;
mod vhost;

pub(super) use server::Server;
