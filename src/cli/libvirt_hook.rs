//! `vhost-agent libvirt-hook`: reserves the hugepages of a virtual machine before libvirt starts it, and gives them back
//! after it (<https://libvirt.org/hooks.html>).
//!
//! ```text
//! migrate, prepare ──▶ POST reservation     started ──▶ claim with QEMU's pid     release ──▶ DELETE
//! ```
//! libvirt waits for the hook, and refuses the start if the hook fails. Nothing is printed to the standard output: libvirt
//! would take it for a definition.

use std::future::Future;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::agent_client::{Agent, NodeRoot};
use super::{Usage, exit};
use crate::agent::observe::libvirt::{default_page_size, machine_pid};
use crate::api::v1::reservations::{MemoryBody, ReservationBody};
use crate::model::code::Code;
use crate::model::domain::{Domain, MOST_XML};
use crate::model::fault::Fault;
use crate::model::policy::{LibvirtPolicy, ReserveFor, WithoutAgent};

/// Time from the hook's start within which it is decided that the agent does not answer.
const AGENT_ANSWERS: Duration = Duration::from_millis(800);
/// Time for the agent to find the pages: longer than the kernel may take (`pools.write_timeout`, for each size and node).
const PAGES_FOUND: Duration = Duration::from_secs(150);
/// Time for an agent that has just started to restore its own pages.
const RESTORED: Duration = Duration::from_secs(60);
/// Pause between calls to an agent that restores its pages.
const RESTORE_PAUSE: Duration = Duration::from_millis(250);

/// Arguments that libvirt gives.
#[derive(Debug, Args)]
pub(super) struct HookArgs {
    /// Name of the virtual machine
    #[arg(allow_hyphen_values = true)]
    domain: String,
    /// Operation, such as prepare
    #[arg(allow_hyphen_values = true)]
    operation: String,
    /// Rest of what libvirt gives
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// What is done at an operation of libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Reserve { arrival: bool },
    Claim,
    Release,
}

impl HookArgs {
    fn act(&self) -> Option<Act> {
        let part = self.rest.first().map(String::as_str);
        match (self.operation.as_str(), part) {
            ("migrate", Some("begin")) => Some(Act::Reserve { arrival: true }),
            ("prepare", Some("begin")) => Some(Act::Reserve { arrival: false }),
            ("started", Some("begin")) => Some(Act::Claim),
            ("release", Some("end")) => Some(Act::Release),
            _ => None,
        }
    }

    /// Reads the definition; `None` if there is nothing to do for it.
    ///
    /// # Errors
    /// When the definition cannot be read.
    pub(super) fn read(self, root: &Path, policy: &LibvirtPolicy) -> Result<Option<HookCall>> {
        let Some(act) = self.act() else { return Ok(None) };
        let mut xml = String::new();
        let read = std::io::stdin().lock().take(MOST_XML).read_to_string(&mut xml);
        read.context("the definition of the virtual machine cannot be read from standard input")?;
        let domain = Domain::parse(&xml, default_page_size(root))
            .with_context(|| format!("the definition of {} is not understood", self.domain))?;
        let is_meant = match policy.reserve {
            ReserveFor::VhostUser => !domain.vhost_user_disks.is_empty(),
            ReserveFor::Hugepages => true,
            ReserveFor::None => false,
        };
        if !is_meant || domain.hugepages.is_empty() {
            return Ok(None);
        }
        Ok(Some(HookCall { machine: self.domain, act, domain }))
    }
}

/// Call for a virtual machine whose hugepages are to be reserved.
pub(super) struct HookCall {
    machine: String,
    act: Act,
    domain: Domain,
}

/// Reservation, as far as the hook reads it.
#[derive(Debug, Deserialize)]
struct Reserved {
    arrival: bool,
}

#[derive(Debug, Serialize)]
struct Claim {
    pid: Option<u32>,
}

impl HookCall {
    /// Makes the call; returns the exit code for libvirt.
    pub(super) async fn run(self, node: &NodeRoot) -> u8 {
        let start = Instant::now();
        let machine = &self.machine;
        let agent = match timeout_at(start + AGENT_ANSWERS, answering(node)).await {
            Ok(agent) => agent,
            Err(_) => Err(anyhow!("it has not answered within {AGENT_ANSWERS:?}")),
        };
        let agent = match (agent, self.act) {
            (Ok(agent), _) => agent,
            (Err(why), Act::Reserve { .. }) => return self.without_agent(node, &why),
            (Err(why), _) => {
                eprintln!("vhost-agent: {machine}: the agent does not answer: {why:#}");
                return exit::HOLDS;
            }
        };
        match self.act {
            Act::Reserve { arrival } => self.reserve(node, &agent, arrival).await,
            Act::Claim => told(machine, self.claim(&agent, node, start + AGENT_ANSWERS)).await,
            Act::Release => told(machine, self.release(&agent, start + AGENT_ANSWERS)).await,
        }
    }

    fn without_agent(&self, node: &NodeRoot, why: &anyhow::Error) -> u8 {
        let machine = &self.machine;
        match node.settings.libvirt.without_agent {
            WithoutAgent::Allow => {
                eprintln!(
                    "vhost-agent: no hugepages are reserved for {machine}, as the agent does not answer: {why:#}"
                );
                exit::HOLDS
            }
            WithoutAgent::Refuse => {
                eprintln!(
                    "vhost-agent: {machine} may not start, as the agent does not answer (libvirt.without_agent = \"refuse\"; \
                     systemctl start vhost-agent): {why:#}"
                );
                exit::FAILED
            }
        }
    }

    async fn reserve(&self, node: &NodeRoot, agent: &Agent, arrival: bool) -> u8 {
        let body = ReservationBody {
            name: self.domain.reservation(),
            memory: Some(self.domain.hugepages.iter().map(MemoryBody::from).collect()),
            lease_seconds: u32::try_from(node.settings.libvirt.lease.as_secs()).ok(),
            arrival,
        };
        let restored = Instant::now() + RESTORED;
        loop {
            let post =
                agent.call::<Reserved>(Method::POST, "/v1/reservations", Some(&body), PAGES_FOUND);
            let Err(error) = post.await else { return exit::HOLDS };
            let code = error.downcast_ref::<Fault>().map(|fault| fault.code);
            let is_answer = code.is_some() || error.is::<Usage>();
            match code {
                Some(Code::PoolsBusy) if Instant::now() < restored => sleep(RESTORE_PAUSE).await,
                // Of the guest that libvirt restarts, or of one whose end was not told.
                Some(Code::ReservationConflict) => return self.reserve_anew(agent, body).await,
                Some(Code::Stopping) => return self.without_agent(node, &error),
                // The agent has died meanwhile, or its answer does not come.
                _ if !is_answer => return self.without_agent(node, &error),
                _ => return self.refused(&error),
            }
        }
    }

    /// Replaces a reservation of the same virtual machine: libvirt runs it once on a node, and so it has ended.
    async fn reserve_anew(&self, agent: &Agent, mut body: ReservationBody) -> u8 {
        let path = format!("/v1/reservations/{}", self.domain.reservation());
        let before = agent.call::<Reserved>(Method::GET, &path, None::<&()>, AGENT_ANSWERS);
        // It stays an arrival where the definition differs between the operations.
        body.arrival |= before.await.is_ok_and(|before| before.arrival);
        let deadline = Instant::now() + Duration::from_secs(10);
        if let Err(error) = self.release(agent, deadline).await {
            return self.refused(&error);
        }
        let again =
            agent.call::<Reserved>(Method::POST, "/v1/reservations", Some(&body), PAGES_FOUND);
        match again.await {
            Ok(_) => exit::HOLDS,
            Err(error) => self.refused(&error),
        }
    }

    fn refused(&self, error: &anyhow::Error) -> u8 {
        eprintln!("vhost-agent: {} gets no hugepages: {error:#}", self.machine);
        exit::FAILED
    }

    async fn claim(&self, agent: &Agent, node: &NodeRoot, deadline: Instant) -> Result<()> {
        let path = format!("/v1/reservations/{}/claim", self.domain.reservation());
        let body = Claim { pid: machine_pid(&node.root, &self.machine) };
        let call = agent.call::<Reserved>(Method::POST, &path, Some(&body), PAGES_FOUND);
        // It is queued where the agent is busy, and done then.
        timeout_at(deadline, call).await.context("the claim is still under way")??;
        Ok(())
    }

    async fn release(&self, agent: &Agent, deadline: Instant) -> Result<()> {
        let path = format!("/v1/reservations/{}", self.domain.reservation());
        let call = agent.call::<Value>(Method::DELETE, &path, None::<&()>, PAGES_FOUND);
        timeout_at(deadline, call).await.context("the release is still under way")??;
        Ok(())
    }
}

/// Agent of this node, once it has answered.
async fn answering(node: &NodeRoot) -> Result<Agent> {
    let agent = node.at_socket().await.context("nothing listens at its socket (access.socket)")?;
    agent.call::<Value>(Method::GET, "/healthz", None::<&()>, AGENT_ANSWERS).await?;
    Ok(agent)
}

/// Tells an error that does not keep libvirt from going on.
async fn told(machine: &str, done: impl Future<Output = Result<()>>) -> u8 {
    if let Err(error) = done.await {
        eprintln!("vhost-agent: {machine}: {error:#}");
    }
    exit::HOLDS
}
