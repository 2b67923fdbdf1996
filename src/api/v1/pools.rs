//! `POST /v1/reclaim` and `POST /v1/restore`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::super::Shared;
use super::super::body;
use super::super::errors::Problem;
use super::super::journal::Call;
use super::prepare::answer;
use crate::agent::memory::ReclaimOrder;
use crate::model::code::Code;
use crate::model::prepare::PrepareReport;
use crate::model::units::{NumaNode, PageSize};

/// Which pages to give back; everything the agent grew when nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ReclaimBody {
    /// Pages of this size only, in MiB.
    pub size_mib: Option<u64>,
    /// On this NUMA node only.
    pub node: Option<u32>,
    /// Whether only the plan is wanted.
    pub dry_run: bool,
}

impl TryFrom<ReclaimBody> for ReclaimOrder {
    type Error = Problem;

    fn try_from(body: ReclaimBody) -> Result<ReclaimOrder, Problem> {
        let size = body.size_mib.map(page_size).transpose()?;
        Ok(ReclaimOrder { size, node: body.node.map(NumaNode), keep: 0, dry_run: body.dry_run })
    }
}

/// A page size in MiB.
///
/// # Errors
/// 400 for what no hugepage is.
pub fn page_size(mib: u64) -> Result<PageSize, Problem> {
    PageSize::from_mib(mib).ok_or_else(|| {
        let text = format!("sizeMib {mib} is no page size: 2 and 1024 are the usual ones");
        Problem::new(Code::InvalidBody, text)
    })
}

/// Gives back what the agent grew and nobody uses.
pub async fn reclaim(State(api): State<Shared>, body: Body) -> Result<Response, Problem> {
    let bytes = body::read(body, api.body).await?;
    let order: ReclaimOrder = body::parse::<ReclaimBody>(&bytes)?.try_into()?;
    drop(bytes);
    let call = (!order.dry_run).then(|| Call::begins("reclaim", None));
    let result = api.pools.reclaim(order).await;
    if let Some(call) = call {
        call.ends(result.as_ref().map_or_else(Some, |report| report.errors.first()));
    }
    let report = result.map_err(Problem::of)?;
    if let Some(first) = report.errors.first() {
        let extension = serde_json::to_value(&report).ok().map(|value| ("report", value));
        return Err(Problem { extension, ..Problem::of(first.clone()) });
    }
    Ok(Json(report).into_response())
}

/// Takes again what the agent held before the last boot.
pub async fn restore(State(api): State<Shared>, body: Body) -> Result<Response, Problem> {
    let bytes = body::read(body, api.body).await?;
    let _: Nothing = body::parse(&bytes)?;
    let call = Call::begins("restore", None);
    let began = std::time::Instant::now();
    let report = PrepareReport::of(false, api.pools.restore(false).await, began.elapsed());
    call.reports(&report);
    Ok(answer(&report))
}

/// A body that says nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}
