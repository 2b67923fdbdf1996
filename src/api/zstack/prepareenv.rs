//! `/zbs/primarystorage/vhost/target/prepareenv`: prepares the node for a target.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;

use super::super::Shared;
use super::super::v1::prepare::default_want;
use super::{target, task, wire};
use crate::model::prepare::PrepareRequest;
use crate::model::progress::{ProgressRequest, WorkKind};

/// Request. Unknown fields are ignored, because the controller adds fields between versions.
#[derive(Debug, Deserialize)]
pub(super) struct PrepareEnvRequest {
    /// Desired free 2 MiB pages.
    #[serde(rename = "hugepageNr", default, deserialize_with = "wire::count")]
    pub(super) hugepage_nr: Option<u64>,
}

pub async fn call(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: PrepareEnvRequest, asked: Option<ProgressRequest>| {
        let events = api.native.progress.watch();
        let pages = request.hugepage_nr.unwrap_or(api.native.pool_defaults.default_pages);
        let wanted = PrepareRequest {
            hugepages: vec![default_want(pages, &api.native.pool_defaults)],
            keep_partial: false,
            engine: true,
            dry_run: false,
        };
        let (id, done) = api.native.prepare.begin(wanted).await?;
        let work = async { target::answer(&*done.await?) };
        task::report_progress(api.clone(), asked, WorkKind::Prepare, (id, events), work).await
    };
    task::call_with_progress(api, "prepareenv", request, work).await
}
