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
    /// Set if files can use all free pages: the file system is mounted for writing, without a limit of its own
    /// (`size=`, `nr_inodes=`).
    pub writable: bool,
    /// Set if `path` leads to this mount; `false` if something else is mounted over it, or its name is not UTF-8.
    pub reachable: bool,
}

impl HugetlbMount {
    /// `true` if pages of `size` can be taken from this mount.
    pub fn is_good_for(&self, size: PageSize) -> bool {
        self.page_size == size && self.writable && self.reachable
    }
}
