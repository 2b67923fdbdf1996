//! The node as `GET /v1/node` and `vhost-agent status` show it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::cpu::Cpu;
use super::fault::{Fault, Finding};
use super::mounts::HugetlbMount;
use super::network::Network;
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

/// Who may call the agent that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// Where it listens.
    pub listen: String,
    /// Whether it speaks TLS there.
    pub tls: bool,
    /// Whether clients have to show a certificate.
    pub client_certificates: bool,
    /// Whether requests have to show a token.
    pub tokens: bool,
    /// Whether these certificates have to have one of some names.
    #[serde(default)]
    pub certificate_names: bool,
    /// From where it is called; without any, from everywhere.
    pub allow: Vec<Network>,
    /// Whether who needs to show nothing may do everything.
    #[serde(default)]
    pub open: bool,
    /// Where signs of life and metrics are, when that is elsewhere.
    pub admin_listen: Option<String>,
    /// The socket for the node itself.
    pub socket: Option<String>,
    /// Whether it listens for the node alone.
    pub loopback: bool,
    /// What the operator should think about.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Exposure {
    /// Whether somebody from elsewhere has to show nothing.
    fn is_unguarded(&self) -> bool {
        !self.client_certificates && !self.tokens && self.allow.is_empty()
    }

    /// Who may call, in a sentence.
    pub fn text(&self) -> String {
        let from = self.allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let wants = [
            self.client_certificates.then(|| "a client certificate".to_string()),
            self.tokens.then(|| "a token".to_string()),
            (!from.is_empty()).then(|| format!("an address in {from}")),
        ];
        let wants = wants.into_iter().flatten().collect::<Vec<_>>().join(" and ");
        let way = if self.tls { "TLS" } else { "no TLS" };
        let listen = &self.listen;
        match (self.is_unguarded(), self.open, self.loopback) {
            (true, false, true) => {
                format!("{listen}: this node alone, and only root may change it, {way}")
            }
            (true, true, true) => {
                format!(
                    "{listen}: OPEN, every process of this node may do everything here (access.open), {way}"
                )
            }
            (true, true, false) => {
                format!(
                    "{listen}: OPEN, whoever reaches it may do everything here (access.open), {way}"
                )
            }
            (true, false, false) => format!(
                "{listen}: this node alone, and only root may change it; callers from elsewhere are refused until \
                 `vhost-agent setup --controller ADDRESS` names them, {way}"
            ),
            (false, ..) => format!("{listen}: wants {wants}, {way}"),
        }
    }

    /// The same with what an operator should think about.
    pub fn judged(self) -> Exposure {
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        let takes_local = self
            .allow
            .iter()
            .any(|network| network.has(loopback) || network.has(Ipv6Addr::LOCALHOST.into()));
        let remote = !self.loopback;
        let warnings = [
            (self.is_unguarded() && self.open).then_some(
                "access.open lets everybody who reaches the agent become root here: name who may call (vhost-agent setup)",
            ),
            (!self.is_unguarded() && self.open).then_some(
                "access.open says nothing beside what else is set of who may call: take it out",
            ),
            (self.tokens && !self.tls && remote).then_some(
                "tokens without TLS can be read on their way, by whoever sees the network: set tls.certificate and tls.key",
            ),
            (self.client_certificates && !self.certificate_names).then_some(
                "each certificate of the authority in tls.client_ca gives admin, that of another node of the cloud too: name \
                 those of controllers (access.certificate, vhost-agent setup --client-name)",
            ),
            (takes_local && !self.tokens && !self.client_certificates).then_some(
                "access.allow has loopback: any user of this node may do everything, and so may a QEMU that somebody has \
                 broken out of; root needs no address there, and can use access.socket",
            ),
        ];
        Exposure { warnings: warnings.into_iter().flatten().map(str::to_string).collect(), ..self }
    }
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
    /// Who may call the agent; where none runs, nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Exposure>,
    /// Findings for its operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// What could not be read.
    pub errors: Vec<Fault>,
}
