//! Settings of the hook for libvirt.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units::duration;

/// Virtual machines whose hugepages are reserved before they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReserveFor {
    /// Those with hugepages and a vhost-user disk.
    VhostUser,
    /// All with hugepages.
    Hugepages,
    /// None: the hook does nothing.
    None,
}

/// Decision on a virtual machine that starts while the agent does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutAgent {
    /// It starts, without a reservation.
    Allow,
    /// It does not start.
    Refuse,
}

/// Hook for libvirt: `[libvirt]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LibvirtPolicy {
    /// Virtual machines whose hugepages are reserved before they start.
    pub reserve: ReserveFor,
    /// Decision on a virtual machine that starts while the agent does not answer.
    pub without_agent: WithoutAgent,
    /// Lease of a reservation, until the virtual machine has started: as long as QEMU may take to get its memory.
    #[serde(with = "duration")]
    pub lease: Duration,
}

impl Default for LibvirtPolicy {
    fn default() -> LibvirtPolicy {
        LibvirtPolicy {
            reserve: ReserveFor::VhostUser,
            without_agent: WithoutAgent::Allow,
            lease: Duration::from_secs(300),
        }
    }
}
