//! The node as `GET /v1/node` and `vhost-agent status` show it.

use serde::{Deserialize, Serialize};

use super::cpu::Cpu;
use super::fault::Fault;
use super::mounts::HugetlbMount;
use super::pools::{Memory, Pool};
use super::units::PageSize;

/// One pool with the agent's share of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// What the kernel says.
    #[serde(flatten)]
    pub pool: Pool,
    /// Pages grown by the agent in this boot and not given back.
    pub grown: u64,
}

/// Pages of one size on the whole machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolTotals {
    /// Page size.
    pub size: PageSize,
    /// All pages.
    pub total: u64,
    /// Not handed out.
    pub free: u64,
    /// Free ones that are promised; the kernel counts them for the machine only.
    pub reserved: u64,
    /// Handed out beyond the pool.
    pub surplus: u64,
    /// Grown by the agent.
    pub grown: u64,
}

/// The engine in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineStatus {
    /// `running`, `stopped`, `notInstalled`, `unreachable`.
    pub state: String,
    /// Its version, when it answers.
    pub version: Option<String>,
    /// Its API version, when it answers.
    pub api_version: Option<String>,
    /// Its daemon's pid.
    pub pid: Option<u32>,
    /// The API's socket.
    pub socket: String,
    /// Why it is unreachable.
    pub reason: Option<String>,
}

/// The whole node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Host name.
    pub hostname: String,
    /// This boot.
    pub boot_id: String,
    /// Kernel release.
    pub kernel: String,
    /// The agent's version.
    pub agent_version: String,
    /// Page sizes that this kernel has pools for.
    pub page_sizes: Vec<PageSize>,
    /// Pools by NUMA node and size.
    pub pools: Vec<PoolStatus>,
    /// Pools by size.
    pub totals: Vec<PoolTotals>,
    /// Memory.
    pub memory: Memory,
    /// Online CPUs.
    pub cpus: Vec<Cpu>,
    /// hugetlbfs mounts.
    pub mounts: Vec<HugetlbMount>,
    /// The engine.
    pub engine: EngineStatus,
    /// What could not be read.
    pub errors: Vec<Fault>,
}
