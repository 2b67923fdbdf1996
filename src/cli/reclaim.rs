//! `vhost-agent reclaim`.

use anyhow::{Result, anyhow};
use clap::Args;
use hyper::Method;

use super::reach::{Owner, Place};
use super::render::print_reclaim;
use super::{Output, exit};
use crate::api::v1::pools::ReclaimBody;
use crate::model::prepare::ReclaimReport;
use crate::model::units::PageSize;

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
    let body = ReclaimBody {
        size_mib: which.page_size.map(|size| size.kib() / 1024),
        node: which.node,
        dry_run: which.dry_run,
    };
    let report: ReclaimReport = match place.owner()? {
        Owner::Here(core, _lock) => {
            let order = body
                .try_into()
                .map_err(|problem: crate::api::errors::Problem| anyhow!(problem.fault))?;
            core.pools.reclaim(order).await?
        }
        Owner::There(remote) => remote.call(Method::POST, "/v1/reclaim", Some(&body)).await?,
    };
    print_reclaim(&report, output)?;
    Ok(if report.errors.is_empty() { exit::HOLDS } else { exit::FAILED })
}
