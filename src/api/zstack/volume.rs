//! `/vhost/{activate,deactivate,resize}`, `/vhost/bdev/{create,delete}`: volumes as the controller requests them.
//! Bodies are validated here, before anything is done. A volume that fails is not kept as desired, because the
//! controller calls again.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::audit::principal;
use super::super::{Shared, errors};
use super::target::{EnsureRequest, answer};
use super::{task, wire};
use crate::controller::outbox::Keep;
use crate::model::access::{Principal, Role};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::policy::TargetSettings;
use crate::model::target::{Desired, EnsureOptions, TargetSpec};
use crate::model::volume::{Backing, VolumeKey, VolumeName, VolumeSpec, VolumeView, ZBS_SUFFIX};
use crate::model::work::WorkId;
use crate::targets::TargetChange;

#[derive(Debug, Deserialize)]
pub(super) struct ActivateRequest {
    #[serde(flatten)]
    target: EnsureRequest,
    #[serde(rename = "installPath", default, deserialize_with = "wire::text")]
    install_path: Option<String>,
    #[serde(rename = "bdevName", default, deserialize_with = "wire::text")]
    bdev_name: Option<String>,
    #[serde(rename = "controllerName", default, deserialize_with = "wire::text")]
    controller_name: Option<String>,
}

impl ActivateRequest {
    /// Validates the target and the volume of the request. Omitted fields of the target are as desired.
    pub(super) fn validated(
        self,
        desired: &Desired,
        defaults: &TargetSettings,
    ) -> Result<(TargetSpec, VolumeSpec), Fault> {
        let volume = VolumeSpec {
            name: needed(self.controller_name, "controllerName")?.parse()?,
            bdev: needed(self.bdev_name, "bdevName")?.parse()?,
            backing: zbs(&needed(self.install_path, "installPath")?),
            read_only: false,
            cpumask: None,
        };
        let target = self.target.or_as_wanted(desired, defaults)?;
        let volume = volume.validate(&target.socket_dir)?;
        Ok((target, volume))
    }
}

/// `/vhost/activate`: makes the target run, and the volume's socket serve.
pub async fn activate(State(api): State<Shared>, request: Request) -> Response {
    let by = principal(request.extensions());
    let work = async move |api: Shared, request: ActivateRequest| {
        let validated =
            request.validated(&api.native.desired.borrow(), &api.native.target_defaults);
        let (target, volume) = validated?;
        serve(&api, &by, target, volume).await
    };
    task::call(api, (Some("activate"), Keep::OnDisk), request, work).await
}

/// Request of `bdev/create`. Fields with the address and the password of the node are ignored, because the agent runs
/// on it.
#[derive(Debug, Deserialize)]
pub(super) struct CreateRequest {
    #[serde(rename = "logicalPool", default, deserialize_with = "wire::text")]
    logical_pool: Option<String>,
    #[serde(default, deserialize_with = "wire::text")]
    volume: Option<String>,
    #[serde(rename = "bdevName", default, deserialize_with = "wire::text")]
    bdev_name: Option<String>,
}

impl CreateRequest {
    pub(super) fn into_volume(self, socket_dir: &CleanPath) -> Result<VolumeSpec, Fault> {
        let name: VolumeName = needed(self.bdev_name, "bdevName")?.parse()?;
        let pool = needed(self.logical_pool, "logicalPool")?;
        let volume = needed(self.volume, "volume")?;
        let backing = zbs(&format!("{pool}/{volume}"));
        VolumeSpec { bdev: name.clone(), name, backing, read_only: false, cpumask: None }
            .validate(socket_dir)
    }
}

/// `/vhost/bdev/create`: makes the target of the settings run, and a volume serve in it that has the name of its bdev.
pub async fn create(State(api): State<Shared>, request: Request) -> Response {
    let by = principal(request.extensions());
    let work = async move |api: Shared, request: CreateRequest| {
        let target = api.native.target_at(None)?;
        let volume = request.into_volume(&target.socket_dir)?;
        serve(&api, &by, target, volume).await
    };
    task::call(api, (Some("activate"), Keep::OnDisk), request, work).await
}

/// Volume, and the control socket of its target: request of `deactivate`, `resize` and `bdev/delete`.
#[derive(Debug, Deserialize)]
pub(super) struct WhichRequest {
    #[serde(rename = "controlSock", default, deserialize_with = "wire::text")]
    pub(super) control_sock: Option<String>,
    #[serde(rename = "bdevName", default, deserialize_with = "wire::text")]
    bdev_name: Option<String>,
    #[serde(rename = "controllerName", default, deserialize_with = "wire::text")]
    controller_name: Option<String>,
    #[serde(rename = "sizeMib", default, deserialize_with = "wire::count")]
    pub(super) size_mib: Option<u64>,
}

impl WhichRequest {
    fn target(&self, api: &Shared) -> Result<TargetSpec, Fault> {
        api.native.target_at(self.control_sock.as_deref().map(str::parse).transpose()?)
    }

    /// Key of the volume. The controller's name decides if given, because the bdev may be another volume's by now. Both
    /// names together also find a volume that was made before this agent was installed.
    pub(super) fn key(&self) -> Result<VolumeKey, Fault> {
        let name =
            |text: &Option<String>| text.as_deref().map(str::parse::<VolumeName>).transpose();
        match (name(&self.controller_name)?, name(&self.bdev_name)?) {
            (Some(name), Some(bdev)) => Ok(VolumeKey::Both { name, bdev }),
            (Some(controller), None) => Ok(VolumeKey::Name(controller)),
            (None, Some(bdev)) => Ok(VolumeKey::Bdev(bdev)),
            (None, None) => Err(missing("controllerName or bdevName")),
        }
    }

    fn bdev(&self) -> Result<VolumeKey, Fault> {
        Ok(VolumeKey::Bdev(needed(self.bdev_name.clone(), "bdevName")?.parse()?))
    }
}

/// `/vhost/deactivate`: removes the volume, whether or not its target ever existed.
pub async fn deactivate(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: WhichRequest| {
        let (target, volume) = (request.target(&api)?, request.key()?);
        api.native.targets.deactivate(&target, vec![volume], None).await.map(|()| done())
    };
    task::call(api, (Some("deactivate"), Keep::OnDisk), request, work).await
}

/// `/vhost/bdev/delete`: removes the volume with that bdev from the target of the settings.
pub async fn delete(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: WhichRequest| {
        let (target, volume) = (api.native.target_at(None)?, request.bdev()?);
        api.native.targets.deactivate(&target, vec![volume], None).await.map(|()| done())
    };
    task::call(api, (Some("deactivate"), Keep::OnDisk), request, work).await
}

/// `/vhost/resize`: resizes the volume, which its virtual machine notices.
pub async fn resize(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: WhichRequest| {
        let (target, volume) = (request.target(&api)?, request.bdev()?);
        let size = request.size_mib.ok_or_else(|| missing("sizeMib"))?;
        api.native.targets.resize(&target, volume, size).await.map(|_| done())
    };
    task::call(api, (Some("resize"), Keep::OnDisk), request, work).await
}

/// Makes the target run, and the volume serve in it.
async fn serve(
    api: &Shared,
    by: &Principal,
    target: TargetSpec,
    volume: VolumeSpec,
) -> Result<Value, Fault> {
    let mut findings = json!([]);
    if !serves_already(api, &target).await {
        by.may(Role::Deploy)?;
        let change = TargetChange::Ensure(target.clone(), EnsureOptions::default());
        let mut report =
            answer(&api.native.targets.reconcile(WorkId::next(), change, false).await?)?;
        findings = report["findings"].take();
    }
    // A target that runs with another spec than requested is not changed, and its sockets are in the folder of that
    // spec.
    let target = api.native.wanted(&target.name).unwrap_or(target);
    let volume = volume.validate(&target.socket_dir)?;
    let views = api.native.targets.activate(&target, vec![volume], true).await?;
    activated(&views, &findings)
}

/// `true` if nothing has to be done for `target`: it is desired with the same control socket, and is up. Hundreds of
/// volumes are activated at once when a node comes back, and each observation of a target takes its owner's time.
async fn serves_already(api: &Shared, target: &TargetSpec) -> bool {
    let there = |wanted: TargetSpec| wanted.control_sock == target.control_sock;
    if !api.native.wanted(&target.name).is_some_and(there) {
        return false;
    }
    let health = api.native.targets.health(&target.name, &target.control_sock).await;
    health.is_up()
}

fn activated(views: &[VolumeView], findings: &Value) -> Result<Value, Fault> {
    let lost = || Fault::new(Code::Internal, "the target's owner reported nothing of the volume");
    let view = views.first().ok_or_else(lost)?;
    errors::made(view, "it is not kept: call again when that is mended")?;
    Ok(json!({
        "success": true,
        "error": "",
        "socketPath": view.status.socket_path,
        "state": view.status.state,
        "reason": view.status.reason,
        "findings": findings,
    }))
}

/// Backing of an install path, such as `zbs://pool/volume`; the agent appends the suffix under which a target opens it.
fn zbs(install_path: &str) -> Backing {
    let path = install_path.trim();
    let path = path.split_once("://").map_or(path, |(_, path)| path);
    Backing::Zbs { path: path.strip_suffix(ZBS_SUFFIX).unwrap_or(path).to_string() }
}

/// Result of a call that has none but its success.
pub(super) fn done() -> Value {
    json!({"success": true, "error": ""})
}

/// Value of a field that a call must have.
///
/// # Errors
/// `invalid-body` if it is missing.
pub(super) fn needed(field: Option<String>, name: &str) -> Result<String, Fault> {
    field.ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Fault {
    Fault::new(Code::InvalidBody, format!("{name} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::volume::{VolumeState, VolumeStatus};

    fn activate(text: &str) -> Result<(TargetSpec, VolumeSpec), Fault> {
        let request: ActivateRequest = serde_json::from_str(text).unwrap();
        request.validated(&Desired::default(), &TargetSettings::example())
    }

    fn body(path: &str, bdev: &str, controller: &str) -> String {
        json!({"installPath": path, "bdevName": bdev, "controllerName": controller}).to_string()
    }

    fn which(text: &str) -> WhichRequest {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_activation_says_target_and_volume_in_one_body() {
        let text = r#"{"image": "a:1", "coreCount": 2, "socketDir": "/s", "controlSock": "/s/a.sock",
            "hugepageNr": 256, "installPath": "zbs://pool/volume", "bdevName": "zbs-bdev-01",
            "controllerName": "zbs-vhost-01", "taskContext": {"a": [1]}, "sshPassword": "x"}"#;
        let (target, volume) = activate(text).unwrap();
        assert_eq!((target.socket_dir.as_str(), target.memory_mib), ("/s", 512));
        assert_eq!(target.image.as_deref(), Some("a:1"));
        assert_eq!((volume.name.as_str(), volume.bdev.as_str()), ("zbs-vhost-01", "zbs-bdev-01"));
        assert_eq!(volume.backing, Backing::Zbs { path: "pool/volume".into() });
        assert!(!volume.read_only && volume.cpumask.is_none());
    }

    #[test]
    fn install_paths_lose_their_scheme_and_a_suffix_that_is_there_already() {
        for path in ["zbs://p/v", "p/v", "p/v_zbs_", "zbs://p/v_zbs_", " p/v "] {
            assert_eq!(zbs(path), Backing::Zbs { path: "p/v".into() }, "{path}");
        }
    }

    #[test]
    fn names_and_paths_that_lead_elsewhere_are_refused_before_anything_is_done() {
        let long = "x".repeat(97);
        for name in ["../../etc/x", "$(reboot)", "a;id", "{{a}}", "a b", "vhost.sock", &long] {
            for text in [body("p/v", name, "a"), body("p/v", "a", name)] {
                assert_eq!(activate(&text).unwrap_err().code, Code::InvalidVolumeName, "{text}");
            }
        }
        for path in ["../../etc/x", "zbs://", "zbs:///etc/x", "p", "p/v w", "p/../v"] {
            let refused = activate(&body(path, "a", "a")).unwrap_err();
            assert_eq!(refused.code, Code::InvalidBacking, "{path}");
        }
        for text in [body("", "a", "a"), body("p/v", "", "a"), body("p/v", "a", "")] {
            assert_eq!(activate(&text).unwrap_err().code, Code::InvalidBody, "{text}");
        }
    }

    #[test]
    fn a_volume_that_is_created_by_pool_and_name_has_its_bdevs_name() {
        let create = |text: &str| {
            let request: CreateRequest = serde_json::from_str(text).unwrap();
            request.into_volume(&"/s".parse().unwrap())
        };
        let text = r#"{"hostIp": "10.0.0.1", "sshPort": 22, "sshPassword": "x", "logicalPool": "p",
                       "volume": "v", "bdevName": "b"}"#;
        let volume = create(text).unwrap();
        assert_eq!((volume.name.as_str(), volume.bdev.as_str()), ("b", "b"));
        assert_eq!(volume.backing, Backing::Zbs { path: "p/v".into() });
        let newer = r#"{"hostIp":"10.0.0.1","logicalPool":"p","volume":"v","bdevName":"b"}"#;
        assert_eq!(create(newer).unwrap(), volume, "newer controllers send nothing about ssh");
        let outside = r#"{"logicalPool": "..", "volume": "v", "bdevName": "b"}"#;
        assert_eq!(create(outside).unwrap_err().code, Code::InvalidBacking);
        assert_eq!(create(r#"{"volume": "v"}"#).unwrap_err().code, Code::InvalidBody);
    }

    #[test]
    fn a_volume_is_meant_by_its_controller_and_by_its_bdev_where_only_that_is_said() {
        let name = |text: &str| text.parse::<VolumeName>().unwrap();
        let both = which(r#"{"bdevName": "b", "controllerName": "c", "controlSock": ""}"#);
        let key = VolumeKey::Both { name: name("c"), bdev: name("b") };
        assert_eq!(both.key().unwrap(), key);
        let controller = which(r#"{"controllerName": "c"}"#);
        assert_eq!(controller.key().unwrap(), VolumeKey::Name(name("c")));
        assert_eq!(both.bdev().unwrap(), VolumeKey::Bdev(name("b")));
        assert_eq!(which(r#"{"bdevName": "b"}"#).key().unwrap(), VolumeKey::Bdev(name("b")));
        assert_eq!(which("{}").key().unwrap_err().code, Code::InvalidBody);
        let outside = which(r#"{"bdevName": "../b", "controllerName": "c"}"#);
        assert_eq!(outside.key().unwrap_err().code, Code::InvalidVolumeName);
        assert_eq!(which(r#"{"sizeMib": "2048"}"#).size_mib, Some(2048));
    }

    #[test]
    fn an_activation_succeeds_when_the_socket_is_there_and_says_where() {
        let view = |state| VolumeView {
            target: "a".parse().unwrap(),
            spec: VolumeSpec::example("v"),
            status: VolumeStatus {
                state,
                reason: "no such volume".into(),
                socket_path: "/s/v".into(),
                ..VolumeStatus::unknown()
            },
        };
        for state in [VolumeState::Serving, VolumeState::Stuck] {
            let report = activated(&[view(state)], &json!([])).unwrap();
            assert_eq!((&report["success"], &report["error"]), (&json!(true), &json!("")));
            assert_eq!(report["socketPath"], "/s/v");
        }
        for state in [VolumeState::Pending, VolumeState::Degraded] {
            let fault = activated(&[view(state)], &json!([])).unwrap_err();
            assert_eq!(fault.code, Code::VolumeNotServing);
            assert!(fault.text.contains("v in a is") && fault.text.contains("no such volume"));
        }
        assert_eq!(activated(&[], &json!([])).unwrap_err().code, Code::Internal);
    }
}
