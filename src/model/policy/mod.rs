//! Settings that planners and owners follow: the sections of the operator's settings, as they are read.
//!
//! Sections are validated in `config`, where the keys and their sources are known.
#![deny(missing_docs)]

mod controller;
mod engine;
mod heal;
mod health;
mod http;
mod libvirt;
mod pools;
mod storage;
mod target;
mod volume;

pub use controller::{CallbackPolicy, ReportPolicy};
pub use engine::EnginePolicy;
pub use heal::HealPolicy;
pub use health::HealthPolicy;
pub use http::HttpPolicy;
pub use libvirt::{LibvirtPolicy, ReserveFor, WithoutAgent};
pub use pools::{MountPolicy, PoolPolicy};
pub use storage::StoragePolicy;
pub use target::{
    MEMORY_STEP_MIB, MOST_TARGETS, TargetPolicy, TargetSettings, TargetTemplate, VOLUMES_PER_STEP,
};
pub use volume::VolumePolicy;
