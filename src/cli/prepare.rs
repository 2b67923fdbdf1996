//! `vhost-agent plan` and `vhost-agent prepare`.

use anyhow::{Context, Result, anyhow};
use clap::Args;
use tokio::sync::broadcast::error::RecvError;

use super::reach::{Owner, Place, Remote};
use super::render::{ProgressBars, print_prepare};
use super::{Output, exit};
use crate::api::v1::prepare::{HugepagesBody, Line, PrepareBody};
use crate::daemon::{Core, defaults};
use crate::model::prepare::{Outcome, PrepareReport};
use crate::model::units::PageSize;

/// What the node is to be made fit for.
#[derive(Debug, Args)]
pub(super) struct Wishes {
    /// Free hugepages wanted [default: the setting pools.default_pages, 1024]
    #[arg(long, value_name = "N")]
    pages: Option<u64>,
    /// Their size
    #[arg(long, value_name = "SIZE", default_value = "2M")]
    page_size: PageSize,
    /// Only on this NUMA node; may be given more than once
    #[arg(long = "node", value_name = "NUMBER")]
    nodes: Vec<u32>,
    /// Let another node give what one cannot
    #[arg(long)]
    move_shortfall: bool,
    /// Keep a growth that came out short
    #[arg(long)]
    keep_partial: bool,
    /// Leave the engine alone
    #[arg(long)]
    no_engine: bool,
}

impl Wishes {
    fn body(&self, default_pages: u64) -> PrepareBody {
        let wish = HugepagesBody {
            size_mib: Some(self.page_size.kib() / 1024),
            pages: self.pages.unwrap_or(default_pages),
            nodes: (!self.nodes.is_empty()).then(|| self.nodes.clone()),
            move_shortfall: self.move_shortfall.then_some(true),
        };
        PrepareBody {
            hugepages: Some(vec![wish]),
            keep_partial: self.keep_partial,
            engine: Some(!self.no_engine),
        }
    }
}

pub(super) async fn run(place: Place, wishes: Wishes, dry_run: bool, output: Output) -> Result<u8> {
    let body = wishes.body(place.settings.pools.default_pages);
    let bars = ProgressBars::new(output, dry_run);
    let report = match place.owner()? {
        Owner::Here(core, _lock) => here(&core, &place, body, dry_run, &bars).await?,
        Owner::There(remote) => there(&remote, &body, dry_run, &bars).await?,
    };
    bars.clear();
    print_prepare(&report, output)?;
    Ok(match report.outcome {
        Outcome::Holds | Outcome::Changed => exit::HOLDS,
        Outcome::WouldChange => exit::WOULD_CHANGE,
        Outcome::Failed => exit::FAILED,
    })
}

async fn here(
    core: &Core,
    place: &Place,
    body: PrepareBody,
    dry_run: bool,
    bars: &ProgressBars,
) -> Result<PrepareReport> {
    let request = body
        .into_request(dry_run, defaults(&place.settings))
        .map_err(|problem| anyhow!(problem.fault))?;
    let mut progress = core.progress.watch();
    let work = core.prepare.prepare(request);
    tokio::pin!(work);
    loop {
        tokio::select! {
            // Cancel-safe: an event that was not received stays in the channel.
            event = progress.recv() => match event {
                Ok(event) => bars.show(&event),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok((*work.await?).clone()),
            },
            // Pinned: goes on when an event comes first.
            report = &mut work => return Ok((*report?).clone()),
        }
    }
}

async fn there(
    remote: &Remote,
    body: &PrepareBody,
    dry_run: bool,
    bars: &ProgressBars,
) -> Result<PrepareReport> {
    let path = format!("/v1/prepare?dryRun={dry_run}");
    let mut report = None;
    remote
        .lines(&path, body, "application/x-ndjson", |line| {
            match serde_json::from_slice(line).context("the agent streamed something else")? {
                Line::Progress(event) => bars.show(&event),
                Line::Report(end) => report = Some(end),
                Line::Error(fault) => return Err(fault.into()),
            }
            Ok(())
        })
        .await?;
    report.context("the agent went away before it was done; what it did is in its log")
}
