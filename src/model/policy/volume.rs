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
    /// Interval between two observations of a target's volumes and of the VMs that are connected to them. It is needed
    /// because no event reports that a VM connects.
    #[serde(with = "duration")]
    pub look_interval: Duration,
    /// Time for the session of a connected VM to start. When it passes, the volume counts as stuck.
    #[serde(with = "duration")]
    pub stuck_after: Duration,
    /// Number of free 2 MiB pages that are not given back after the last volume of the node is gone.
    pub keep_pages: u64,
    /// Time without volumes on the node after which 2 MiB pages beyond `keep_pages` are given back. It leaves time for
    /// the next volume, whose VM may have requested pages already.
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
