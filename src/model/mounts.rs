//! hugetlbfs mounts.

use serde::{Deserialize, Serialize};

use super::units::PageSize;

/// A mounted hugetlbfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugetlbMount {
    /// Where it is mounted.
    pub path: String,
    /// Size of its pages.
    pub page_size: PageSize,
    /// Whether files can be made in it, as many and as large as there are pages for: it is mounted for
    /// writing and has no limit of its own (`size=`, `nr_inodes=`).
    pub writable: bool,
    /// Whether its path really leads to it; false when something is mounted over it.
    pub reachable: bool,
}

impl HugetlbMount {
    /// Whether pages of that size can be taken there.
    pub fn is_good_for(&self, size: PageSize) -> bool {
        self.page_size == size && self.writable && self.reachable
    }
}
