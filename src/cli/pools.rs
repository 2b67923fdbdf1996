//! `vhost-agent pools restore`, run by `vhost-agent-pools.service` early in boot.

use anyhow::Result;
use clap::Subcommand;
use hyper::Method;

use super::agent_client::{ANSWER, NodeRoot};
use super::render::print_prepare;
use super::{Output, exit};
use crate::model::prepare::{Outcome, PrepareReport};

/// Actions on the pools.
#[derive(Debug, Subcommand)]
pub(super) enum PoolsCommand {
    /// Restore the hugepages that the agent held before the last boot
    Restore,
}

pub(super) async fn run(place: NodeRoot, command: &PoolsCommand, output: Output) -> Result<u8> {
    let PoolsCommand::Restore = command;
    // The agent's own limit is twice that of a write.
    let within = place.settings.pools.write_timeout * 2 + ANSWER;
    let agent = place.owner().await?;
    let report: PrepareReport =
        agent.call(Method::POST, "/v1/restore", None::<&()>, within).await?;
    print_prepare(&report, output)?;
    Ok(if report.outcome == Outcome::Failed { exit::FAILED } else { exit::HOLDS })
}
