//! Settings of volumes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::{duration, octal};

/// Volumes: `[volume]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumePolicy {
    /// Owner of a volume's socket, by number: the user that QEMU runs as.
    pub socket_uid: u32,
    /// Group of a volume's socket, by number.
    pub socket_gid: u32,
    /// Mode of a volume's socket, in octal.
    #[serde(with = "octal")]
    pub socket_mode: u32,
    /// Deadline of one call to a target about a volume.
    #[serde(with = "duration")]
    pub call_timeout: Duration,
    /// Interval between two observations of a target's volumes, for no event says that a VM connects, and of the VMs
    /// that are connected.
    #[serde(with = "duration")]
    pub look_interval: Duration,
    /// Time in which the session of a VM has to start before its volume is stuck.
    #[serde(with = "duration")]
    pub stuck_after: Duration,
    /// Free 2 MiB pages that stay when the last volume of the node goes.
    pub keep_pages: u64,
    /// Time without volumes on the node after which the other pages are given back: the next volume may be on its way,
    /// and its VM has asked for pages already.
    #[serde(with = "duration")]
    pub give_back_after: Duration,
}

impl Default for VolumePolicy {
    fn default() -> VolumePolicy {
        VolumePolicy {
            socket_uid: 0,
            socket_gid: 0,
            socket_mode: 0o660,
            call_timeout: Duration::from_secs(30),
            look_interval: Duration::from_secs(10),
            stuck_after: Duration::from_secs(3),
            keep_pages: 512,
            give_back_after: Duration::from_secs(30),
        }
    }
}
