//! Status of the node, as `GET /v1/node` and `vhost-agent status` show it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::cpu::Cpu;
use super::fault::{Fault, Finding};
use super::mounts::HugetlbMount;
use super::network::Network;
use super::pools::{NodeMemory, Pool};
use super::units::PageSize;

/// Hugepages of one size on one NUMA node, with the agent's share of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Pool as the kernel reports it.
    #[serde(flatten)]
    pub pool: Pool,
    /// Pages grown by the agent in this boot and not given back.
    pub grown: u64,
    /// Free pages that are kept for open reservations and for guests that arrive by migration.
    #[serde(default)]
    pub kept: u64,
}

/// Pages of one size on the whole machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolTotals {
    pub size: PageSize,
    /// Pages in total.
    pub total: u64,
    /// Pages not handed out.
    pub free: u64,
    /// Free pages that are reserved; the kernel counts them for the machine only.
    pub reserved: u64,
    /// Pages handed out beyond the pool.
    pub surplus: u64,
    /// Pages grown by the agent.
    pub grown: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineStatus {
    /// `running`, `stopped`, `notInstalled`, `unreachable`.
    pub state: String,
    /// Version, if the engine answers.
    pub version: Option<String>,
    /// API version, if the engine answers.
    pub api_version: Option<String>,
    /// Pid of the engine's daemon.
    pub pid: Option<u32>,
    /// Path of the API's socket.
    pub socket: String,
    /// Reason why the engine is unreachable.
    pub reason: Option<String>,
}

/// Exposure of the running agent: its listeners, and who may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// Address on which the main listener listens.
    pub listen: String,
    /// Set if the listener speaks TLS.
    pub tls: bool,
    /// Set if clients have to show a certificate.
    pub client_certificates: bool,
    /// Set if requests have to show a token.
    pub tokens: bool,
    /// Set if a client certificate has to have a name that the settings list.
    #[serde(default)]
    pub certificate_names: bool,
    /// Networks from which callers are accepted; empty for all.
    pub allow: Vec<Network>,
    /// Setting `access.open`: every caller may do everything where no address, token or certificate is required.
    #[serde(default)]
    pub open: bool,
    /// Address of the listener for liveness and metrics, if it is another.
    pub admin_listen: Option<String>,
    /// Path of the Unix socket for callers on this node.
    pub socket: Option<String>,
    /// Set if `listen` is a loopback address.
    pub loopback: bool,
    /// Warnings for the operator.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Exposure {
    /// `true` if neither a certificate, a token nor a listed address is required of a caller from elsewhere.
    fn is_unguarded(&self) -> bool {
        !self.client_certificates && !self.tokens && self.allow.is_empty()
    }

    /// Description of who may call, in a sentence.
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

    /// Adds the warnings for the operator.
    pub fn with_warnings(self) -> Exposure {
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

/// Status of the whole node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub hostname: String,
    pub boot_id: String,
    /// Kernel release.
    pub kernel: String,
    pub agent_version: String,
    /// Page sizes that this kernel has pools for.
    pub page_sizes: Vec<PageSize>,
    /// Size of the pages of a hugetlbfs that is mounted without a size, and of guests that name none.
    #[serde(default)]
    pub default_page_size: Option<PageSize>,
    /// Pools by NUMA node and size.
    pub pools: Vec<PoolStatus>,
    /// Pools by size.
    pub totals: Vec<PoolTotals>,
    pub memory: NodeMemory,
    /// Online CPUs.
    pub cpus: Vec<Cpu>,
    /// hugetlbfs mounts.
    pub mounts: Vec<HugetlbMount>,
    pub engine: EngineStatus,
    /// Exposure of the running agent; `None` if no agent runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Exposure>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Parts of the node that could not be read.
    pub errors: Vec<Fault>,
}
