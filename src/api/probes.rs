//! Liveness and readiness of the agent.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{AgentPhase, Shared};

/// Liveness: the process lives and its runtime answers.
pub async fn healthz() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// Readiness: what was kept over the last boot was restored, and no stop was requested.
pub async fn readyz(State(api): State<Shared>) -> Response {
    let (status, word) = match *api.native.phase.borrow() {
        AgentPhase::Serving => (StatusCode::OK, "ready"),
        AgentPhase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        AgentPhase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    (status, Json(json!({"status": word}))).into_response()
}
