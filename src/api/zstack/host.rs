//! `/host/connect`, `/host/ping`, `/host/echo`: calls with which the controller connects to this host and checks it.

use std::pin::Pin;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{AgentPhase, Shared};
use super::task;
use super::wire;
use crate::controller::identity::HostIdentity;
use crate::controller::outbox::Keep;
use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::url::HttpUrl;

/// Source of the installed versions of libvirt and QEMU; the API does not observe the machine itself.
pub trait AsksVersions: Send + Sync {
    /// Versions of libvirt and QEMU; each is empty if it is not found.
    fn versions(&self) -> Pin<Box<dyn Future<Output = (String, String)> + Send + '_>>;
}

/// Body of the controller's connect call. Its other fields are meant for the legacy agent and ignored.
#[derive(Debug, Deserialize)]
pub(super) struct ConnectRequest {
    #[serde(rename = "hostUuid", default, deserialize_with = "wire::text")]
    host_uuid: Option<String>,
    #[serde(rename = "sendCommandUrl", default, deserialize_with = "wire::text")]
    send_command_url: Option<String>,
    #[serde(default, deserialize_with = "wire::text")]
    version: Option<String>,
}

/// Limit of a text, in bytes. A controller's UUID has 32.
const MOST_TEXT: usize = 2048;

/// `/host/connect`: learns this host's identity and the address of the controller.
pub async fn connect(State(api): State<Shared>, request: Request) -> Response {
    let caller = task::caller(request.extensions());
    // The identity is stored on disk separately.
    let route = (Some("connect"), Keep::InMemory);
    task::call(api, route, request, move |api, said| learn(api, said, caller)).await
}

/// Validates the identity that a controller states for itself and for this host when it connects.
pub(super) fn validated(request: ConnectRequest) -> Result<HostIdentity, Fault> {
    let identity = validated_in_part(request)?;
    let required =
        [("hostUuid", &identity.host_uuid), ("sendCommandUrl", &identity.send_command_url)];
    match required.iter().find(|(_, text)| text.is_empty()) {
        Some((name, _)) => Err(not_plain(name)),
        None => Ok(identity),
    }
}

/// Validates an identity that need not be complete: missing fields are empty.
pub(super) fn validated_in_part(request: ConnectRequest) -> Result<HostIdentity, Fault> {
    let plain = |field: Option<String>, name: &str| {
        let text = field.unwrap_or_default();
        let fits = text.len() <= MOST_TEXT && !text.contains(char::is_control);
        if fits { Ok(text) } else { Err(not_plain(name)) }
    };
    let identity = HostIdentity {
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

/// Checks that `caller` may state the identity `said`, and records `caller` as its source. The address of a controller
/// has to be one that the egress policy allows for `caller`.
pub(super) fn taught(
    api: &Shared,
    said: HostIdentity,
    caller: Caller,
) -> Result<HostIdentity, Fault> {
    if !said.send_command_url.is_empty() {
        let reach = api.reaches.of_connecting(caller);
        reach.authorize_literal(&said.send_command_url).map_err(|refused| {
            let text = format!("sendCommandUrl cannot be used: {refused}");
            Fault::new(Code::SendCommandAddressRefused, text)
        })?;
    }
    Ok(HostIdentity { learnt_from: Some(caller), ..said })
}

async fn learn(api: Shared, request: ConnectRequest, caller: Caller) -> Result<Value, Fault> {
    let identity = taught(&api, validated(request)?, caller)?;
    api.identities.in_turn(move |identities| identities.learn(identity)).await?;
    let (libvirt, qemu) = api.hypervisor.versions().await;
    Ok(json!({"success": true, "error": "", "libvirtVersion": libvirt, "qemuVersion": qemu}))
}

/// `/host/ping`: returns the learned identity.
pub async fn ping(State(api): State<Shared>, request: Request) -> Response {
    // The body's own `hostUuid` is ignored: the controller compares the one in the answer with it.
    let work = async |api: Shared, _: serde_json::Map<String, Value>| {
        let known = api.identities.known();
        Ok(json!({
            "success": true,
            "error": "",
            "hostUuid": known.host_uuid,
            "sendCommandUrl": known.send_command_url,
            "version": known.version,
        }))
    };
    task::call(api, (None, Keep::InMemory), request, work).await
}

/// `/host/echo`: an empty 200, polled every second after a start. While the agent stops it is no 200, for the one that is
/// polled for is the next one.
pub async fn echo(State(api): State<Shared>) -> StatusCode {
    match *api.native.phase.borrow() {
        AgentPhase::Draining => StatusCode::SERVICE_UNAVAILABLE,
        AgentPhase::Starting | AgentPhase::Serving => StatusCode::OK,
    }
}
