//! `POST /v1/prepare`: the node is made fit for targets.

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Deserializer, Serialize};

use super::super::body;
use super::super::errors::Problem;
use super::super::journal::{Call, Change};
use super::pools::page_size;
use super::{Shared, report};
use crate::model::access::Principal;
use crate::model::code::Code;
use crate::model::policy::PoolPolicy;
use crate::model::pools::{Placement, PoolWant};
use crate::model::prepare::PrepareRequest;
use crate::model::units::{NumaNode, PageSize};

/// Wishes that one call may have; a machine has few page sizes and nodes.
const MOST_WISHES: usize = 64;
/// NUMA nodes that one wish may name.
const MOST_NODES: usize = 1024;

/// The request's body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PrepareBody {
    /// Wanted free pages; the configured default when it is not given, none when it is empty.
    #[serde(deserialize_with = "objects")]
    pub hugepages: Option<Vec<HugepagesBody>>,
    /// Whether a growth that came out short is kept.
    pub keep_partial: bool,
    /// Whether the engine is looked after; yes when it is not given.
    pub engine: Option<bool>,
}

/// One wish for pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HugepagesBody {
    /// Size of a page in MiB; 2 when it is not given.
    pub size_mib: Option<u64>,
    /// The same in KiB, for pages of less than a MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_kib: Option<u64>,
    /// Wanted free pages.
    pub pages: u64,
    /// On these NUMA nodes; on all, evenly, when it is not given.
    pub nodes: Option<Vec<u32>>,
    /// Whether another node may give what one cannot.
    pub move_shortfall: Option<bool>,
}

fn objects<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<HugepagesBody>>, D::Error> {
    let wishes = Option::<Vec<body::Object<HugepagesBody>>>::deserialize(d)?;
    Ok(wishes.map(|wishes| wishes.into_iter().map(|wish| wish.0).collect()))
}

/// The query.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PrepareQuery {
    dry_run: bool,
}

impl PrepareBody {
    /// Judges the body.
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
            Some(wishes) if wishes.len() > MOST_WISHES => {
                return Err(invalid(format!("more than {MOST_WISHES} entries in hugepages")));
            }
            Some(wishes) => {
                wishes.into_iter().map(|wish| want(wish, defaults)).collect::<Result<_, _>>()?
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

/// The wish of a call that only names a number: 2 MiB pages, spread.
pub fn default_want(pages: u64, defaults: &PoolPolicy) -> PoolWant {
    PoolWant {
        size: PageSize::MIB_2,
        pages,
        placement: Placement::Spread,
        move_shortfall: defaults.move_shortfall,
    }
}

fn want(wish: HugepagesBody, defaults: &PoolPolicy) -> Result<PoolWant, Problem> {
    Ok(PoolWant {
        size: page_size(wish.size_mib, wish.size_kib)?.unwrap_or(PageSize::MIB_2),
        pages: wish.pages,
        placement: placement(wish.nodes)?,
        move_shortfall: wish.move_shortfall.unwrap_or(defaults.move_shortfall),
    })
}

/// On these NUMA nodes, or spread over all.
///
/// # Errors
/// 400 when the list is empty or longer than any machine's.
fn placement(nodes: Option<Vec<u32>>) -> Result<Placement, Problem> {
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

fn invalid(text: String) -> Problem {
    Problem::new(Code::InvalidBody, text)
}

/// Prepares the node.
pub async fn post(
    State(api): State<Shared>,
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
    let call = (!request.dry_run).then(|| Call::begins(Change::of("prepare", by.0), None));
    let events = api.progress.watch();
    match api.prepare.begin(request).await {
        Ok((work, done)) => report::answer_with(&headers, (work, events), done, call).await,
        Err(fault) => {
            call.into_iter().for_each(|call| call.ends(Some(&fault)));
            Err(Problem::of(fault))
        }
    }
}
