//! `/v1/targets/{name}`: a target as a resource.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::super::audit::{AuditedCall, AuditedChange, Subject};
use super::super::body;
use super::super::errors::Problem;
use super::{SharedV1, report};
use crate::model::access::{Principal, Role};
use crate::model::cgroup::CgroupParent;
use crate::model::code::Code;
use crate::model::cpu::written;
use crate::model::deep::ProvenHealth;
use crate::model::fault::Fault;
use crate::model::image::ImageRequest;
use crate::model::path::CleanPath;
use crate::model::policy::TargetSettings;
use crate::model::target::{
    CoreRequest, EnsureOptions, TargetHealth, TargetKind, TargetName, TargetSpec,
};
use crate::model::work::WorkId;
use crate::targets::TargetChange;

/// Spec of a target; omitted fields are as in the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TargetBody {
    /// `zbs`, `spdk` or `built-in`.
    pub kind: Option<TargetKind>,
    /// Image; none for the built-in target.
    pub image: Option<String>,
    /// Tar on this node that holds the image.
    pub image_tar: Option<CleanPath>,
    /// URL of a tar that holds the image, `http` or `https`.
    pub image_url: Option<String>,
    /// SHA-256 of the tar at `image_url`, in hex.
    pub image_sha256: Option<String>,
    /// CPUs: `[6,7]` as text or as a list, `6-7` or `0xc0`.
    #[serde(deserialize_with = "written")]
    pub cores: Option<String>,
    /// Number of CPUs, chosen by topology.
    pub core_count: Option<u32>,
    pub socket_dir: Option<CleanPath>,
    pub control_sock: Option<CleanPath>,
    /// Configuration file of the target's client.
    pub client_conf: Option<CleanPath>,
    /// Hugepages in MiB. If neither this field nor the settings give a size, it follows from the target's volumes.
    pub memory_mib: Option<u64>,
    /// Cgroup below which the engine makes that of the container: a slice, or an absolute path.
    pub cgroup_parent: Option<CgroupParent>,
}

impl TargetBody {
    /// Desired spec of the target `name`; omitted fields are as in the settings.
    ///
    /// # Errors
    /// When a field is invalid.
    pub fn into_spec(
        self,
        name: TargetName,
        settings: &TargetSettings,
    ) -> Result<TargetSpec, Fault> {
        let base = settings.spec(name, self.kind.unwrap_or(settings.kind))?;
        self.over(base, settings)
    }

    /// Desired spec; omitted fields are as in `base`.
    ///
    /// # Errors
    /// When a field is invalid.
    pub fn over(self, base: TargetSpec, settings: &TargetSettings) -> Result<TargetSpec, Fault> {
        let kind = self.kind.unwrap_or(base.kind);
        let socket_dir = self.socket_dir.unwrap_or_else(|| base.socket_dir.clone());
        let control_sock = match self.control_sock {
            Some(path) => path,
            None if socket_dir == base.socket_dir => base.control_sock,
            None => settings.control_in(&socket_dir)?,
        };
        let cores = match (self.cores, self.core_count) {
            (Some(_), Some(_)) => {
                let text = "cores and coreCount are two ways to say one thing: give one";
                return Err(Fault::new(Code::InvalidCores, text));
            }
            (Some(list), None) => CoreRequest::These(list.parse()?),
            (None, Some(0)) => {
                return Err(Fault::new(Code::InvalidCores, "coreCount 0 is not at least 1"));
            }
            (None, Some(count)) => CoreRequest::Count(count),
            (None, None) => base.cores,
        };
        let said = ImageRequest {
            image: self.image,
            url: self.image_url.map(|url| url.parse()).transpose()?,
            sha256: self.image_sha256.map(|digest| digest.parse()).transpose()?,
        };
        let usual =
            ImageRequest { image: base.image, url: base.image_url, sha256: base.image_sha256 };
        let image = match kind {
            TargetKind::BuiltIn => ImageRequest::default(),
            TargetKind::Zbs | TargetKind::Spdk => said.or(usual)?,
        };
        TargetSpec {
            name: base.name,
            kind,
            image: image.image,
            image_tar: self.image_tar.or(base.image_tar),
            image_url: image.url,
            image_sha256: image.sha256,
            cores,
            socket_dir,
            control_sock,
            client_conf: self.client_conf.or(base.client_conf),
            memory_mib: self.memory_mib.unwrap_or(base.memory_mib),
            memory_by_volumes: self.memory_mib.is_none() && base.memory_by_volumes,
            cgroup_parent: self.cgroup_parent.or(base.cgroup_parent),
        }
        .validate()
    }
}

/// Options of a call that applies a spec or removes a target.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TargetQuery {
    /// Set if only the plan is requested.
    pub dry_run: bool,
    /// Set if a target that runs with another spec is replaced.
    pub recreate: bool,
    /// Set if the target is replaced or removed even with virtual machines connected.
    pub force: bool,
}

type Queried = Result<Query<TargetQuery>, axum::extract::rejection::QueryRejection>;

/// Parts of a call that changes a target, before its body and query are validated.
type RawRequest = (State<SharedV1>, Path<String>, Queried, Extension<Principal>, HeaderMap, Body);

/// Applies the spec of a target.
pub async fn put(request: RawRequest) -> Result<Response, Problem> {
    let change = |spec, TargetQuery { recreate, force, .. }| {
        TargetChange::Ensure(spec, EnsureOptions { recreate, force, ..EnsureOptions::default() })
    };
    bring_about("deploy", request, change).await
}

/// Removes a target. Its virtual machines are counted at its control socket, which is the default one unless the body
/// names another.
pub async fn delete(request: RawRequest) -> Result<Response, Problem> {
    let change = |spec, TargetQuery { force, .. }| TargetChange::Destroy { spec, force };
    bring_about("destroy", request, change).await
}

async fn bring_about(
    route: &'static str,
    (State(api), Path(name), query, by, headers, body): RawRequest,
    request: impl FnOnce(TargetSpec, TargetQuery) -> TargetChange,
) -> Result<Response, Problem> {
    let (name, query) = parsed(&name, query)?;
    let bytes = body::read(body, api.http).await?;
    let subject = Subject { force: query.force, ..Subject::target(&name) };
    let spec = body::parse::<TargetBody>(&bytes)?.into_spec(name, &api.target_defaults);
    let spec = spec.and_then(|spec| api.allowed(spec)).map_err(Problem::of)?;
    let (target_change, dry_run) = (request(spec, query), query.dry_run);
    let change = AuditedChange { of: subject, ..AuditedChange::of(route, by.0) };
    let call = (!dry_run).then(|| AuditedCall::begins(change, None));
    let (work, events, targets) = (WorkId::next(), api.progress.watch(), api.targets.clone());
    let done = async move { targets.reconcile(work, target_change, dry_run).await.map(Arc::new) };
    report::answer_with(&headers, (work, events), done, call).await
}

/// Target as published.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TargetView {
    name: TargetName,
    /// Desired spec; `None` if not desired.
    wanted: Option<TargetSpec>,
    health: TargetHealth,
}

/// Spec and status of a target.
pub async fn get(
    State(api): State<SharedV1>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let name: TargetName = name.parse().map_err(Problem::of)?;
    let wanted = api.desired.borrow().targets.get(&name).cloned();
    Ok(Json(view(&api, name, wanted).await?).into_response())
}

/// Lists the desired targets.
pub async fn list(State(api): State<SharedV1>) -> Result<Response, Problem> {
    let wanted = api.desired.borrow().targets.clone();
    let views = wanted.into_iter().map(|(name, spec)| view(&api, name, Some(spec)));
    let views = futures_util::future::try_join_all(views).await?;
    Ok(Json(serde_json::json!({"targets": views})).into_response())
}

async fn view(
    api: &SharedV1,
    name: TargetName,
    wanted: Option<TargetSpec>,
) -> Result<TargetView, Problem> {
    let control = api.control_of(&name).map_err(Problem::of)?;
    let health = api.targets.health(&name, &control).await;
    // Callers with this role may not know what gives access to the image.
    let wanted = wanted.map(|spec| TargetSpec { image_url: None, ..spec });
    Ok(TargetView { name, wanted, health })
}

/// Control socket to probe, and depth of the probe.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HealthQuery {
    /// Control socket to probe; that of the target, if omitted.
    pub control_sock: Option<String>,
    /// Set if I/O is probed too.
    pub deep: bool,
}

pub async fn health(
    State(api): State<SharedV1>,
    Path(name): Path<String>,
    query: Result<Query<HealthQuery>, axum::extract::rejection::QueryRejection>,
    by: Extension<Principal>,
) -> Result<Response, Problem> {
    let (name, query) = parsed(&name, query)?;
    if query.deep {
        // A deep probe makes a disk of the agent's own in the target.
        by.may(Role::Volumes).map_err(Problem::of)?;
    }
    let control = api.control_at(&name, query.control_sock.as_deref()).map_err(Problem::of)?;
    let health = api.targets.health(&name, &control);
    if !query.deep {
        return Ok(Json(health.await).into_response());
    }
    let (health, deep) = tokio::join!(health, api.targets.deep_health(&control));
    Ok(Json(ProvenHealth::of(health, deep)).into_response())
}

fn parsed<T>(
    name: &str,
    query: Result<Query<T>, axum::extract::rejection::QueryRejection>,
) -> Result<(TargetName, T), Problem> {
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidQuery, e.body_text()))?;
    Ok((name.parse().map_err(Problem::of)?, query))
}
