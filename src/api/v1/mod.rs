//! Native routes: resources in JSON, unknown fields refused, errors as problems.

pub mod domains;
pub mod events;
pub mod node;
pub mod pools;
pub mod prepare;
pub mod report;
pub mod reservations;
pub mod status;
pub mod targets;
pub mod volumes;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;

use super::errors::Problem;
use super::roles::wants;
use super::{AgentPhase, Native, errors};
use crate::agent::owner_gone;
use crate::model::access::{Principal, Role};

type SharedV1 = Arc<Native>;

/// Native routes, by the role that each requires. `/v1/status` is not among them: only an agent that reports to the
/// controller serves it.
pub fn routes<S: Clone + Send + Sync + 'static>(native: Arc<Native>) -> Router<S> {
    let read = Router::new()
        .route("/v1/node", get(node::get))
        .route("/v1/domains", get(domains::list))
        .route("/v1/events", get(events::get))
        .route("/v1/reservations", get(reservations::list))
        .route("/v1/reservations/{name}", get(reservations::get))
        .route("/v1/targets", get(targets::list))
        .route("/v1/targets/{name}", get(targets::get))
        .route("/v1/targets/{name}/health", get(targets::health))
        .route("/v1/targets/{name}/volumes", get(volumes::list))
        .route("/v1/targets/{name}/volumes/{volume}", get(volumes::get))
        .route_layer(wants(Role::Read));
    let volumes = Router::new()
        .route("/v1/targets/{name}/volumes", put(volumes::put_all))
        .route("/v1/targets/{name}/volumes/{volume}", put(volumes::put).delete(volumes::delete))
        .route("/v1/targets/{name}/volumes/{volume}/resize", post(volumes::resize))
        .route_layer(from_fn_with_state(native.clone(), refuse_while_stopping))
        .route_layer(wants(Role::Volumes));
    let deploy = Router::new()
        .route("/v1/prepare", post(prepare::post))
        .route("/v1/reclaim", post(pools::reclaim))
        .route("/v1/restore", post(pools::restore))
        .route("/v1/reservations", post(reservations::post))
        .route("/v1/reservations/{name}", delete(reservations::delete))
        .route("/v1/reservations/{name}/claim", post(reservations::claim))
        .route("/v1/targets/{name}", put(targets::put).delete(targets::delete))
        .route_layer(from_fn_with_state(native.clone(), refuse_while_stopping))
        .route_layer(wants(Role::Deploy));
    read.merge(volumes).merge(deploy).with_state(native)
}

/// Refuses a call that begins work while the agent stops: its listeners stay open until the work under way has ended.
async fn refuse_while_stopping(
    State(api): State<SharedV1>,
    request: Request,
    next: Next,
) -> Response {
    if *api.phase.borrow() == AgentPhase::Draining {
        return Problem::of(owner_gone()).into_response();
    }
    next.run(request).await
}

/// Native routes by themselves, for a caller in the same process.
pub fn router(native: Arc<Native>) -> Router {
    routes(native)
        .fallback(errors::no_such_route)
        .layer(CatchPanicLayer::custom(errors::panicked))
        .layer(Extension(Principal::command()))
}
