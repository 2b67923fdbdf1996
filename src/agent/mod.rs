//! Owners: one task for each thing that changes, and its only writer.
//!
//! `pools` owns the hugepage pools and their mounts, `engine` owns Docker, `prepare` runs both at the
//! same time; the targets' owners are in the module `targets`. Each owner is a handle that anyone may
//! clone, and a loop that takes one request after the other: observe, plan, apply, publish. Policy is in
//! `plan`; reading and changing the machine is in `observe` and `apply`; the loops only connect them,
//! keep the deadlines and feed the watchdog. `events` publishes events, `status` the status of the whole
//! node. `storage` checks the node's storage for a controller, in runs that equal requests share (`shared_runs`).

pub mod admission;
pub mod apply;
pub mod domains;
pub mod engine;
pub mod events;
pub mod guests;
pub mod idle_release;
pub mod legacy_calls;
pub mod memory;
pub mod node;
pub mod observe;
pub mod pools;
pub mod prepare;
pub mod progress_sink;
pub mod reservations;
pub mod shared_runs;
pub mod status;
pub mod storage;

use crate::model::code::Code;
use crate::model::fault::Fault;

/// Fault of a handle whose owner has ended.
pub(crate) fn owner_gone() -> Fault {
    Fault::new(Code::Stopping, "the agent is stopping: call again when it is back")
}
