//! The disk behind a controller, as all parts of the device see it.

use std::sync::Arc;
use std::time::Instant;

use super::super::bdev::Bdev;
use super::super::cores::Cores;

/// What a controller serves, and how.
#[derive(Debug)]
pub(in crate::builtin) struct Disk {
    /// The controller's name.
    pub(in crate::builtin) name: String,
    pub(in crate::builtin) bdev: Arc<Bdev>,
    pub(in crate::builtin) read_only: bool,
    /// Accepted and reported; only split rings are offered, which each guest can use.
    pub(in crate::builtin) packed_ring: bool,
    /// The cores of its threads; `None` leaves them where the kernel puts them.
    pub(in crate::builtin) cores: Option<Cores>,
    /// A VM that connects earlier is taken, and served from then on.
    pub(in crate::builtin) served_from: Instant,
}
