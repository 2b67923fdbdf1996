//! Hugepage pools and their mounts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::{duration, octal};

/// Hugepage pools: `[pools]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolPolicy {
    /// Free 2 MiB pages wanted when a call names no number.
    pub default_pages: u64,
    /// `MemAvailable` that a growth must leave, in MiB …
    pub floor_mib: u64,
    /// … and in percent of `MemTotal`; the larger one counts.
    pub floor_percent: u64,
    /// The share of `MemTotal`, in percent, that all pages together may take that the agent has grown and not given back.
    pub max_percent: u64,
    /// Whether another node may give what one cannot, where a call does not say.
    pub move_shortfall: bool,
    /// Whether the page cache may be dropped when compaction was not enough (hurts every tenant of the node).
    pub drop_page_cache: bool,
    /// Retaking of the agent's pages that a call of the legacy agent took away.
    pub retake: bool,
    /// How long one write to the kernel may take before the growth stops.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
}

/// The hugetlbfs mount that is made when there is none: `[mount]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountPolicy {
    /// Where 2 MiB pages are mounted.
    #[serde(rename = "path")]
    pub path_2m: String,
    /// Where 1 GiB pages are mounted.
    pub path_1g: String,
    /// Owner of the mount's root, by number.
    pub uid: u32,
    /// Its group, by number.
    pub gid: u32,
    /// Its mode, in octal.
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
