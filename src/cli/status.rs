//! `vhost-agent status`.

use anyhow::Result;
use hyper::Method;

use super::reach::{ANSWER, Owner, Place};
use super::render::print_node;
use super::{Output, exit};
use crate::model::node::NodeStatus;
use crate::model::status::{NodeReport, TargetReport};

pub(super) async fn run(place: Place, output: Output) -> Result<u8> {
    let (status, targets): (NodeStatus, Option<Vec<TargetReport>>) = match place.looker().await? {
        Owner::Here(core, _lock) => ((*core.node.status().await?).clone(), None),
        Owner::There(remote) => {
            let status = remote.call(Method::GET, "/v1/node", None::<&()>, ANSWER).await?;
            // An agent that is older than this command does not tell of them.
            let told = remote.call::<NodeReport>(Method::GET, "/v1/status", None::<&()>, ANSWER);
            (status, Some(told.await.map(|report| report.targets).unwrap_or_default()))
        }
    };
    print_node(&status, targets.as_deref(), output)?;
    Ok(if status.errors.is_empty() { exit::HOLDS } else { exit::FAILED })
}
