//! `/vhost/target/{ensure,health}`, `/vhost/deploy`, `/vhost/destroy`: targets as the controller calls for
//! them.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Shared;
use super::{task, wire};
use crate::agent::target::TargetWish;
use crate::model::fault::Fault;
use crate::model::policy::TargetDefaults;
use crate::model::prepare::PrepareReport;
use crate::model::target::{CleanPath, CoreWish, EnsureWish, TargetName, TargetSpec, TargetState};

/// MiB of one page.
const PAGE_MIB: u64 = 2;

/// `ensure`'s request.
#[derive(Debug, Deserialize)]
struct EnsureRequest {
    #[serde(default, deserialize_with = "wire::text")]
    image: Option<String>,
    #[serde(default, deserialize_with = "wire::text")]
    cores: Option<String>,
    #[serde(rename = "coreCount", default, deserialize_with = "wire::count")]
    core_count: Option<u64>,
    #[serde(rename = "socketDir", default, deserialize_with = "wire::text")]
    socket_dir: Option<String>,
    #[serde(rename = "controlSock", default, deserialize_with = "wire::text")]
    control_sock: Option<String>,
    #[serde(rename = "clientConf", default, deserialize_with = "wire::text")]
    client_conf: Option<String>,
    #[serde(rename = "hugepageNr", default, deserialize_with = "wire::count")]
    hugepage_nr: Option<u64>,
    #[serde(rename = "imageTar", default, deserialize_with = "wire::text")]
    image_tar: Option<String>,
    #[serde(rename = "imageUrl", default, deserialize_with = "wire::text")]
    image_url: Option<String>,
    #[serde(rename = "containerName", default, deserialize_with = "wire::text")]
    container_name: Option<String>,
}

impl EnsureRequest {
    fn into_spec(self, defaults: &TargetDefaults) -> Result<TargetSpec, Fault> {
        let path = |text: Option<String>| text.map(|text| text.parse::<CleanPath>()).transpose();
        let socket_dir = path(self.socket_dir)?.unwrap_or_else(|| defaults.socket_dir.clone());
        let control_sock = match path(self.control_sock)? {
            Some(path) => path,
            None => defaults.control_sock(&socket_dir)?,
        };
        let cores = match (self.cores, self.core_count) {
            (Some(list), _) => CoreWish::These(list.parse()?),
            (None, count) => CoreWish::Count(count.map_or(Ok(defaults.core_count), small)?),
        };
        let wish = defaults.image_wish(defaults.kind, self.image, self.image_url, None)?;
        let name: Option<TargetName> = self.container_name.map(|name| name.parse()).transpose()?;
        let pages = self.hugepage_nr.map(|pages| pages.saturating_mul(PAGE_MIB));
        TargetSpec {
            name: name.unwrap_or_else(|| defaults.name.clone()),
            kind: defaults.kind,
            image: wish.image,
            image_tar: path(self.image_tar)?,
            image_url: wish.url,
            image_sha256: wish.sha256,
            cores,
            socket_dir,
            control_sock,
            client_conf: path(self.client_conf)?.or_else(|| defaults.client_conf.clone()),
            memory_mib: pages.unwrap_or(defaults.memory_mib),
        }
        .judge()
    }
}

fn small(count: u64) -> Result<u32, Fault> {
    let most = u64::from(u16::MAX);
    u32::try_from(count.min(most + 1)).ok().filter(|count| u64::from(*count) <= most).ok_or_else(
        || Fault::new("invalid-cores", format!("{count} cores are more than any machine has")),
    )
}

/// `/vhost/target/ensure`: the target runs as it is wanted.
pub async fn ensure(State(api): State<Shared>, headers: HeaderMap, body: Body) -> Response {
    let work = async |api: Shared, request: EnsureRequest| {
        let spec = request.into_spec(&api.target_defaults)?;
        let wish = TargetWish::Ensure(spec, EnsureWish::default());
        answer(&api.targets.bring_about(wish, false).await?)
    };
    task::call(api, Some("ensure"), &headers, body, work).await
}

/// What `deploy` and `destroy` say; the node deploys itself, so how to reach it is not looked at.
#[derive(Debug, Deserialize)]
struct DeployRequest {}

/// `/vhost/deploy`: the target of the settings runs.
pub async fn deploy(State(api): State<Shared>, headers: HeaderMap, body: Body) -> Response {
    let work = async |api: Shared, _: DeployRequest| {
        let wish = TargetWish::Ensure(usual(&api.target_defaults)?, EnsureWish::default());
        answer(&api.targets.bring_about(wish, false).await?)
    };
    task::call(api, Some("deploy"), &headers, body, work).await
}

/// `/vhost/destroy`: it is gone.
pub async fn destroy(State(api): State<Shared>, headers: HeaderMap, body: Body) -> Response {
    let work = async |api: Shared, _: DeployRequest| {
        let wish = TargetWish::Destroy { spec: usual(&api.target_defaults)?, force: false };
        answer(&api.targets.bring_about(wish, false).await?)
    };
    task::call(api, Some("destroy"), &headers, body, work).await
}

/// The target of the settings.
///
/// # Errors
/// When the settings name a control socket that cannot be.
pub fn usual(defaults: &TargetDefaults) -> Result<TargetSpec, Fault> {
    let wish = defaults.image_wish(defaults.kind, None, None, None)?;
    TargetSpec {
        name: defaults.name.clone(),
        kind: defaults.kind,
        image: wish.image,
        image_tar: None,
        image_url: wish.url,
        image_sha256: wish.sha256,
        cores: CoreWish::Count(defaults.core_count),
        socket_dir: defaults.socket_dir.clone(),
        control_sock: defaults.control_sock(&defaults.socket_dir)?,
        client_conf: defaults.client_conf.clone(),
        memory_mib: defaults.memory_mib,
    }
    .judge()
}

fn answer(report: &PrepareReport) -> Result<Value, Fault> {
    if let Some(first) = report.errors.first() {
        return Err(Fault { code: first.code.clone(), text: report.error_text() });
    }
    Ok(json!({
        "success": true,
        "error": "",
        "outcome": report.outcome,
        "steps": report.steps,
        "findings": report.findings,
    }))
}

/// `health`'s request.
#[derive(Debug, Deserialize)]
struct HealthRequest {
    #[serde(rename = "containerName", default, deserialize_with = "wire::text")]
    container_name: Option<String>,
    #[serde(rename = "controlSock", default, deserialize_with = "wire::text")]
    control_sock: Option<String>,
}

/// `/vhost/target/health`: whether it serves.
pub async fn health(State(api): State<Shared>, headers: HeaderMap, body: Body) -> Response {
    let work = async |api: Shared, request: HealthRequest| {
        let defaults = &api.target_defaults;
        let name: TargetName = match request.container_name {
            Some(name) => name.parse()?,
            None => defaults.name.clone(),
        };
        let control: CleanPath = match request.control_sock {
            Some(path) => path.parse()?,
            None => api.control_of(&name)?,
        };
        crate::model::target::judge_socket(&control)?;
        let health = api.health.health(&name, &control).await;
        Ok(json!({
            "success": true,
            "error": "",
            "targetRunning": health.state == TargetState::Serving,
            "state": health.state,
            "reason": health.reason,
            "since": health.since,
        }))
    };
    task::call(api, None, &headers, body, work).await
}
