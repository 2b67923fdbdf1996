//! Whole-agent tests: the built agent as a process, on a node of its own for each test, and the built-in target.
//!
//! One crate, so that it is compiled and linked once; its tests run side by side in one process. A test that needs the
//! process to itself, or the machine's hugepages as `pools.rs` does, is none of these.
// A test is a client of the agent and of the kernel, not part of the agent.
#![allow(clippy::disallowed_methods)]

mod access;
mod allowed;
mod arbitrary;
mod attacks;
mod bounds;
mod callbacks;
mod cli;
mod connect;
mod control_socket;
mod deep;
mod device;
mod fallback;
mod http;
mod lifecycle;
mod machines;
mod manual;
mod metrics;
mod needs;
mod newer_controllers;
mod nodes;
mod outbox;
mod outgoing;
mod podman;
mod progress;
mod python_agent_faults;
mod report;
mod roles;
mod secrets;
mod setup;
mod state;
mod storage;
mod support;
mod up;
mod volume_admission;
mod volumes;
