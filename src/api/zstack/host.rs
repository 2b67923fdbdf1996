//! `/host/connect`, `/host/ping`, `/host/echo`: the controller finds its host.

use std::pin::Pin;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Shared;
use super::task;
use super::wire;
use crate::controller::identity::Identity;
use crate::controller::outbox::Keep;
use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::url::HttpUrl;

/// Tells which libvirt and QEMU are installed; the api does not look itself.
pub trait AsksVersions: Send + Sync {
    /// (libvirt's version, QEMU's version), empty where there is none.
    fn versions(&self) -> Pin<Box<dyn Future<Output = (String, String)> + Send + '_>>;
}

/// What the controller says when it connects. Everything else in that body is the legacy agent's.
#[derive(Debug, Deserialize)]
pub(super) struct ConnectRequest {
    #[serde(rename = "hostUuid", default, deserialize_with = "wire::text")]
    host_uuid: Option<String>,
    #[serde(rename = "sendCommandUrl", default, deserialize_with = "wire::text")]
    send_command_url: Option<String>,
    #[serde(default, deserialize_with = "wire::text")]
    version: Option<String>,
}

/// A uuid of the controller is 32 characters; what is much longer is something else.
const MOST_TEXT: usize = 2048;

/// `/host/connect`: learns who this host is and where the controller listens.
pub async fn connect(State(api): State<Shared>, request: Request) -> Response {
    let caller = task::caller(request.extensions());
    // Who the host is goes to the disk by itself.
    let route = (Some("connect"), Keep::InMemory);
    task::call(api, route, request, move |api, said| learn(api, said, caller)).await
}

/// What a controller says of itself and of this host when it connects, judged.
pub(super) fn judged(request: ConnectRequest) -> Result<Identity, Fault> {
    let identity = judged_in_part(request)?;
    let required =
        [("hostUuid", &identity.host_uuid), ("sendCommandUrl", &identity.send_command_url)];
    match required.iter().find(|(_, text)| text.is_empty()) {
        Some((name, _)) => Err(not_plain(name)),
        None => Ok(identity),
    }
}

/// The same where it need not say everything: what is missing is empty.
pub(super) fn judged_in_part(request: ConnectRequest) -> Result<Identity, Fault> {
    let plain = |field: Option<String>, name: &str| {
        let text = field.unwrap_or_default();
        let fits = text.len() <= MOST_TEXT && !text.contains(char::is_control);
        if fits { Ok(text) } else { Err(not_plain(name)) }
    };
    let identity = Identity {
        host_uuid: plain(request.host_uuid, "hostUuid")?,
        send_command_url: plain(request.send_command_url, "sendCommandUrl")?,
        version: request.version.filter(|text| text.len() <= MOST_TEXT).unwrap_or_default(),
        learnt_from: None,
    };
    if !identity.send_command_url.is_empty() {
        HttpUrl::without_user(&identity.send_command_url).map_err(|why| {
            Fault::new(Code::InvalidBody, format!("sendCommandUrl cannot be used: {why}"))
        })?;
    }
    Ok(identity)
}

fn not_plain(name: &str) -> Fault {
    Fault::new(Code::InvalidBody, format!("{name} is missing or no plain text"))
}

/// What this caller may teach: the address of a controller only, to which it may make the agent call.
pub(super) fn taught(api: &Shared, said: Identity, caller: Caller) -> Result<Identity, Fault> {
    if !said.send_command_url.is_empty() {
        let reach = api.reaches.of_connecting(caller);
        reach.judge_literal(&said.send_command_url).map_err(|refused| {
            let text = format!("sendCommandUrl cannot be used: {refused}");
            Fault::new(Code::SendCommandAddressRefused, text)
        })?;
    }
    Ok(Identity { learnt_from: Some(caller), ..said })
}

async fn learn(api: Shared, request: ConnectRequest, caller: Caller) -> Result<Value, Fault> {
    let identity = taught(&api, judged(request)?, caller)?;
    api.identities.in_turn(move |identities| identities.learn(identity)).await?;
    let (libvirt, qemu) = api.hypervisor.versions().await;
    Ok(json!({"success": true, "error": "", "libvirtVersion": libvirt, "qemuVersion": qemu}))
}

/// `/host/ping`: says what was learnt.
pub async fn ping(State(api): State<Shared>, request: Request) -> Response {
    // The body's own hostUuid is not looked at: the controller compares it with ours.
    let tell = async |api: Shared, _: serde_json::Map<String, Value>| {
        let known = api.identities.known();
        Ok(json!({
            "success": true,
            "error": "",
            "hostUuid": known.host_uuid,
            "sendCommandUrl": known.send_command_url,
            "version": known.version,
        }))
    };
    task::call(api, (None, Keep::InMemory), request, tell).await
}

/// `/host/echo`: an empty 200, asked for every second after a start.
pub async fn echo() -> StatusCode {
    StatusCode::OK
}
