//! Mounts of hugetlbfs.

use serde::{Deserialize, Serialize};

use super::units::PageSize;

/// Mounted hugetlbfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugetlbMount {
    /// Mount point.
    pub path: String,
    pub page_size: PageSize,
    /// Set if files can be made in it, as many and as large as there are pages for: it is mounted for writing and has
    /// no limit of its own (`size=`, `nr_inodes=`).
    pub writable: bool,
    /// Set if its path really leads to it; `false` if something is mounted over it.
    pub reachable: bool,
}

impl HugetlbMount {
    /// `true` if pages of that size can be taken there.
    pub fn is_good_for(&self, size: PageSize) -> bool {
        self.page_size == size && self.writable && self.reachable
    }
}
