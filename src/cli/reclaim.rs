//! `vhost-agent reclaim`.

use anyhow::Result;
use clap::Args;
use hyper::Method;

use super::agent_client::{ANSWER, NodeRoot};
use super::render::print_reclaim;
use super::{Output, exit};
use crate::api::v1::pools::{ReclaimBody, size_fields};
use crate::model::prepare::ReclaimReport;
use crate::model::units::PageSize;

/// Pages to reclaim.
#[derive(Debug, Args)]
pub(super) struct PagesArg {
    /// Only pages of this size
    #[arg(long, value_name = "SIZE")]
    page_size: Option<PageSize>,
    /// Only on this NUMA node
    #[arg(long, value_name = "NUMBER")]
    node: Option<u32>,
    /// Show what would be given back; changes nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(place: NodeRoot, which: PagesArg, output: Output) -> Result<u8> {
    let PagesArg { page_size, node, dry_run } = which;
    let (size_mib, size_kib) = page_size.map_or((None, None), size_fields);
    let body = ReclaimBody { size_mib, size_kib, node, dry_run };
    let agent = if dry_run { place.looker().await? } else { place.owner().await? };
    let report: ReclaimReport =
        agent.call(Method::POST, "/v1/reclaim", Some(&body), ANSWER).await?;
    print_reclaim(&report, output)?;
    Ok(if report.errors.is_empty() { exit::HOLDS } else { exit::FAILED })
}
