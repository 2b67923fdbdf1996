//! `/zbs/primarystorage/check/host/connection` and `/zbs/primarystorage/host/updatedependency`: calls about the storage that
//! a controller makes before all others, and without whose success it never has the node prepared. Served where no legacy
//! agent does; with one, they are forwarded to it like any route that the agent does not have.

use std::pin::Pin;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use serde::Deserialize;
use serde_json::json;

use super::super::Shared;
use super::volume::{done, needed};
use super::{task, wire};
use crate::controller::outbox::Keep;
use crate::model::fault::Fault;
use crate::model::prepare::Outcome;
use crate::model::storage::{Dependencies, HeartbeatVolume};

/// Answer of a port, in a box.
pub type StorageFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send + 'a>>;

/// Client of the node's storage; the API does not touch the machine itself.
pub trait ServesStorage: Send + Sync {
    /// Reads from the heartbeat volume.
    fn read_heartbeat(&self, volume: HeartbeatVolume) -> StorageFuture<'_, ()>;

    /// Sees to it that packages are installed.
    fn provide(&self, wanted: Dependencies) -> StorageFuture<'_, Outcome>;
}

/// Routes of the calls; none with a legacy agent.
pub fn routes(legacy_agent: bool) -> Router<Shared> {
    match legacy_agent {
        true => Router::new(),
        false => Router::new()
            .route("/zbs/primarystorage/check/host/connection", post(check_connection))
            .route("/zbs/primarystorage/host/updatedependency", post(update_dependency)),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ConnectionRequest {
    #[serde(default, deserialize_with = "wire::text")]
    path: Option<String>,
}

impl ConnectionRequest {
    pub(super) fn volume(self) -> Result<HeartbeatVolume, Fault> {
        needed(self.path, "path")?.parse()
    }
}

/// `/check/host/connection`: succeeds if this node can read the storage's heartbeat volume.
pub async fn check_connection(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: ConnectionRequest| {
        api.storage.read_heartbeat(request.volume()?).await.map(|()| done())
    };
    task::call(api, (None, Keep::InMemory), request, work).await
}

#[derive(Debug, Deserialize)]
pub(super) struct DependencyRequest {
    #[serde(rename = "updatePackages", default, deserialize_with = "wire::text")]
    update_packages: Option<String>,
    #[serde(rename = "zstackRepo", default, deserialize_with = "wire::text")]
    zstack_repo: Option<String>,
}

impl DependencyRequest {
    pub(super) fn wanted(self) -> Result<Dependencies, Fault> {
        let packages = needed(self.update_packages, "updatePackages")?;
        Dependencies::parse(&packages, &self.zstack_repo.unwrap_or_default())
    }
}

/// `/host/updatedependency`: succeeds once the packages of the storage's client are installed.
pub async fn update_dependency(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: DependencyRequest| {
        let outcome = api.storage.provide(request.wanted()?).await?;
        Ok(json!({"success": true, "error": "", "outcome": outcome}))
    };
    task::call(api, (Some("updatedependency"), Keep::OnDisk), request, work).await
}
