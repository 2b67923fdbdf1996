//! Agent that prepares a compute node for vhost-user storage targets and keeps it fit.
//!
//! # Core idea
//! Desired state → observed state → plan → apply → publish. An HTTP call, a command on the node and the agent's own
//! start are only different triggers of the same reconcile loop.
//!
//! # Flow of a request
//! `api` validates the input and makes a `model` value of it → the handle of an owner (`targets`, `agent`) takes it →
//! `agent::observe` observes the machine through `host` and `docker` → `plan` computes the steps → `agent::apply`
//! applies them one by one and reads back → the report returns the same way, or through `controller`'s outbox when the
//! caller wants a callback.
//!
//! # Dependency law
//! `model` imports nothing local; `plan` imports `model`; only `agent::{observe, apply}`, `targets::observer`,
//! `health::deep` and `daemon` import `host`, `docker` and `spdk`, which do not import each other; `api` and
//! `controller` never touch the machine; `controller` and downloads call out through `outgoing`, and forwarded requests
//! go through `api::fallback`; files, processes and the environment appear only in `host`, `config`, `store`,
//! `builtin`, `cli` and `main`. `tests/law.rs` enforces it.

pub mod agent;
pub mod api;
pub mod builtin;
pub mod cli;
pub mod config;
pub mod controller;
pub mod daemon;
pub mod docker;
pub mod health;
pub mod host;
pub mod log;
pub mod model;
pub mod outgoing;
pub mod overdue;
pub mod plan;
pub mod spdk;
pub mod store;
pub mod targets;
pub mod wait;
pub mod watchdog;
