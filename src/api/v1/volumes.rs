//! `/v1/targets/{name}/volumes`: volumes as resources of their target.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::audit::{AuditedCall, AuditedChange, Subject};
use super::super::body;
use super::super::errors::{self, Problem};
use super::SharedV1;
use crate::model::access::Principal;
use crate::model::bounds::{Paths, authorize_volume};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::policy::HttpPolicy;
use crate::model::target::{TargetName, TargetSpec};
use crate::model::volume::{Backing, VolumeKey, VolumeName, VolumeSpec, VolumeView};

/// Least limit of the body of a list, in KiB: enough for some thousands of volumes with long names.
const LIST_KIB: usize = 4 << 10;
/// Default time to wait for a connected virtual machine to disconnect.
const USUAL_WAIT: Duration = Duration::from_secs(30);
/// Longest time to wait for a connected virtual machine to disconnect.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Spec of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeBody {
    /// Name; required in a list. Elsewhere the URL gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeName>,
    /// Name of the volume's bdev; that of the volume, if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bdev: Option<VolumeName>,
    pub backing: Backing,
    #[serde(default)]
    pub read_only: bool,
    /// CPUs that handle the volume's requests; those of the target, if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpumask: Option<String>,
}

impl VolumeBody {
    /// Converts the body to a spec. The name is `named`, from the URL, or that in the body.
    ///
    /// # Errors
    /// If a field is invalid, or if the name is missing or differs from `named`.
    pub fn into_spec(
        self,
        named: Option<&VolumeName>,
        socket_dir: &CleanPath,
    ) -> Result<VolumeSpec, Fault> {
        let refused = |text: String| Err(Fault::new(Code::InvalidBody, text));
        let name = match (named, self.name) {
            (Some(named), Some(name)) if *named != name => {
                return refused(format!("the address names {named}, and the body {name}"));
            }
            (Some(named), _) => named.clone(),
            (None, Some(name)) => name,
            (None, None) => return refused("a volume of the list has no name".to_string()),
        };
        VolumeSpec {
            bdev: self.bdev.unwrap_or_else(|| name.clone()),
            name,
            backing: self.backing,
            read_only: self.read_only,
            cpumask: self.cpumask,
        }
        .validate(socket_dir)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumesBody {
    /// Volumes, each with its name.
    pub volumes: Vec<VolumeBody>,
}

impl VolumesBody {
    /// Specs of all volumes.
    ///
    /// # Errors
    /// If a spec is invalid, or if a name or a bdev is given twice.
    pub fn into_specs(self, socket_dir: &CleanPath) -> Result<Vec<VolumeSpec>, Fault> {
        let specs = self.volumes.into_iter().map(|volume| volume.into_spec(None, socket_dir));
        let specs: Vec<VolumeSpec> = specs.collect::<Result<_, _>>()?;
        let (mut names, mut bdevs) = (BTreeSet::new(), BTreeSet::new());
        for VolumeSpec { name, bdev, .. } in &specs {
            if !names.insert(name) || !bdevs.insert(bdev) {
                let text = format!("the volume {name} or its bdev {bdev} is in the list twice");
                return Err(Fault::new(Code::InvalidBody, text));
            }
        }
        Ok(specs)
    }
}

/// Volumes as published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumesView {
    pub volumes: Vec<VolumeView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResizeBody {
    pub size_mib: u64,
}

/// Options of removing a volume.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DeleteQuery {
    /// Set to wait until a connected virtual machine has disconnected. A volume is never removed while one is
    /// connected.
    #[serde(alias = "force")]
    pub wait: bool,
    /// Longest wait for a virtual machine to disconnect, in milliseconds. Without `wait`, it also causes a wait.
    pub timeout_ms: Option<u64>,
}

impl DeleteQuery {
    fn timeout(self) -> Result<Option<Duration>, Fault> {
        let wait = match (self.timeout_ms, self.wait) {
            (Some(ms), _) => Duration::from_millis(ms),
            (None, true) => USUAL_WAIT,
            (None, false) => return Ok(None),
        };
        if wait > LONGEST_WAIT {
            let text = format!("timeoutMs {} is more than an hour", wait.as_millis());
            return Err(Fault::new(Code::InvalidQuery, text));
        }
        Ok(Some(wait))
    }
}

/// Lists the desired volumes of the target, with their status.
pub async fn list(
    State(api): State<SharedV1>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let name: TargetName = name.parse().map_err(Problem::of)?;
    let volumes = api.targets.volumes(&name).await;
    if volumes.is_empty() {
        wanted(&api, &name)?;
    }
    Ok(Json(shown(volumes)).into_response())
}

pub async fn get(
    State(api): State<SharedV1>,
    Path(names): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (target, volume) = parsed_names(&names)?;
    let volumes = api.targets.volumes(&target).await;
    let view = volumes.into_iter().find(|view| view.spec.name == volume);
    let view = view.ok_or_else(|| unknown(&target, &volume))?;
    Ok(Json(redacted(view)).into_response())
}

/// Makes volumes serve, all at once. Returns each volume with the status that it has then. A volume that does not serve
/// stays desired and is retried.
pub async fn put_all(
    State(api): State<SharedV1>,
    Path(name): Path<String>,
    by: Extension<Principal>,
    body: Body,
) -> Result<Response, Problem> {
    let name: TargetName = name.parse().map_err(Problem::of)?;
    let body_limit_kib = api.http.body_limit_kib.max(LIST_KIB);
    let limits = HttpPolicy { body_limit_kib, ..api.http };
    let bytes = body::read(body, limits).await?;
    let list = body::parse::<VolumesBody>(&bytes)?;
    drop(bytes);
    let target = wanted(&api, &name)?;
    let specs = list.into_specs(&target.socket_dir).map_err(Problem::of)?;
    allowed(&api, &name, &specs)?;
    let work = api.targets.activate(&target, specs, false);
    Ok(Json(shown(noted(change("activate", by, Subject::target(&name)), work).await?))
        .into_response())
}

/// Makes one volume serve. If it does not, the answer is a problem, but the volume stays desired and is retried.
pub async fn put(
    State(api): State<SharedV1>,
    Path(names): Path<(String, String)>,
    by: Extension<Principal>,
    body: Body,
) -> Result<Response, Problem> {
    let (name, volume, request) = read::<VolumeBody>(&api, &names, body).await?;
    let target = wanted(&api, &name)?;
    let spec = request.into_spec(Some(&volume), &target.socket_dir).map_err(Problem::of)?;
    allowed(&api, &name, std::slice::from_ref(&spec))?;
    let work = async {
        let views = api.targets.activate(&target, vec![spec], false).await?;
        let lost =
            || Fault::new(Code::Internal, "the target's owner reported nothing of the volume");
        let view = views.into_iter().next().ok_or_else(lost)?;
        errors::made(&view, "it stays wanted, and is tried again").map(|()| view)
    };
    let of = Subject::target(&name).volume(&volume);
    Ok(Json(redacted(noted(change("activate", by, of), work).await?)).into_response())
}

/// Removes a volume; an absent one counts as removed.
pub async fn delete(
    State(api): State<SharedV1>,
    Path(names): Path<(String, String)>,
    query: Result<Query<DeleteQuery>, QueryRejection>,
    by: Extension<Principal>,
) -> Result<Response, Problem> {
    let (name, volume) = parsed_names(&names)?;
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidQuery, e.body_text()))?;
    let wait = query.timeout().map_err(Problem::of)?;
    let target = wanted(&api, &name)?;
    let work = api.targets.deactivate(&target, vec![VolumeKey::Name(volume.clone())], wait);
    let of = Subject { force: query.wait, ..Subject::target(&name).volume(&volume) };
    noted(change("deactivate", by, of), work).await?;
    Ok(Json(json!({"target": name, "name": volume, "state": "absent"})).into_response())
}

pub async fn resize(
    State(api): State<SharedV1>,
    Path(names): Path<(String, String)>,
    by: Extension<Principal>,
    body: Body,
) -> Result<Response, Problem> {
    let (name, volume, ResizeBody { size_mib }) = read(&api, &names, body).await?;
    if size_mib == 0 {
        return Err(Problem::new(Code::InvalidBody, "sizeMib 0 is not at least 1"));
    }
    let target = wanted(&api, &name)?;
    let of = Subject::target(&name).volume(&volume);
    let work = api.targets.resize(&target, VolumeKey::Name(volume), size_mib);
    Ok(Json(redacted(noted(change("resize", by, of), work).await?)).into_response())
}

/// Reads the names in a request's path, and its body.
async fn read<T: DeserializeOwned>(
    api: &SharedV1,
    names: &(String, String),
    body: Body,
) -> Result<(TargetName, VolumeName, T), Problem> {
    let (name, volume) = parsed_names(names)?;
    let bytes = body::read(body, api.http).await?;
    Ok((name, volume, body::parse(&bytes)?))
}

fn parsed_names((target, volume): &(String, String)) -> Result<(TargetName, VolumeName), Problem> {
    Ok((target.parse().map_err(Problem::of)?, volume.parse().map_err(Problem::of)?))
}

fn wanted(api: &SharedV1, name: &TargetName) -> Result<TargetSpec, Problem> {
    api.wanted(name).ok_or_else(|| {
        let text = format!("no target {name} is wanted: deploy it first (PUT /v1/targets/{name})");
        Problem::new(Code::TargetUnknown, text)
    })
}

/// Refuses volumes that name anything that the settings do not let callers name, before their target is asked for them.
fn allowed(api: &SharedV1, target: &TargetName, specs: &[VolumeSpec]) -> Result<(), Problem> {
    let known = api.desired.borrow().volumes_of(target);
    let authorize = |spec: &VolumeSpec| {
        authorize_volume(spec, known.get(&spec.name), &api.target_defaults, Paths::AsNamed)
    };
    specs.iter().try_for_each(authorize).map_err(Problem::of)
}

fn unknown(target: &TargetName, volume: &VolumeName) -> Problem {
    let text = format!(
        "no volume {volume} is wanted in {target}: GET /v1/targets/{target}/volumes lists those that are"
    );
    Problem::new(Code::VolumeUnknown, text)
}

fn change(route: &'static str, by: Extension<Principal>, of: Subject) -> AuditedChange {
    AuditedChange { of, ..AuditedChange::of(route, by.0) }
}

/// Makes a change of volumes, with its line in the log.
async fn noted<T>(
    change: AuditedChange,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Problem> {
    let call = AuditedCall::begins(change, None);
    let result = work.await;
    call.ends(result.as_ref().err());
    result.map_err(Problem::of)
}

fn shown(volumes: Vec<VolumeView>) -> VolumesView {
    VolumesView { volumes: volumes.into_iter().map(redacted).collect() }
}

/// Hides the values of the parameters of a raw backing. They may give access to the volume's data, and not every caller
/// may have that.
fn redacted(mut view: VolumeView) -> VolumeView {
    if let Backing::Raw { params, .. } = &mut view.spec.backing {
        params.iter_mut().for_each(|(_, value)| *value = json!("(hidden)"));
    }
    view
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn folder() -> CleanPath {
        "/s".parse().unwrap()
    }

    fn one(text: &str) -> Result<VolumeSpec, Fault> {
        let body = body::parse::<VolumeBody>(text.as_bytes()).map_err(|problem| problem.fault)?;
        body.into_spec(Some(&"v".parse().unwrap()), &folder())
    }

    fn many(volumes: &Value) -> Result<Vec<VolumeSpec>, Fault> {
        let text = json!({"volumes": volumes}).to_string();
        let body = body::parse::<VolumesBody>(text.as_bytes()).map_err(|problem| problem.fault)?;
        body.into_specs(&folder())
    }

    #[test]
    fn a_volume_is_put_under_its_address_and_its_bdev_has_its_name() {
        let spec = one(r#"{"backing": {"kind": "malloc", "sizeMib": 16}}"#).unwrap();
        assert_eq!((spec.name.as_str(), spec.bdev.as_str()), ("v", "v"));
        assert!(!spec.read_only);
        let text = r#"{"name": "v", "bdev": "b", "readOnly": true, "cpumask": "0x3",
                       "backing": {"kind": "zbs", "path": "p/v"}}"#;
        let spec = one(text).unwrap();
        assert_eq!((spec.bdev.as_str(), spec.read_only), ("b", true));
        assert_eq!(spec.cpumask.as_deref(), Some("0x3"));
    }

    #[test]
    fn what_no_volume_can_be_is_refused_with_its_code() {
        for (text, code) in [
            (r#"{}"#, Code::InvalidBody),
            (r#"{"backing": {"kind": "tape"}}"#, Code::InvalidBody),
            (
                r#"{"backing": {"kind": "malloc", "sizeMib": 1}, "state": "serving"}"#,
                Code::InvalidBody,
            ),
            (r#"{"backing": {"kind": "malloc", "sizeMib": 1}, "name": "w"}"#, Code::InvalidBody),
            (r#"{"backing": {"kind": "malloc", "sizeMib": 1}, "bdev": "../b"}"#, Code::InvalidBody),
            (r#"{"backing": {"kind": "malloc", "sizeMib": 0}}"#, Code::InvalidBacking),
            (r#"{"backing": {"kind": "zbs", "path": "../../x"}}"#, Code::InvalidBacking),
            (
                r#"{"backing": {"kind": "malloc", "sizeMib": 1}, "cpumask": "all"}"#,
                Code::InvalidCpumask,
            ),
        ] {
            assert_eq!(one(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn a_list_has_names_and_each_once() {
        let volume = |name: &str, bdev: &str| json!({"name": name, "bdev": bdev, "backing": {"kind": "malloc", "sizeMib": 1}});
        assert_eq!(many(&json!([volume("a", "a"), volume("b", "b")])).unwrap().len(), 2);
        assert_eq!(many(&json!([])).unwrap(), []);
        for twice in [[volume("a", "a"), volume("a", "b")], [volume("a", "c"), volume("b", "c")]] {
            assert_eq!(many(&json!(twice)).unwrap_err().code, Code::InvalidBody);
        }
        let unnamed = json!([{"backing": {"kind": "malloc", "sizeMib": 1}}]);
        assert_eq!(many(&unnamed).unwrap_err().code, Code::InvalidBody);
    }

    #[test]
    fn a_machine_is_waited_for_when_that_is_asked_for_and_never_for_ever() {
        let wait = |wait, timeout_ms| DeleteQuery { wait, timeout_ms }.timeout();
        assert_eq!(wait(false, None).unwrap(), None);
        assert_eq!(wait(true, None).unwrap(), Some(USUAL_WAIT));
        assert_eq!(wait(true, Some(1500)).unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(wait(true, Some(u64::MAX)).unwrap_err().code, Code::InvalidQuery);
    }

    #[test]
    fn values_of_raw_params_are_not_shown() {
        let params = json!({"pool_name": "p", "config": {"key": "a"}, "user": ["b"]});
        let view = VolumeView {
            target: "a".parse().unwrap(),
            spec: VolumeSpec {
                backing: Backing::Raw {
                    method: "bdev_rbd_create".parse().unwrap(),
                    params: params.as_object().unwrap().clone(),
                    delete_method: None,
                },
                ..VolumeSpec::example("v")
            },
            status: crate::model::volume::VolumeStatus::unknown(),
        };
        let shown = serde_json::to_value(redacted(view)).unwrap();
        let hidden = json!({"pool_name": "(hidden)", "config": "(hidden)", "user": "(hidden)"});
        assert_eq!(shown["backing"]["params"], hidden);
    }
}
