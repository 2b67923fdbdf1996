//! `POST /v1/reclaim` and `POST /v1/restore`.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::super::audit::{AuditedCall, AuditedChange};
use super::super::body;
use super::super::errors::Problem;
use super::SharedV1;
use super::report::answer;
use crate::agent::memory::ReclaimOrder;
use crate::model::access::Principal;
use crate::model::code::Code;
use crate::model::prepare::PrepareReport;
use crate::model::units::{NumaNode, PageSize};

/// Pages to give back; without any field, all that the agent grew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ReclaimBody {
    /// Page size, in MiB; any if omitted.
    pub size_mib: Option<u64>,
    /// Page size in KiB, instead of `size_mib`; for pages of less than a MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_kib: Option<u64>,
    /// NUMA node of the pages; any if omitted.
    pub node: Option<u32>,
    /// Set if only the plan is requested.
    pub dry_run: bool,
}

impl TryFrom<ReclaimBody> for ReclaimOrder {
    type Error = Problem;

    fn try_from(body: ReclaimBody) -> Result<ReclaimOrder, Problem> {
        let size = page_size(body.size_mib, body.size_kib)?;
        Ok(ReclaimOrder { size, node: body.node.map(NumaNode), keep: 0, dry_run: body.dry_run })
    }
}

/// Page size, given in MiB or in KiB; `None` if neither is given.
///
/// # Errors
/// 400 if the value is no page size, or if both are given.
pub fn page_size(mib: Option<u64>, kib: Option<u64>) -> Result<Option<PageSize>, Problem> {
    let invalid = |text: String| Problem::new(Code::InvalidBody, text);
    match (mib, kib) {
        (None, None) => Ok(None),
        (Some(mib), None) => PageSize::from_mib(mib).map(Some).ok_or_else(|| {
            invalid(format!("sizeMib {mib} is no page size: 2 and 1024 are the usual ones"))
        }),
        (None, Some(kib)) => PageSize::from_kib(kib).map(Some).ok_or_else(|| {
            invalid(format!("sizeKib {kib} is no page size: 64 and 2048 are the usual ones"))
        }),
        (Some(_), Some(_)) => {
            Err(invalid("sizeMib and sizeKib are two ways to say one thing: give one".to_string()))
        }
    }
}

/// Page size in wire form: `sizeMib` and `sizeKib`, one of which is given. MiB where possible, because every version of
/// the agent knows `sizeMib`.
pub fn size_fields(size: PageSize) -> (Option<u64>, Option<u64>) {
    match size.kib().is_multiple_of(1024) {
        true => (Some(size.kib() / 1024), None),
        false => (None, Some(size.kib())),
    }
}

/// Gives back unused pages that the agent grew.
pub async fn reclaim(
    State(api): State<SharedV1>,
    by: Extension<Principal>,
    body: Body,
) -> Result<Response, Problem> {
    let bytes = body::read(body, api.http).await?;
    let order: ReclaimOrder = body::parse::<ReclaimBody>(&bytes)?.try_into()?;
    drop(bytes);
    let call =
        (!order.dry_run).then(|| AuditedCall::begins(AuditedChange::of("reclaim", by.0), None));
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

/// Restores the pages that the agent held before the last boot.
pub async fn restore(
    State(api): State<SharedV1>,
    by: Extension<Principal>,
    body: Body,
) -> Result<Response, Problem> {
    let bytes = body::read(body, api.http).await?;
    let _: Nothing = body::parse(&bytes)?;
    let call = AuditedCall::begins(AuditedChange::of("restore", by.0), None);
    let began = std::time::Instant::now();
    let report = PrepareReport::of(false, api.pools.restore(false).await, began.elapsed());
    call.reports(&report);
    Ok(answer(&report))
}

/// Body without fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}
