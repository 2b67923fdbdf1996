//! Engines as tests observe them, and lookups in the resulting plans.

use std::time::Duration;

use super::engine::{EnginePlan, plan};
use crate::model::code::Code;
use crate::model::engine::{
    ApiVersion, CommandLine, DaemonJson, EngineApi, EngineProcess, EngineSeen, EngineVersion, Init,
    PackageManager, PackageSets, UnitState,
};
use crate::model::policy::EnginePolicy;
use crate::model::step::Step;

pub(super) const STARTED: u64 = 1_000_000;

pub(super) fn policy() -> EnginePolicy {
    EnginePolicy {
        socket: "/run/docker.sock".into(),
        pid_file: "/run/docker.pid".into(),
        lock_timeout: Duration::from_secs(60),
        packages: PackageSets::from([(PackageManager::Apt, vec![vec!["docker.io".into()]])]),
        ..EnginePolicy::default()
    }
}

pub(super) fn strict() -> EnginePolicy {
    EnginePolicy { require_iptables_false: true, ..policy() }
}

/// A machine with nothing on it, whose PID 1 is not systemd.
pub(super) fn bare() -> EngineSeen {
    EngineSeen { package_manager: Some(PackageManager::Apt), ..EngineSeen::bare() }
}

/// Machine with systemd and nothing else: systemd does not know the engine's unit.
pub(super) fn bare_with_systemd() -> EngineSeen {
    EngineSeen { init: Init::Systemd, unit: Some(unit("not-found", "inactive", "")), ..bare() }
}

pub(super) fn unit(load: &str, active: &str, file: &str) -> UnitState {
    UnitState {
        name: "docker.service".into(),
        load: load.into(),
        active: active.into(),
        file: file.into(),
        ..UnitState::default()
    }
}

/// Engine that is stopped, and will be started with these arguments.
pub(super) fn stopped_with(args: &[&str], daemon_json: DaemonJson) -> EngineSeen {
    let command_line = CommandLine::Known(args.iter().map(ToString::to_string).collect());
    let unit = unit("loaded", "inactive", "enabled");
    EngineSeen { daemon_json, command_line, ..stopped_unit(unit) }
}

pub(super) fn stopped(daemon_json: DaemonJson) -> EngineSeen {
    let installed = Some("/usr/sbin/dockerd".into());
    EngineSeen { installed, is_new: false, daemon_json, ..bare() }
}

pub(super) fn stopped_unit(unit: UnitState) -> EngineSeen {
    EngineSeen { init: Init::Systemd, unit: Some(unit), ..stopped(says(r#"{"iptables":false}"#)) }
}

pub(super) fn says(text: &str) -> DaemonJson {
    DaemonJson::Object { text: text.into(), modified_at: STARTED - 10 }
}

pub(super) fn running(daemon_json: DaemonJson, args: &[&str]) -> EngineSeen {
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    EngineSeen {
        api: EngineApi::Answers(EngineVersion {
            version: "20.10.24".into(),
            api: ApiVersion(1, 41),
        }),
        command_line: CommandLine::Known(args.clone()),
        process: Some(EngineProcess { pid: 7, started_at: STARTED, args, unit: None }),
        ..stopped(daemon_json)
    }
}

/// Running engine of another version.
pub(super) fn of_version(version: &str, seen: EngineSeen) -> EngineSeen {
    let api = ApiVersion(1, 41);
    EngineSeen { api: EngineApi::Answers(EngineVersion { version: version.into(), api }), ..seen }
}

pub(super) fn names(plan: &EnginePlan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::name).collect()
}

pub(super) fn codes(plan: &EnginePlan) -> Vec<Code> {
    plan.findings.iter().map(|finding| finding.code).collect()
}

pub(super) fn written(plan: &EnginePlan) -> serde_json::Value {
    let text = plan.steps.iter().find_map(|step| match step {
        Step::WriteDaemonJson { text, .. } => Some(text),
        _ => None,
    });
    serde_json::from_str(text.expect("a plan that writes daemon.json")).unwrap()
}

#[track_caller]
pub(super) fn refused(seen: &EngineSeen, policy: &EnginePolicy, code: Code, word: &str) {
    let fault = plan(seen, policy).expect_err("a plan that is refused");
    assert_eq!(fault.code, code, "{}", fault.text);
    assert!(fault.text.contains(word), "'{}' does not say '{word}'", fault.text);
}
