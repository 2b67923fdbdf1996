//! `vhost-agent status`.

use anyhow::Result;
use hyper::Method;

use super::reach::{ANSWER, Owner, Place};
use super::render::print_node;
use super::{Output, exit};
use crate::model::node::NodeStatus;

pub(super) async fn run(place: Place, output: Output) -> Result<u8> {
    let (status, served): (NodeStatus, bool) = match place.looker().await? {
        Owner::Here(core, _lock) => ((*core.node.status().await?).clone(), false),
        Owner::There(remote) => {
            (remote.call(Method::GET, "/v1/node", None::<&()>, ANSWER).await?, true)
        }
    };
    print_node(&status, served, output)?;
    Ok(if status.errors.is_empty() { exit::HOLDS } else { exit::FAILED })
}
