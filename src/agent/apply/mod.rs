//! Changing the machine: one step, read back, its outcome. No policy.

pub mod engine;
pub mod memory;
