//! `GET /v1/status`: how the node stands, as the controller is told, and when that changes.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::time::timeout;

use super::super::errors::Problem;
use super::super::{Phase, Shared};
use crate::model::code::Code;
use crate::model::status::NodeReport;

/// How long a change is waited for when a call does not say, in milliseconds …
const USUAL_WAIT: u64 = 30_000;
/// … and at most.
const MOST_WAIT: u64 = 60_000;

/// What the caller knows.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StatusQuery {
    /// The last generation that it has: the next one is waited for.
    pub after: Option<u64>,
    /// How long.
    pub timeout_ms: Option<u64>,
}

/// The newest report: at once, or as soon as it is newer than what the caller has. One that is not newer
/// is told when the time is up, or the agent stops.
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
        // Who knows a generation that was not told yet knows another agent's.
        let newer = reports.wait_for(|report| report.generation != after);
        let stopping = phase.wait_for(|phase| *phase == Phase::Draining);
        let waited = async {
            tokio::select! {
                // Both are cancel-safe: they only look.
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
