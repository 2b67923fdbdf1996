//! `/vhost/target/health` and `/vhost/check`: whether a target serves.
//!
//! Newer controllers name neither a container nor a socket, but only the host. The default target is meant then; where that
//! is not desired, because the storage's own product runs a target on the host, that one.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::super::Shared;
use super::volume::done;
use super::{task, wire};
use crate::controller::outbox::Keep;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::target::{TargetHealth, TargetName};

/// Name of the product's target on a host, without the host's address.
const PRODUCTS: &str = "zbsvhost-";
/// Control socket of the product's target.
const PRODUCTS_CONTROL: &str = "/var/zbsvhost/sockets/admin.sock";

#[derive(Debug, Deserialize)]
struct HealthRequest {
    #[serde(rename = "containerName", default, deserialize_with = "wire::text")]
    container_name: Option<String>,
    #[serde(rename = "controlSock", default, deserialize_with = "wire::text")]
    control_sock: Option<String>,
    /// Address of this host. The field `addr` is the address of one of the storage's servers.
    #[serde(rename = "hostIp", default, deserialize_with = "wire::text")]
    host_ip: Option<String>,
}

/// Targets that a call may mean, each with its control socket; at least one.
type Meant = Vec<(TargetName, CleanPath)>;

impl HealthRequest {
    /// Targets that the request may mean: the one that it names, else those of the host.
    fn meant(&self, api: &Shared) -> Result<Meant, Fault> {
        if self.container_name.is_none() && self.control_sock.is_none() {
            return of_host(api, self.host_ip.as_deref());
        }
        let name = self.container_name.as_deref().map(str::parse::<TargetName>).transpose()?;
        let name = name.unwrap_or_else(TargetName::usual);
        let control = api.native.control_at(&name, self.control_sock.as_deref())?;
        Ok(vec![(name, control)])
    }
}

/// Targets of this host: the default one, and while that is not desired the one of the storage's product.
fn of_host(api: &Shared, host_ip: Option<&str>) -> Result<Meant, Fault> {
    let usual = TargetName::usual();
    let is_desired = api.native.wanted(&usual).is_some();
    let control = api.native.control_of(&usual)?;
    let mut meant = vec![(usual, control)];
    meant.extend(products(host_ip).filter(|_| !is_desired));
    Ok(meant)
}

/// Target of the storage's product, by the address of the host; `None` without an address that a container can have in its
/// name.
fn products(host_ip: Option<&str>) -> Option<(TargetName, CleanPath)> {
    let name = format!("{PRODUCTS}{}", host_ip?.trim());
    Some((name.parse().ok()?, PRODUCTS_CONTROL.parse().ok()?))
}

/// `/vhost/target/health`: reports whether the target serves.
pub async fn health(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: HealthRequest| {
        let mut known: Option<TargetHealth> = None;
        for (name, control) in request.meant(&api)? {
            let health = api.native.targets.health(&name, &control).await;
            if known.is_none() || health.version.is_some() {
                known = Some(health);
            }
        }
        let lost = || Fault::new(Code::Internal, "the call means no target at all: report this");
        let health = known.ok_or_else(lost)?;
        Ok(json!({
            "success": true,
            "error": "",
            // `true` if the target answers, even if its volumes are not back yet.
            "targetRunning": health.version.is_some(),
            "state": health.state,
            "reason": health.reason,
            "since": health.since,
        }))
    };
    task::call(api, (None, Keep::InMemory), request, work).await
}

#[derive(Debug, Deserialize)]
struct CheckRequest {
    #[serde(rename = "hostIp", default, deserialize_with = "wire::text")]
    host_ip: Option<String>,
}

/// `/vhost/check`: succeeds as soon as a target of this host answers, and fails when none has for as long as a started
/// target may take.
pub async fn check(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: CheckRequest| {
        let host_ip = request.host_ip.as_deref();
        let meant = of_host(&api, host_ip)?;
        let within = api.native.target_defaults.ready_timeout;
        match api.native.targets.first_answer(&meant, within).await {
            Ok(()) => Ok(done()),
            Err(silent) => Err(not_ready(host_ip, &silent)),
        }
    };
    task::call(api, (None, Keep::InMemory), request, work).await
}

/// Fault of a host on which no target answers, in the words that controllers know.
fn not_ready(host_ip: Option<&str>, silent: &[TargetHealth]) -> Fault {
    let shown = host_ip.unwrap_or_default().chars().filter(|c| !c.is_control());
    let host: String = shown.take(64).collect();
    let whys: Vec<String> = silent
        .iter()
        .map(|health| format!("{} is {}: {}", health.name, health.state, health.reason))
        .collect();
    let text = format!("vhost target is not ready in ZStone for host {host}: {}", whys.join("; "));
    Fault::new(Code::TargetNotServing, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::target::TargetState;

    /// Names as the storage's product gives them: the address of the host behind a fixed word.
    #[test]
    fn target_of_the_product_has_the_hosts_address_in_its_name() {
        let (name, control) = products(Some("10.0.0.9")).unwrap();
        assert_eq!(name.as_str(), "zbsvhost-10.0.0.9");
        assert_eq!(control.as_str(), "/var/zbsvhost/sockets/admin.sock");
        for none in [None, Some("fd00::9"), Some("10.0.0.9;id"), Some("../x"), Some("a b")] {
            assert_eq!(products(none), None, "{none:?}");
        }
    }

    #[test]
    fn fault_begins_with_the_words_that_controllers_know() {
        let health = TargetHealth {
            name: TargetName::usual(),
            state: TargetState::Absent,
            reason: "there is no container of that name".into(),
            since: String::new(),
            version: None,
            age_ms: None,
            pid: None,
        };
        let fault = not_ready(Some("10.0.0.9"), &[health]);
        assert!(fault.text.starts_with("vhost target is not ready in ZStone for host 10.0.0.9: "));
        assert!(fault.text.ends_with("zbs-vhost is absent: there is no container of that name"));
    }
}
