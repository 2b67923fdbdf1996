//! The owners: one task for each thing that changes, and nobody else changes it.
//!
//! `pools` owns the hugepage pools and their mounts, `engine` owns Docker, `prepare` runs both at
//! the same time for whoever asks; targets have their own room. Each is a handle that anyone may
//! clone, and a loop that takes one order after the other: observe, plan, apply, publish. Policy is in
//! `plan`; reading and changing the machine is in `observe` and `apply`; the loops only bring them
//! together, keep the deadlines and feed the watchdog. `events` tells what happens, `status` how the
//! whole node stands.

pub mod admission;
pub mod apply;
pub mod engine;
pub mod events;
pub mod give_back;
pub mod guests;
pub mod legacy_calls;
pub mod memory;
pub mod node;
pub mod observe;
pub mod pools;
pub mod prepare;
pub mod progress;
pub mod status;

use crate::model::code::Code;
use crate::model::fault::Fault;

/// The fault of a handle whose owner has ended.
pub(crate) fn owner_gone() -> Fault {
    Fault::new(Code::Stopping, "the agent is stopping: call again when it is back")
}
