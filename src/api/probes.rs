//! Liveness and readiness of the agent.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{Phase, Shared};

/// Liveness: the process lives and its runtime answers.
pub async fn healthz() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// Readiness: what was kept over the last boot was restored, and no stop was requested.
pub async fn readyz(State(api): State<Shared>) -> Response {
    let (status, word) = match *api.native.phase.borrow() {
        Phase::Serving => (StatusCode::OK, "ready"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    (status, Json(json!({"status": word}))).into_response()
}
