//! Settings: TOML file, drop-ins, environment, flags, in this order, the later one winning.
//!
//! Each source is validated by itself first, so that an unknown key or a wrong type is refused with the file and the
//! line, or the variable's name. Then the sources are merged key by key, and the merged settings are checked for faults
//! that no single source shows.
#![allow(clippy::disallowed_methods)] // one of the modules that read files

mod access;
mod fallback;
mod heal;
mod health;
mod libvirt;
mod load;
mod outgoing;
mod registry;
mod report;
mod settings;
mod storage;
mod target;
mod volume;

pub use access::{Access, CertificateRule, MaybeAddress, Tls, TokenRule};
pub use load::{
    ConfigError, Loaded, Overrides, environment, load, previous, stderr_is_the_journal,
};
pub use outgoing::EgressSettings;
pub use settings::{Log, LogFormat, Settings};
