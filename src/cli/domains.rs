//! `vhost-agent domains`.

use anyhow::Result;
use hyper::Method;

use super::agent_client::{ANSWER, NodeRoot};
use super::render::print_domains;
use super::{Output, exit};
use crate::api::v1::domains::DomainsView;

pub(super) async fn run(place: NodeRoot, output: Output) -> Result<u8> {
    let agent = place.looker().await?;
    let domains: DomainsView = agent.call(Method::GET, "/v1/domains", None::<&()>, ANSWER).await?;
    print_domains(&domains, output)?;
    Ok(exit::HOLDS)
}
