//! Settings of the storage's client.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Client of the storage, where no legacy agent looks after it: `[storage]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoragePolicy {
    /// Deadline of reading from a heartbeat volume.
    #[serde(with = "duration")]
    pub heartbeat_timeout: Duration,
    /// Packages that a caller may have installed.
    pub packages: Vec<String>,
    /// Package repositories that a caller may name for that, by id.
    pub repositories: Vec<String>,
    /// `true` if a call also updates packages that are installed already.
    pub update: bool,
}

impl Default for StoragePolicy {
    fn default() -> StoragePolicy {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect();
        StoragePolicy {
            heartbeat_timeout: Duration::from_secs(20),
            // Without the client that ZStack's controller requires, it never goes on to prepare the node.
            packages: names(&["libcbd"]),
            repositories: names(&["zstack-mn", "qemu-kvm-ev-mn"]),
            // Running virtual machines use the library.
            update: false,
        }
    }
}
