//! `vhost-agent reclaim`.

use anyhow::Result;
use clap::Args;
use hyper::Method;

use super::reach::{ANSWER, Owner, Place};
use super::render::print_reclaim;
use super::{Output, exit, whole_mib};
use crate::agent::memory::ReclaimOrder;
use crate::api::v1::pools::ReclaimBody;
use crate::model::prepare::ReclaimReport;
use crate::model::units::{NumaNode, PageSize};

/// Which pages.
#[derive(Debug, Args)]
pub(super) struct Which {
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

pub(super) async fn run(place: Place, which: Which, output: Output) -> Result<u8> {
    let Which { page_size: size, node, dry_run } = which;
    let owner = if dry_run { place.looker().await? } else { place.owner().await? };
    let report: ReclaimReport = match owner {
        Owner::Here(core, _lock) => {
            let order = ReclaimOrder { size, node: node.map(NumaNode), keep: 0, dry_run };
            core.pools.reclaim(order).await?
        }
        Owner::There(remote) => {
            let body = ReclaimBody { size_mib: size.map(whole_mib).transpose()?, node, dry_run };
            remote.call(Method::POST, "/v1/reclaim", Some(&body), ANSWER).await?
        }
    };
    print_reclaim(&report, output)?;
    Ok(if report.errors.is_empty() { exit::HOLDS } else { exit::FAILED })
}
