//! Disk behind a controller, shared by all parts of the device.

use std::sync::Arc;
use std::time::Instant;

use super::super::bdev::BuiltinBdev;
use super::super::cores::Cores;

/// Disk of a controller, with its options.
#[derive(Debug)]
pub(in crate::builtin) struct ControllerDisk {
    pub(in crate::builtin) name: String,
    pub(in crate::builtin) bdev: Arc<BuiltinBdev>,
    pub(in crate::builtin) read_only: bool,
    /// Option of the request that created the controller. It is only reported: the device offers only split rings,
    /// which every guest supports.
    pub(in crate::builtin) packed_ring: bool,
    /// Cores of the threads that serve the disk; `None` leaves placement to the kernel.
    pub(in crate::builtin) cores: Option<Cores>,
    /// Time from which VMs are served; a VM that connects earlier is accepted and waits until then.
    pub(in crate::builtin) served_from: Instant,
}
