//! `vhost-agent plan` and `vhost-agent prepare`.

use anyhow::{Context, Result};
use clap::Args;
use tokio::sync::broadcast::error::RecvError;

use super::reach::{Owner, Place, Remote};
use super::render::{ProgressBars, print_prepare};
use super::{Output, Usage, exit, whole_mib};
use crate::api::v1::prepare::{HugepagesBody, Line, PrepareBody, placement};
use crate::config::Settings;
use crate::daemon::Core;
use crate::model::fault::Fault;
use crate::model::policy::PoolPolicy;
use crate::model::pools::PoolWant;
use crate::model::prepare::{PrepareReport, PrepareRequest};
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
    /// How many pages; the setting counts pages of 2 MiB only.
    fn count(&self, settings: &Settings) -> Result<u64, Usage> {
        match self.pages {
            Some(pages) => Ok(pages),
            None if self.page_size == PageSize::MIB_2 => Ok(settings.pools.default_pages),
            None => Err(Usage(format!(
                "--page-size {0} needs --pages: say how many pages of {0} are wanted",
                self.page_size
            ))),
        }
    }

    fn nodes(&self) -> Option<Vec<u32>> {
        (!self.nodes.is_empty()).then(|| self.nodes.clone())
    }

    /// For owners of our own.
    fn request(&self, pages: u64, dry_run: bool, defaults: &PoolPolicy) -> Result<PrepareRequest> {
        let want = PoolWant {
            size: self.page_size,
            pages,
            placement: placement(self.nodes()).map_err(|problem| Usage(problem.fault.text))?,
            move_shortfall: self.move_shortfall || defaults.move_shortfall,
        };
        Ok(PrepareRequest {
            hugepages: vec![want],
            keep_partial: self.keep_partial,
            engine: !self.no_engine,
            dry_run,
        })
    }

    /// For the agent that runs.
    fn body(&self, pages: u64) -> Result<PrepareBody, Usage> {
        let wish = HugepagesBody {
            size_mib: Some(whole_mib(self.page_size)?),
            pages,
            nodes: self.nodes(),
            move_shortfall: self.move_shortfall.then_some(true),
        };
        Ok(PrepareBody {
            hugepages: Some(vec![wish]),
            keep_partial: self.keep_partial,
            engine: Some(!self.no_engine),
        })
    }
}

/// Wishes that were judged.
pub(super) struct Asked {
    /// For owners of our own.
    request: PrepareRequest,
    /// For the agent that runs.
    pages: u64,
}

impl Wishes {
    /// What `prepare` means without a flag.
    pub(super) fn usual() -> Wishes {
        Wishes {
            pages: None,
            page_size: PageSize::MIB_2,
            nodes: Vec::new(),
            move_shortfall: false,
            keep_partial: false,
            no_engine: false,
        }
    }

    /// What they come to under these settings.
    pub(super) fn judged(&self, settings: &Settings, dry_run: bool) -> Result<Asked> {
        let pages = self.count(settings)?;
        Ok(Asked { request: self.request(pages, dry_run, &settings.pools)?, pages })
    }

    /// Has the owner do it.
    pub(super) async fn carried_out(
        &self,
        asked: Asked,
        owner: &Owner,
        bars: &ProgressBars,
    ) -> Result<PrepareReport> {
        let Asked { request, pages } = asked;
        match owner {
            Owner::Here(core, _lock) => {
                let work = async { Ok((*core.prepare.prepare(request).await?).clone()) };
                watched(core, work, bars).await
            }
            Owner::There(remote) => there(remote, &self.body(pages)?, request.dry_run, bars).await,
        }
    }
}

pub(super) async fn run(place: Place, wishes: Wishes, dry_run: bool, output: Output) -> Result<u8> {
    let asked = wishes.judged(&place.settings, dry_run)?;
    let bars = ProgressBars::new(output, dry_run);
    let owner = if dry_run { place.looker().await? } else { place.owner().await? };
    let report = wishes.carried_out(asked, &owner, &bars).await?;
    bars.clear();
    print_prepare(&report, output)?;
    Ok(exit::of(report.outcome))
}

/// Does `work` and shows what happens meanwhile.
pub(super) async fn watched<T>(
    core: &Core,
    work: impl Future<Output = Result<T, Fault>>,
    bars: &ProgressBars,
) -> Result<T> {
    let mut progress = core.progress.watch();
    tokio::pin!(work);
    loop {
        tokio::select! {
            // Cancel-safe: an event that was not received stays in the channel.
            event = progress.recv() => match event {
                Ok(event) => bars.show(&event),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(work.await?),
            },
            // Pinned: goes on when an event comes first.
            done = &mut work => return Ok(done?),
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
                Line::Alive => {}
                Line::Report(end) => report = Some(end),
                Line::Error(fault) => return Err(fault.into()),
            }
            Ok(())
        })
        .await?;
    report.context("the agent went away before it was done; what it did is in its log")
}
