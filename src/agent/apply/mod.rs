//! Application of steps to the machine: one step, read back, its outcome. No policy.

mod answer;
pub mod cancel;
pub mod dependencies;
mod download;
pub mod engine;
mod flight;
mod image;
mod install;
pub mod memory;
mod pull_refusal;
mod refusal;
mod registry;
pub mod target;
pub mod volumes;
