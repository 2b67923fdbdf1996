//! `GET /v1/node`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::super::Shared;
use super::super::errors::Problem;

/// The node as it is now.
pub async fn get(State(api): State<Shared>) -> Response {
    match api.node.status().await {
        Ok(status) => axum::Json(&*status).into_response(),
        Err(fault) => Problem::of(fault).into_response(),
    }
}
