//! Changing the machine: one step, read back, its outcome. No policy.

mod download;
pub mod engine;
mod image;
mod install;
pub mod memory;
pub mod target;
