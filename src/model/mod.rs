//! Nouns of the domain: desired, observed, done.
//!
//! Values only. Nothing here reads a file or awaits, and only `work` reads the clock, for its ids. Every other module
//! may use these types, and they use none of the others. Input from outside is turned into them at the edge (`api`,
//! `cli`, `config`), where it is validated.

pub mod access;
pub mod ascii;
pub mod backoff;
pub mod bounds;
pub mod buffers;
pub mod caller;
pub mod cgroup;
pub mod code;
pub mod container;
pub mod cpu;
pub mod daemon_json;
pub mod deep;
pub mod domain;
pub mod egress_policy;
pub mod engine;
pub mod engine_options;
pub mod event;
pub mod exit;
pub mod fallback;
pub mod fault;
pub mod footprint;
pub mod guest;
pub mod identity;
pub mod image;
pub mod ledger;
pub mod mounts;
pub mod names;
pub mod network;
pub mod node;
pub mod numa;
pub mod observation;
pub mod path;
pub mod pattern;
pub mod policy;
pub mod pools;
pub mod prepare;
pub mod progress;
pub mod qemu_args;
pub mod quota;
pub mod registry;
pub mod reservation;
pub mod sizing;
pub mod status;
pub mod step;
pub mod storage;
pub mod target;
mod target_health;
pub mod task;
pub mod unit_command;
pub mod units;
pub mod url;
pub mod volume;
pub mod work;
