//! The processors of the node.

use serde::{Deserialize, Serialize};

use super::units::NumaNode;

/// One online logical CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// The kernel's number.
    pub id: u32,
    /// Its NUMA node; node 0 on kernels without NUMA.
    pub node: NumaNode,
    /// Core within the package.
    pub core: u32,
    /// Package (socket).
    pub package: u32,
    /// Logical CPUs of the same core, itself with them.
    pub siblings: Vec<u32>,
    /// Kept from the scheduler (`isolcpus=`).
    pub isolated: bool,
}
