//! `GET /v1/node`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::super::errors::Problem;
use super::SharedV1;
use crate::model::node::NodeStatus;

/// Current status of the node.
pub async fn get(State(api): State<SharedV1>) -> Response {
    match api.node.status().await {
        Ok(status) => {
            let access = api.exposure.clone();
            axum::Json(NodeStatus { access, ..(*status).clone() }).into_response()
        }
        Err(fault) => Problem::of(fault).into_response(),
    }
}
