//! Volumes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::{duration, octal};

/// Volumes: `[volume]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumePolicy {
    /// Owner of a volume's socket, by number: the one that QEMU runs as.
    pub socket_uid: u32,
    /// Its group, by number.
    pub socket_gid: u32,
    /// Its mode, in octal.
    #[serde(with = "octal")]
    pub socket_mode: u32,
    /// How long a target may take for one call about a volume.
    #[serde(with = "duration")]
    pub call_timeout: Duration,
    /// Between two looks at the volumes of a target, for nobody tells when a VM connects, and at the VMs that are.
    #[serde(with = "duration")]
    pub look_interval: Duration,
    /// How long the session of a VM may take to start until its volume is stuck.
    #[serde(with = "duration")]
    pub stuck_after: Duration,
    /// Free 2 MiB pages that stay when the last volume of the node goes.
    pub keep_pages: u64,
    /// How long the node stays without volumes until the others are given back: the next may be on its way,
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
