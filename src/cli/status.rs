//! `vhost-agent status`.

use anyhow::Result;
use hyper::Method;

use super::agent_client::{ANSWER, NodeRoot};
use super::render::print_node;
use super::{Output, exit};
use crate::model::node::NodeStatus;
use crate::model::status::NodeReport;

pub(super) async fn run(place: NodeRoot, output: Output) -> Result<u8> {
    let agent = place.looker().await?;
    let status: NodeStatus = agent.call(Method::GET, "/v1/node", None::<&()>, ANSWER).await?;
    // Only a permanent agent knows the targets' status, and one older than this command does not report it.
    let targets = match agent.is_here() {
        true => None,
        false => {
            let reported = agent.call::<NodeReport>(Method::GET, "/v1/status", None::<&()>, ANSWER);
            Some(reported.await.map(|report| report.targets).unwrap_or_default())
        }
    };
    print_node(&status, targets.as_deref(), output)?;
    Ok(if status.errors.is_empty() { exit::HOLDS } else { exit::FAILED })
}
