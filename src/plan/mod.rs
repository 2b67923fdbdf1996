//! Pure planners: desired and observed state in, an ordered list of steps out.
//!
//! All policy lives here: how pages are spread, when memory is too scarce, which mount is good
//! enough, what an engine needs. A planner never reads, writes or waits, so a dry run and a real
//! run are the same call, and planning again after everything was applied yields nothing.

pub mod admission;
mod container;
pub mod cores;
mod daemon_json;
pub mod domains;
pub mod engine;
#[cfg(test)]
mod engine_fixture;
mod engine_network;
pub mod guests;
pub mod health;
pub mod hugepages;
mod kill;
pub mod lifecycle;
pub mod memory;
pub mod mounts;
mod phase;
mod pins;
pub mod quarantine;
pub mod replacement;
pub mod retry;
pub mod shortages;
pub mod storage;
pub mod target;
#[cfg(test)]
mod target_fixture;
pub mod volumes;
