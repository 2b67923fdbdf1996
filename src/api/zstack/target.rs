//! `/vhost/target/ensure`, `/vhost/deploy`, `/vhost/destroy`: targets as the controller requests them.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Shared;
use super::super::v1::targets::TargetBody;
use super::{task, wire};
use crate::controller::outbox::Keep;
use crate::model::bounds::{Paths, authorize_target};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::policy::TargetSettings;
use crate::model::prepare::PrepareReport;
use crate::model::progress::{ProgressRequest, WorkKind};
use crate::model::target::{Desired, EnsureOptions, TargetName, TargetSpec};
use crate::model::work::WorkId;
use crate::targets::TargetChange;

const PAGE_MIB: u64 = 2;

/// Request of `ensure`, and a part of `activate`'s.
#[derive(Debug, Deserialize)]
pub(super) struct EnsureRequest {
    #[serde(default, deserialize_with = "wire::text")]
    image: Option<String>,
    #[serde(default, deserialize_with = "wire::cores")]
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
    /// Target to which the request applies. It is the desired target with the requested name, or without a name the one
    /// with the requested control socket, or without both the one with the default name. If no such target is desired,
    /// it is the default target.
    ///
    /// # Errors
    /// If the requested name or control socket is invalid, or without a desired target the settings name an invalid
    /// one.
    fn base(&self, desired: &Desired, defaults: &TargetSettings) -> Result<TargetSpec, Fault> {
        let wanted = match (&self.container_name, &self.control_sock) {
            (Some(name), _) => desired.targets.get(&name.parse::<TargetName>()?),
            (None, Some(control)) => with_control(&control.parse()?, desired),
            (None, None) => desired.targets.get(&TargetName::usual()),
        };
        wanted.cloned().map_or_else(|| usual(defaults), Ok)
    }

    /// Spec for a target that may be desired already: omitted fields stay as they are.
    ///
    /// # Errors
    /// When a field is invalid.
    pub(super) fn or_as_wanted(
        self,
        desired: &Desired,
        defaults: &TargetSettings,
    ) -> Result<TargetSpec, Fault> {
        let base = self.base(desired, defaults)?;
        let spec = self.into_spec(base, defaults)?;
        authorize_target(&spec, desired.targets.get(&spec.name), defaults, Paths::AsNamed)?;
        Ok(spec)
    }

    /// Spec of the request; omitted fields are as in `base`.
    pub(super) fn into_spec(
        self,
        base: TargetSpec,
        settings: &TargetSettings,
    ) -> Result<TargetSpec, Fault> {
        let name = self.container_name.as_ref().map(|name| name.parse()).transpose()?;
        let base = TargetSpec { name: name.unwrap_or(base.name), ..base };
        TargetBody::try_from(self)?.over(base, settings)
    }
}

impl TryFrom<EnsureRequest> for TargetBody {
    type Error = Fault;

    fn try_from(request: EnsureRequest) -> Result<TargetBody, Fault> {
        let path = |text: Option<String>| text.map(|text| text.parse::<CleanPath>()).transpose();
        // The controller may send both; a list is the more exact.
        let count = request.core_count.filter(|_| request.cores.is_none());
        Ok(TargetBody {
            kind: None,
            image: request.image,
            image_tar: path(request.image_tar)?,
            image_url: request.image_url,
            image_sha256: None,
            cores: request.cores,
            core_count: count.map(small).transpose()?,
            socket_dir: path(request.socket_dir)?,
            control_sock: path(request.control_sock)?,
            client_conf: path(request.client_conf)?,
            memory_mib: request.hugepage_nr.map(|pages| pages.saturating_mul(PAGE_MIB)),
            cgroup_parent: None,
        })
    }
}

fn small(count: u64) -> Result<u32, Fault> {
    let most = u64::from(u16::MAX);
    u32::try_from(count.min(most + 1)).ok().filter(|count| u64::from(*count) <= most).ok_or_else(
        || Fault::new(Code::InvalidCores, format!("{count} cores are more than any machine has")),
    )
}

/// `/vhost/target/ensure`: makes the requested target run.
pub async fn ensure(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, request: EnsureRequest, asked: Option<ProgressRequest>| {
        let defaults = &api.native.target_defaults;
        let spec = api.native.allowed(request.into_spec(usual(defaults)?, defaults)?)?;
        bring_up(api, spec, asked).await
    };
    task::call_with_progress(api, "ensure", request, work).await
}

/// Request of `deploy` and `destroy`, of which no field is needed. Fields with the address and the password of the node
/// are ignored, because the agent runs on it. So is `hugepageSize`: controllers send it with every deploy, as 1024 or as
/// 2, and neither replaces the operator's setting nor the size that follows from the volumes.
#[derive(Debug, Deserialize)]
struct DeployRequest {}

/// `/vhost/deploy`: makes the target of the settings run.
pub async fn deploy(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, _: DeployRequest, asked: Option<ProgressRequest>| {
        let spec = usual(&api.native.target_defaults)?;
        bring_up(api, spec, asked).await
    };
    task::call_with_progress(api, "deploy", request, work).await
}

/// Makes a target run, and reports its progress where requested.
async fn bring_up(
    api: Shared,
    spec: TargetSpec,
    asked: Option<ProgressRequest>,
) -> Result<Value, Fault> {
    let (id, events) = (WorkId::next(), api.native.progress.watch());
    let change = TargetChange::Ensure(spec, EnsureOptions::default());
    let work = async { answer(&api.native.targets.reconcile(id, change, false).await?) };
    task::report_progress(api.clone(), asked, WorkKind::Deploy, (id, events), work).await
}

/// `/vhost/destroy`: removes the target of the settings.
pub async fn destroy(State(api): State<Shared>, request: Request) -> Response {
    let work = async |api: Shared, _: DeployRequest| {
        let change =
            TargetChange::Destroy { spec: usual(&api.native.target_defaults)?, force: false };
        answer(&api.native.targets.reconcile(WorkId::next(), change, false).await?)
    };
    task::call(api, (Some("destroy"), Keep::OnDisk), request, work).await
}

/// Target of the settings.
///
/// # Errors
/// When the settings name an invalid control socket.
pub fn usual(defaults: &TargetSettings) -> Result<TargetSpec, Fault> {
    defaults.spec(TargetName::usual(), defaults.kind)?.validate()
}

/// Target of a call that names only a control socket. With `control`, it is the desired target that has it, else the
/// default one with that control socket. Without `control`, it is the desired target with the default name, else the
/// default one.
///
/// # Errors
/// If `control` is invalid, or if the settings do not let callers name it.
pub fn at(
    control: Option<CleanPath>,
    desired: &Desired,
    defaults: &TargetSettings,
) -> Result<TargetSpec, Fault> {
    let wanted = match &control {
        Some(control) => with_control(control, desired),
        None => desired.targets.get(&TargetName::usual()),
    };
    if let Some(wanted) = wanted {
        return Ok(wanted.clone());
    }
    let usual = usual(defaults)?;
    let control_sock = control.unwrap_or_else(|| usual.control_sock.clone());
    let spec = TargetSpec { control_sock, ..usual }.validate()?;
    authorize_target(&spec, None, defaults, Paths::AsNamed)?;
    Ok(spec)
}

fn with_control<'a>(control: &CleanPath, desired: &'a Desired) -> Option<&'a TargetSpec> {
    desired.targets.values().find(|spec| spec.control_sock == *control)
}

/// Answer to the controller for the report of a target.
///
/// # Errors
/// When something failed.
pub(super) fn answer(report: &PrepareReport) -> Result<Value, Fault> {
    if let Some(first) = report.errors.first() {
        return Err(Fault { code: first.code, text: report.error_text() });
    }
    Ok(json!({
        "success": true,
        "error": "",
        "outcome": report.outcome,
        "steps": report.steps,
        "findings": report.findings,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::target::{CoreRequest, TargetKind};

    fn request(text: &str) -> EnsureRequest {
        serde_json::from_str(text).unwrap()
    }

    /// Desired state with the target `other` alone; the default target is not desired.
    fn desired() -> Desired {
        let mut other = TargetSpec::example("other");
        other.control_sock = "/other/admin.sock".parse().unwrap();
        other.socket_dir = "/other".parse().unwrap();
        other.cores = CoreRequest::Count(7);
        other.memory_mib = 64;
        Desired { targets: [(other.name.clone(), other)].into(), ..Desired::default() }
    }

    #[test]
    fn what_an_ensure_does_not_say_is_as_the_settings_have_it() {
        let defaults = TargetSettings { image: "a:1".into(), ..TargetSettings::example() };
        let spec = |text: &str| request(text).into_spec(usual(&defaults).unwrap(), &defaults);
        assert_eq!(spec("{}").unwrap(), usual(&defaults).unwrap());
        let said = r#"{"cores":"[6,7]","socketDir":"/s","hugepageNr":"256","image":"b:1",
                       "clientConf":"/etc/zbs/client.conf","coreCount":2}"#;
        let said = spec(said).unwrap();
        let these = CoreRequest::These("[6,7]".parse().unwrap());
        assert_eq!(said.cores, these);
        assert_eq!(spec(r#"{"cores":[6,7],"coreCount":2}"#).unwrap().cores, these);
        assert_eq!(spec(r#"{"cores":" ","coreCount":2}"#).unwrap().cores, CoreRequest::Count(2));
        assert_eq!(said.control_sock.as_str(), "/s/vhost.sock");
        assert_eq!((said.memory_mib, said.image.as_deref()), (512, Some("b:1")));
        assert_eq!(spec(r#"{"controlSock":"/a"}"#).unwrap_err().code, Code::InvalidControlSocket);
        let unset = TargetSettings { memory_mib: None, ..TargetSettings::example() };
        let by_volumes = |text: &str| {
            let spec = request(text).into_spec(usual(&unset).unwrap(), &unset).unwrap();
            (spec.memory_mib, spec.memory_by_volumes)
        };
        assert_eq!(
            (by_volumes("{}"), by_volumes(r#"{"hugepageNr":256}"#)),
            ((512, true), (512, false))
        );
        assert!(!usual(&defaults).unwrap().memory_by_volumes, "the settings say it");
        // The kind of the target comes from the settings, not from the image.
        let defaults = TargetSettings { kind: TargetKind::Spdk, ..defaults };
        let image = request(r#"{"image":"spdk:24.01"}"#);
        let spec = image.into_spec(usual(&defaults).unwrap(), &defaults).unwrap();
        assert_eq!((spec.kind, spec.image.as_deref()), (TargetKind::Spdk, Some("spdk:24.01")));
    }

    #[test]
    fn a_target_that_is_wanted_already_stays_as_it_is_in_what_is_not_said() {
        let (desired, defaults) = (desired(), TargetSettings::example());
        let wanted = desired.targets.values().next().unwrap();
        let spec = |text: &str| request(text).or_as_wanted(&desired, &defaults).unwrap();
        assert_eq!(&spec(r#"{"containerName":"other"}"#), wanted);
        assert_eq!(&spec(r#"{"controlSock":"/other/admin.sock"}"#), wanted);
        let more = spec(r#"{"containerName":"other","coreCount":1}"#);
        assert_eq!(more, TargetSpec { cores: CoreRequest::Count(1), ..wanted.clone() });
        assert_eq!(spec("{}"), usual(&defaults).unwrap());
        let new = spec(r#"{"containerName":"new","socketDir":"/other"}"#);
        assert_eq!((new.name.as_str(), new.control_sock.as_str()), ("new", "/other/vhost.sock"));
        // Only what is new in a call is authorized.
        let closed = TargetSettings { socket_roots: Vec::new(), ..TargetSettings::example() };
        let code = |text: &str| {
            request(text).or_as_wanted(&desired, &closed).map(drop).map_err(|fault| fault.code)
        };
        for again in [
            r#"{"containerName":"other","socketDir":"/other","coreCount":1}"#,
            r#"{"controlSock":"/other/admin.sock"}"#,
            r#"{"containerName":"other","controlSock":"/other/b.sock"}"#,
            r#"{"containerName":"new","socketDir":"/sockets/new"}"#,
        ] {
            assert_eq!(code(again), Ok(()), "{again}");
        }
        for new in [
            r#"{"containerName":"new","socketDir":"/other"}"#,
            r#"{"containerName":"other","socketDir":"/s"}"#,
            r#"{"containerName":"other","clientConf":"/root/.ssh/id"}"#,
            r#"{"containerName":"other","imageTar":"/var/tmp/x.tar","image":"a:1"}"#,
        ] {
            assert_eq!(code(new), Err(Code::PathNotAllowed), "{new}");
        }
    }

    #[test]
    fn a_call_that_names_a_control_socket_means_the_target_that_has_it() {
        let (desired, defaults) = (desired(), TargetSettings::example());
        let name = |control: Option<&str>| {
            let control = control.map(|path| path.parse().unwrap());
            at(control, &desired, &defaults).map(|spec| (spec.name.to_string(), spec.control_sock))
        };
        assert_eq!(name(Some("/other/admin.sock")).unwrap().0, "other");
        assert_eq!(name(None).unwrap().0, "zbs-vhost");
        let (unknown, control) = name(Some("/s/nobody.sock")).unwrap();
        assert_eq!((unknown.as_str(), control.as_str()), ("zbs-vhost", "/s/nobody.sock"));
        for outside in ["/nobody/s.sock", "/run/docker.sock", "/s-evil/a.sock"] {
            assert_eq!(name(Some(outside)).unwrap_err().code, Code::PathNotAllowed, "{outside}");
        }
        assert_eq!(name(Some("/other/a-volume")).unwrap_err().code, Code::InvalidControlSocket);
    }
}
