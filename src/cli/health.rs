//! `vhost-agent health`.

use anyhow::Result;
use clap::Args;
use hyper::Method;
use url::form_urlencoded;

use super::agent_client::{ANSWER, Agent, NodeRoot};
use super::render::{print_health, print_proven};
use super::{Output, exit};
use crate::config::Settings;
use crate::model::deep::ProvenHealth;
use crate::model::path::CleanPath;
use crate::model::target::{TargetHealth, TargetName, TargetState};

/// Target to check.
#[derive(Debug, Args)]
pub(super) struct TargetArg {
    /// Name of the target and of its container
    #[arg(default_value = "zbs-vhost")]
    name: TargetName,
    /// Path of the control socket
    #[arg(long, value_name = "FILE")]
    control_sock: Option<CleanPath>,
    /// Verify the data path: write to a small disk of the agent's own and read it back
    #[arg(long)]
    deep: bool,
}

pub(super) async fn run(place: NodeRoot, which: TargetArg, output: Output) -> Result<u8> {
    let agent = place.looker().await?;
    let control = which.control_sock.as_ref();
    if which.deep {
        let health = proven(&agent, &place.settings, &which.name, control).await?;
        print_proven(&health, output)?;
        return Ok(if health.is_good() { exit::HOLDS } else { exit::FAILED });
    }
    let path = route(&which.name, control, false);
    let health: TargetHealth = agent.call(Method::GET, &path, None::<&()>, ANSWER).await?;
    print_health(&health, output)?;
    Ok(if health.state == TargetState::Serving { exit::HOLDS } else { exit::FAILED })
}

fn route(name: &TargetName, control: Option<&CleanPath>, deep: bool) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("deep", if deep { "true" } else { "false" });
    if let Some(path) = control {
        query.append_pair("controlSock", path.as_str());
    }
    format!("/v1/targets/{name}/health?{}", query.finish())
}

/// Fetches the health of a target, with a deep probe.
pub(super) async fn proven(
    agent: &Agent,
    settings: &Settings,
    name: &TargetName,
    control: Option<&CleanPath>,
) -> Result<ProvenHealth> {
    let within = ANSWER + settings.health.deep_timeout;
    agent.call(Method::GET, &route(name, control, true), None::<&()>, within).await
}
