//! `GET /v1/status`: status of the node, as published to the controller, with long-polling for changes.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::time::timeout;

use super::super::errors::Problem;
use super::super::{AgentPhase, Shared};
use crate::model::code::Code;
use crate::model::status::NodeReport;

/// Default wait for a change, in milliseconds.
const USUAL_WAIT: u64 = 30_000;
/// Longest wait for a change, in milliseconds.
const MOST_WAIT: u64 = 60_000;

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StatusQuery {
    /// Generation of the last report that the caller has. The answer waits for another one.
    pub after: Option<u64>,
    /// Longest wait for a change, in milliseconds; `USUAL_WAIT` if omitted.
    pub timeout_ms: Option<u64>,
}

/// Newest report: at once, or with `after` as soon as its generation is another. If it stays the same until the wait is
/// over or the agent stops, that report is returned.
pub async fn get(
    State(api): State<Shared>,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let bad = |text: String| Problem::new(Code::InvalidQuery, text);
    let Query(query) = query.map_err(|e| bad(e.body_text()))?;
    let wait = query.timeout_ms.unwrap_or(USUAL_WAIT);
    if wait > MOST_WAIT {
        return Err(bad(format!("timeoutMs {wait} is more than {MOST_WAIT}")));
    }
    let (mut reports, mut phase) = (api.reports.clone(), api.native.phase.clone());
    if let Some(after) = query.after {
        // Any other generation counts: a caller with one that was not published yet has it from another agent.
        let newer = reports.wait_for(|report| report.generation != after);
        let stopping = phase.wait_for(|phase| *phase == AgentPhase::Draining);
        let waited = async {
            tokio::select! {
                // Both are cancel-safe: they only read.
                _ = newer => {}
                _ = stopping => {}
            }
        };
        let _ = timeout(Duration::from_millis(wait), waited).await;
    }
    let newest = NodeReport::clone(&api.reports.borrow());
    let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    Ok(Json(NodeReport { at, ..newest }).into_response())
}
