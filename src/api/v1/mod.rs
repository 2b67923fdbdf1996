//! The native routes: resources in JSON, unknown fields refused, errors as problems.

pub mod events;
pub mod node;
pub mod pools;
pub mod prepare;
pub mod status;
pub mod targets;
pub mod volumes;
