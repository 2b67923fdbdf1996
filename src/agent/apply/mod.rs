//! Changing the machine: one step, read back, its outcome. No policy.

pub mod engine;
mod install;
pub mod memory;
pub mod target;
