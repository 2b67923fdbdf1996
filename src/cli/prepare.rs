//! `vhost-agent plan` and `vhost-agent prepare`.

use anyhow::Result;
use clap::Args;
use hyper::Method;

use super::agent_client::{Agent, NodeRoot};
use super::render::{ProgressBars, print, print_prepare};
use super::{Output, Usage, exit};
use crate::api::v1::pools::size_fields;
use crate::api::v1::prepare::{HugepagesBody, PrepareBody};
use crate::config::Settings;
use crate::model::prepare::{Outcome, PrepareReport};
use crate::model::sizing;
use crate::model::target::{TargetName, TargetSpec};
use crate::model::units::PageSize;

/// Options of the request to prepare the node.
#[derive(Debug, Args)]
pub(super) struct PrepareArgs {
    /// Free hugepages wanted [default: the setting pools.default_pages, 1024]
    #[arg(long, value_name = "N")]
    pages: Option<u64>,
    /// Size of the pages
    #[arg(long, value_name = "SIZE", default_value = "2M")]
    page_size: PageSize,
    /// Only on this NUMA node; may be given more than once
    #[arg(long = "node", value_name = "NUMBER")]
    nodes: Vec<u32>,
    /// Let another NUMA node make up for pages that one cannot provide
    #[arg(long)]
    move_shortfall: bool,
    /// Keep the pages of an incomplete growth
    #[arg(long)]
    keep_partial: bool,
    /// Do not change the engine
    #[arg(long)]
    no_engine: bool,
}

impl PrepareArgs {
    /// Defaults of `prepare`, without flags.
    pub(super) fn usual() -> PrepareArgs {
        PrepareArgs {
            pages: None,
            page_size: PageSize::MIB_2,
            nodes: Vec::new(),
            move_shortfall: false,
            keep_partial: false,
            no_engine: false,
        }
    }

    /// Number of pages to request. The default in the settings counts pages of 2 MiB, so other sizes need `--pages`.
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

    /// Users of the requested pages, `target` among them; `None` for another size, which no target takes.
    pub(super) fn explained(
        &self,
        target: &TargetSpec,
        settings: &Settings,
    ) -> Result<Option<String>, Usage> {
        let is_small = self.page_size == PageSize::MIB_2;
        let pages = self.count(settings)?;
        Ok(is_small.then(|| sizing::explain(pages, target, &settings.target)))
    }

    /// Body of the request.
    pub(super) fn body(&self, settings: &Settings) -> Result<PrepareBody, Usage> {
        let (size_mib, size_kib) = size_fields(self.page_size);
        let entry = HugepagesBody {
            size_mib,
            size_kib,
            pages: self.count(settings)?,
            nodes: (!self.nodes.is_empty()).then(|| self.nodes.clone()),
            move_shortfall: self.move_shortfall.then_some(true),
        };
        Ok(PrepareBody {
            hugepages: Some(vec![entry]),
            keep_partial: self.keep_partial,
            engine: Some(!self.no_engine),
        })
    }
}

pub(super) async fn run(
    place: NodeRoot,
    args: PrepareArgs,
    dry_run: bool,
    output: Output,
) -> Result<u8> {
    let body = args.body(&place.settings)?;
    let bars = ProgressBars::new(output, dry_run);
    let agent = if dry_run { place.looker().await? } else { place.owner().await? };
    let report = prepared(&agent, &body, dry_run, &bars).await?;
    bars.clear();
    print_prepare(&report, output)?;
    if output == Output::Table && matches!(report.outcome, Outcome::WouldChange | Outcome::Failed) {
        let settings = &place.settings.target;
        let target = settings.spec(TargetName::usual(), settings.kind);
        let target = target.map_err(|fault| Usage(fault.text))?;
        if let Some(text) = args.explained(&target, &place.settings)? {
            print(&text)?;
        }
    }
    Ok(exit::of(report.outcome))
}

/// Requests the preparation, and shows its progress.
pub(super) async fn prepared(
    agent: &Agent,
    body: &PrepareBody,
    dry_run: bool,
    bars: &ProgressBars,
) -> Result<PrepareReport> {
    let path = format!("/v1/prepare?dryRun={dry_run}");
    agent.report(Method::POST, &path, body, |progress| bars.show(progress)).await
}
