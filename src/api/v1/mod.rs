//! The native routes: resources in JSON, unknown fields refused, errors as problems.

pub mod events;
pub mod node;
pub mod pools;
pub mod prepare;
pub mod report;
pub mod status;
pub mod targets;
pub mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

use super::{Native, errors};

type Shared = Arc<Native>;

/// The native routes; how the controller is told that the node stands is left to an agent that tells it.
pub fn routes<S: Clone + Send + Sync + 'static>(native: Arc<Native>) -> Router<S> {
    Router::new()
        .route("/v1/node", get(node::get))
        .route("/v1/prepare", post(prepare::post))
        .route("/v1/reclaim", post(pools::reclaim))
        .route("/v1/restore", post(pools::restore))
        .route("/v1/targets", get(targets::list))
        .route("/v1/targets/{name}", get(targets::get).put(targets::put).delete(targets::delete))
        .route("/v1/events", get(events::get))
        .route("/v1/targets/{name}/health", get(targets::health))
        .route("/v1/targets/{name}/volumes", get(volumes::list).put(volumes::put_all))
        .route(
            "/v1/targets/{name}/volumes/{volume}",
            get(volumes::get).put(volumes::put).delete(volumes::delete),
        )
        .route("/v1/targets/{name}/volumes/{volume}/resize", post(volumes::resize))
        .with_state(native)
}

/// The native routes by themselves, for a caller in the same process.
pub fn router(native: Arc<Native>) -> Router {
    routes(native).fallback(errors::no_such_route).layer(CatchPanicLayer::custom(errors::panicked))
}
