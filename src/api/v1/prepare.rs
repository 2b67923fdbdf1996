//! `POST /v1/prepare`: prepares the node for targets.

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::super::audit::{AuditedCall, AuditedChange};
use super::super::body;
use super::super::errors::Problem;
use super::pools::page_size;
use super::{SharedV1, report};
use crate::model::access::Principal;
use crate::model::code::Code;
use crate::model::policy::PoolPolicy;
use crate::model::pools::{Placement, PoolWant};
use crate::model::prepare::PrepareRequest;
use crate::model::units::{NumaNode, PageSize};

/// Limit of page requests in one call; a machine has few page sizes and nodes.
const MOST_ENTRIES: usize = 64;
/// Limit of NUMA nodes in one page request.
const MOST_NODES: usize = 1024;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PrepareBody {
    /// Desired free pages; the configured default if omitted, none if empty.
    #[serde(deserialize_with = "body::objects")]
    pub hugepages: Option<Vec<HugepagesBody>>,
    /// Set if pages that were added are kept although fewer than requested could be added.
    pub keep_partial: bool,
    /// Set if the engine is prepared too; `true` if omitted.
    pub engine: Option<bool>,
}

/// Request for pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HugepagesBody {
    /// Size of a page in MiB; 2 if omitted.
    pub size_mib: Option<u64>,
    /// Size of a page in KiB, instead of `size_mib`; for pages of less than a MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_kib: Option<u64>,
    /// Desired free pages.
    pub pages: u64,
    /// NUMA nodes that supply the pages; all nodes evenly, if omitted.
    pub nodes: Option<Vec<u32>>,
    /// Set if another NUMA node may supply a shortfall; as in the settings, if omitted.
    pub move_shortfall: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PrepareQuery {
    dry_run: bool,
}

impl PrepareBody {
    /// Validates the body. Omitted fields are as in `defaults`.
    ///
    /// # Errors
    /// 400 with the field and the reason.
    pub fn into_request(
        self,
        dry_run: bool,
        defaults: &PoolPolicy,
    ) -> Result<PrepareRequest, Problem> {
        let hugepages = match self.hugepages {
            None => vec![default_want(defaults.default_pages, defaults)],
            Some(entries) if entries.len() > MOST_ENTRIES => {
                return Err(invalid(format!("more than {MOST_ENTRIES} entries in hugepages")));
            }
            Some(entries) => {
                entries.into_iter().map(|entry| want(entry, defaults)).collect::<Result<_, _>>()?
            }
        };
        Ok(PrepareRequest {
            hugepages,
            keep_partial: self.keep_partial,
            engine: self.engine.unwrap_or(true),
            dry_run,
        })
    }
}

/// Request for `pages` of 2 MiB, spread over all NUMA nodes. For a call that only gives a number.
pub fn default_want(pages: u64, defaults: &PoolPolicy) -> PoolWant {
    PoolWant {
        size: PageSize::MIB_2,
        pages,
        placement: Placement::Spread,
        move_shortfall: defaults.move_shortfall,
    }
}

fn want(entry: HugepagesBody, defaults: &PoolPolicy) -> Result<PoolWant, Problem> {
    Ok(PoolWant {
        size: page_size(entry.size_mib, entry.size_kib)?.unwrap_or(PageSize::MIB_2),
        pages: entry.pages,
        placement: placement(entry.nodes)?,
        move_shortfall: entry.move_shortfall.unwrap_or(defaults.move_shortfall),
    })
}

/// Placement on the NUMA nodes `nodes`; spread over all nodes, if omitted.
///
/// # Errors
/// 400 if `nodes` is empty or has more than `MOST_NODES` entries.
pub fn placement(nodes: Option<Vec<u32>>) -> Result<Placement, Problem> {
    match nodes {
        None => Ok(Placement::Spread),
        Some(nodes) if nodes.is_empty() || nodes.len() > MOST_NODES => {
            Err(invalid(format!("nodes must name between 1 and {MOST_NODES} NUMA nodes")))
        }
        Some(mut nodes) => {
            nodes.sort_unstable();
            nodes.dedup();
            Ok(Placement::Bound(nodes.into_iter().map(NumaNode).collect()))
        }
    }
}

/// NUMA nodes of `placement` in wire form; the reverse of [`placement`].
pub fn nodes_of(placement: &Placement) -> Option<Vec<u32>> {
    match placement {
        Placement::Spread => None,
        Placement::Bound(nodes) => Some(nodes.iter().map(|node| node.0).collect()),
    }
}

fn invalid(text: String) -> Problem {
    Problem::new(Code::InvalidBody, text)
}

pub async fn post(
    State(api): State<SharedV1>,
    query: Result<Query<PrepareQuery>, axum::extract::rejection::QueryRejection>,
    by: Extension<Principal>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidQuery, e.body_text()))?;
    let bytes = body::read(body, api.http).await?;
    let request =
        body::parse::<PrepareBody>(&bytes)?.into_request(query.dry_run, &api.pool_defaults)?;
    drop(bytes);
    let call =
        (!request.dry_run).then(|| AuditedCall::begins(AuditedChange::of("prepare", by.0), None));
    let events = api.progress.watch();
    match api.prepare.begin(request).await {
        Ok((work, done)) => report::answer_with(&headers, (work, events), done, call).await,
        Err(fault) => {
            call.into_iter().for_each(|call| call.ends(Some(&fault)));
            Err(Problem::of(fault))
        }
    }
}
