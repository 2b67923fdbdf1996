//! Settings of hugepage pools and their mounts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::{duration, octal};

/// Hugepage pools: `[pools]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolPolicy {
    /// Free 2 MiB pages desired when a request names no number.
    pub default_pages: u64,
    /// Lower limit of `MemAvailable` after a growth, in MiB.
    pub floor_mib: u64,
    /// Lower limit of `MemAvailable` after a growth, in percent of `MemTotal`. The larger of `floor_mib` and
    /// `floor_percent` applies.
    pub floor_percent: u64,
    /// Upper limit of all pages that the agent has grown and not given back, in percent of `MemTotal`.
    pub max_percent: u64,
    /// `true` if pages that one NUMA node cannot provide may be taken from another. Default for requests that do not
    /// say.
    pub move_shortfall: bool,
    /// `true` if the page cache may be dropped when compaction did not free enough memory. It slows every tenant of the
    /// node.
    pub drop_page_cache: bool,
    /// Free 2 MiB pages that are kept for guests that arrive by migration, spread over the NUMA nodes. 0 for none.
    pub arrival_reserve: u64,
    /// `true` if the agent takes its pages again after something else, such as the legacy agent, took them away.
    pub retake: bool,
    /// Deadline of one write of a pool's size to the kernel. A growth stops when it passes.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
}

/// Hugetlbfs mounts that the agent makes where none exists: `[mount]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountPolicy {
    /// Mount point for 2 MiB pages.
    #[serde(rename = "path")]
    pub path_2m: String,
    /// Mount point for 1 GiB pages.
    pub path_1g: String,
    /// Owner of the mount's root, by number.
    pub uid: u32,
    /// Group of the mount's root, by number.
    pub gid: u32,
    /// Mode of the mount's root, in octal.
    #[serde(with = "octal")]
    pub mode: u32,
}

impl Default for PoolPolicy {
    fn default() -> PoolPolicy {
        PoolPolicy {
            default_pages: 1024,
            floor_mib: 1024,
            floor_percent: 5,
            max_percent: 75,
            move_shortfall: false,
            drop_page_cache: false,
            arrival_reserve: 0,
            retake: false,
            write_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for MountPolicy {
    fn default() -> MountPolicy {
        MountPolicy {
            path_2m: "/dev/hugepages2m".to_string(),
            path_1g: "/dev/hugepages1g".to_string(),
            uid: 0,
            gid: 0,
            mode: 0o755,
        }
    }
}
