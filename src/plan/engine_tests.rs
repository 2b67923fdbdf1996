//! Every branch of the engine's policy, on observations made by hand.

use std::time::Duration;

use super::*;
use crate::model::engine::{ApiVersion, PackageManager, PackageSets, UnitState};

const STARTED: u64 = 1_000_000;

fn policy() -> EnginePolicy {
    EnginePolicy {
        socket: "/run/docker.sock".into(),
        pid_file: "/run/docker.pid".into(),
        lock_timeout: Duration::from_secs(60),
        packages: PackageSets::from([(PackageManager::Apt, vec![vec!["docker.io".into()]])]),
        ..EnginePolicy::default()
    }
}

fn strict() -> EnginePolicy {
    EnginePolicy { require_iptables_false: true, ..policy() }
}

/// A machine with nothing on it, whose PID 1 is not systemd.
fn bare() -> EngineSeen {
    EngineSeen { package_manager: Some(PackageManager::Apt), ..EngineSeen::bare() }
}

/// The same with systemd, and the unit as Debian's package leaves it.
fn bare_with_systemd() -> EngineSeen {
    EngineSeen { init: Init::Systemd, unit: Some(unit("not-found", "inactive", "")), ..bare() }
}

fn unit(load: &str, active: &str, file: &str) -> UnitState {
    let args = ["/usr/sbin/dockerd", "-H", "fd://"].map(String::from).to_vec();
    UnitState { load: load.into(), active: active.into(), file: file.into(), args }
}

fn stopped(daemon_json: DaemonJson) -> EngineSeen {
    EngineSeen { installed: Some("/usr/sbin/dockerd".into()), daemon_json, ..bare() }
}

fn stopped_unit(unit: UnitState) -> EngineSeen {
    EngineSeen { init: Init::Systemd, unit: Some(unit), ..stopped(says(r#"{"iptables":false}"#)) }
}

fn says(text: &str) -> DaemonJson {
    DaemonJson::Object { text: text.into(), modified_at: STARTED - 10 }
}

fn running(daemon_json: DaemonJson, args: &[&str]) -> EngineSeen {
    let args = ["dockerd"].iter().chain(args).map(ToString::to_string).collect();
    EngineSeen {
        api: EngineApi::Answers(EngineVersion {
            version: "20.10.24".into(),
            api: ApiVersion(1, 41),
        }),
        process: Some(EngineProcess { pid: 7, started_at: STARTED, args }),
        ..stopped(daemon_json)
    }
}

fn names(plan: &EnginePlan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::name).collect()
}

fn codes(plan: &EnginePlan) -> Vec<Code> {
    plan.findings.iter().map(|finding| finding.code).collect()
}

fn written(plan: &EnginePlan) -> Value {
    let text = plan.steps.iter().find_map(|step| match step {
        Step::WriteDaemonJson { text, .. } => Some(text),
        _ => None,
    });
    serde_json::from_str(text.expect("a plan that writes daemon.json")).unwrap()
}

#[track_caller]
fn refused(seen: &EngineSeen, policy: &EnginePolicy, code: Code, word: &str) {
    let fault = plan(seen, policy).expect_err("a plan that is refused");
    assert_eq!(fault.code, code, "{}", fault.text);
    assert!(fault.text.contains(word), "'{}' does not say '{word}'", fault.text);
}

#[test]
fn daemon_json_comes_before_the_packages_and_these_before_the_start() {
    let plan = plan(&bare(), &policy()).unwrap();
    assert_eq!(names(&plan), ["writeDaemonJson", "install", "startDaemon", "awaitEngine"]);
    assert_eq!(written(&plan), serde_json::json!({"iptables": false}));
    assert_eq!(plan.findings, []);
}

#[test]
fn where_systemd_reigns_the_unit_is_started_instead_of_the_daemon() {
    let plan = plan(&bare_with_systemd(), &policy()).unwrap();
    assert_eq!(names(&plan), ["writeDaemonJson", "install", "startUnit", "awaitEngine"]);
}

#[test]
fn a_disabled_unit_is_enabled_before_it_is_started() {
    let seen = stopped_unit(unit("loaded", "inactive", "disabled"));
    assert_eq!(names(&plan(&seen, &policy()).unwrap()), ["enableUnit", "startUnit", "awaitEngine"]);
    let seen = stopped_unit(unit("loaded", "inactive", "enabled"));
    assert_eq!(names(&plan(&seen, &policy()).unwrap()), ["startUnit", "awaitEngine"]);
}

#[test]
fn engine_that_is_being_stopped_is_started_again_by_its_unit() {
    let process = running(says(r#"{"iptables":false}"#), &[]).process;
    let with = |active: &str| EngineSeen {
        process: process.clone(),
        ..stopped_unit(unit("loaded", active, "enabled"))
    };
    assert_eq!(
        names(&plan(&with("deactivating"), &policy()).unwrap()),
        ["startUnit", "awaitEngine"]
    );
    assert_eq!(names(&plan(&with("activating"), &policy()).unwrap()), ["awaitEngine"]);
}

#[test]
fn the_daemon_is_started_where_it_was_found() {
    let seen = EngineSeen {
        installed: Some("/usr/local/bin/dockerd".into()),
        ..stopped(says(r#"{"iptables":false}"#))
    };
    let plan = plan(&seen, &policy()).unwrap();
    assert_eq!(plan.steps[0], Step::StartDaemon { binary: "/usr/local/bin/dockerd".into() });
}

#[test]
fn an_engine_that_runs_with_the_setting_is_left_alone() {
    let in_file = running(says(r#"{"iptables":false}"#), &[]);
    // The file is written right before the start, and both times are whole seconds.
    let just_before =
        DaemonJson::Object { text: r#"{"iptables":false}"#.into(), modified_at: STARTED + 1 };
    let by_flag = |flag| running(DaemonJson::Absent, &["-H", "fd://", flag]);
    for seen in [
        in_file,
        running(just_before, &[]),
        by_flag("--iptables=false"),
        by_flag("-iptables=0"),
        by_flag("--iptables=F"),
    ] {
        assert_eq!(plan(&seen, &strict()), Ok(EnginePlan::default()), "{seen:?}");
    }
}

#[test]
fn an_engine_that_runs_without_the_setting_is_reported_and_not_touched() {
    let too_late =
        DaemonJson::Object { text: r#"{"iptables":false}"#.into(), modified_at: STARTED + 2 };
    for (seen, why) in [
        (running(DaemonJson::Absent, &[]), "does not say"),
        (running(says("{}"), &[]), "does not say"),
        (running(says(r#"{"iptables":true}"#), &[]), "says \"iptables\": true"),
        (running(too_late, &[]), "changed after the engine started"),
        (running(says(r#"{"iptables":false}"#), &["--iptables=true"]), "--iptables=true"),
        (running(says(r#"{"iptables":false}"#), &["--iptables"]), "--iptables=true"),
        // Of two flags the last counts.
        (running(says("{}"), &["--iptables=false", "--iptables=1"]), "--iptables=true"),
        // The engine would not start again with it.
        (
            running(DaemonJson::Unusable("it is not JSON".into()), &[]),
            "cannot be used: it is not JSON",
        ),
    ] {
        let plan = plan(&seen, &policy()).unwrap();
        assert_eq!((names(&plan), codes(&plan)), (vec![], vec![Code::EngineMayChangeIptables]));
        assert!(plan.findings[0].text.contains(why), "{} / {why}", plan.findings[0].text);
        refused(&seen, &strict(), Code::EngineMayChangeIptables, why);
    }
}

#[test]
fn another_flag_of_that_beginning_says_nothing_of_the_setting() {
    let seen = running(says(r#"{"iptables":false}"#), &["--iptables-restore", "x"]);
    assert_eq!(plan(&seen, &strict()), Ok(EnginePlan::default()));
}

#[test]
fn an_engine_that_runs_and_would_not_after_a_reboot_is_enabled() {
    let seen = EngineSeen {
        init: Init::Systemd,
        unit: Some(unit("loaded", "active", "disabled")),
        ..running(says(r#"{"iptables":false}"#), &[])
    };
    assert_eq!(names(&plan(&seen, &policy()).unwrap()), ["enableUnit"]);
}

#[test]
fn the_key_is_merged_into_what_the_operator_has() {
    let seen = stopped(says(r#"{"debug": true, "log-opts": {"max-size": "10m"}}"#));
    let plan = plan(&seen, &policy()).unwrap();
    assert_eq!(names(&plan), ["writeDaemonJson", "startDaemon", "awaitEngine"]);
    let wanted = serde_json::json!({
        "debug": true, "log-opts": {"max-size": "10m"}, "iptables": false
    });
    assert_eq!(written(&plan), wanted);
}

#[test]
fn the_rest_of_the_operators_file_stays_as_it_was_written() {
    for (before, after) in [
        (
            "{\n    \"mtu\": 9e3,\n    \"debug\": true\n}\n",
            "{\n  \"iptables\": false,\n    \"mtu\": 9e3,\n    \"debug\": true\n}\n",
        ),
        (" {\"labels\":[\"{\"]}", " {\n  \"iptables\": false,\"labels\":[\"{\"]}"),
        (" { }\n", "{\n  \"iptables\": false\n}\n"),
    ] {
        let plan = plan(&stopped(says(before)), &policy()).unwrap();
        let Step::WriteDaemonJson { text, .. } = &plan.steps[0] else { panic!("{plan:?}") };
        assert_eq!(text, after);
        assert_eq!(written(&plan)[KEY], Value::Bool(false));
    }
}

#[test]
fn what_the_operator_chose_is_kept_and_told_or_refused_when_the_settings_say_so() {
    for text in [r#"{"iptables": true}"#, r#"{"iptables": "no"}"#] {
        let seen = stopped(says(text));
        let plan = plan(&seen, &policy()).unwrap();
        assert_eq!(names(&plan), ["startDaemon", "awaitEngine"]);
        assert_eq!(codes(&plan), [Code::IptablesSetByOperator]);
        refused(&seen, &strict(), Code::IptablesSetByOperator, "/etc/docker/daemon.json");
    }
}

#[test]
fn a_file_is_not_touched_where_the_unit_has_the_flag_for_dockerd_refuses_both() {
    let with_flag = |flag: &str| {
        let mut unit = unit("loaded", "inactive", "enabled");
        unit.args.push(flag.into());
        EngineSeen { daemon_json: says("{}"), ..stopped_unit(unit) }
    };
    let off = plan(&with_flag("--iptables=false"), &strict()).unwrap();
    assert_eq!((names(&off), codes(&off)), (vec!["startUnit", "awaitEngine"], vec![]));
    let on = plan(&with_flag("--iptables=true"), &policy()).unwrap();
    assert_eq!(names(&on), ["startUnit", "awaitEngine"]);
    assert_eq!(codes(&on), [Code::IptablesSetByOperator]);
    refused(
        &with_flag("--iptables=true"),
        &strict(),
        Code::IptablesSetByOperator,
        "docker.service",
    );
}

#[test]
fn a_file_that_is_no_json_object_stops_everything_before_the_engine_can_start() {
    let unusable = DaemonJson::Unusable("it is not JSON: EOF".into());
    for seen in [stopped(unusable.clone()), EngineSeen { daemon_json: unusable.clone(), ..bare() }]
    {
        refused(&seen, &policy(), Code::DaemonJsonUnusable, "/etc/docker/daemon.json");
        refused(&seen, &policy(), Code::DaemonJsonUnusable, "not JSON: EOF");
    }
}

#[test]
fn what_is_not_installed_and_cannot_be_is_said_before_anything_changes() {
    let forbidden = EnginePolicy { install: false, ..policy() };
    refused(&bare(), &forbidden, Code::EngineNotInstalled, "engine.install");
    let nameless = EnginePolicy { packages: PackageSets::new(), ..policy() };
    refused(&bare(), &nameless, Code::NoPackagesConfigured, "engine.packages.apt");
    let alone = EngineSeen { package_manager: None, ..bare() };
    refused(&alone, &policy(), Code::NoPackageManager, "dockerd");
}

#[test]
fn an_engine_that_is_installed_needs_neither_a_package_manager_nor_leave_to_install() {
    let seen = EngineSeen { package_manager: None, ..stopped(says(r#"{"iptables":false}"#)) };
    let policy = EnginePolicy { install: false, packages: PackageSets::new(), ..policy() };
    assert_eq!(names(&plan(&seen, &policy).unwrap()), ["startDaemon", "awaitEngine"]);
}

#[test]
fn what_the_operator_masked_is_not_started() {
    let seen = stopped_unit(unit("masked", "inactive", "masked"));
    refused(&seen, &policy(), Code::EngineUnitMasked, "systemctl unmask docker.service");
}

#[test]
fn where_systemd_cannot_be_asked_nothing_is_started_behind_its_back() {
    let seen = EngineSeen {
        init: Init::Systemd,
        unit_error: Some("cannot reach systemd over D-Bus: no such file".into()),
        ..stopped(says(r#"{"iptables":false}"#))
    };
    refused(&seen, &policy(), Code::SystemdUnreachable, "no such file");
}

#[test]
fn an_engine_that_runs_is_good_enough_where_systemd_cannot_be_asked() {
    let seen = EngineSeen {
        init: Init::Systemd,
        unit_error: Some("cannot reach systemd".into()),
        ..running(says(r#"{"iptables":false}"#), &[])
    };
    assert_eq!(plan(&seen, &policy()), Ok(EnginePlan::default()));
}

#[test]
fn what_listens_and_does_not_answer_is_left_alone() {
    let broken = EngineApi::Broken("no answer to _ping within 5s".into());
    let someone = EngineSeen { api: broken.clone(), ..bare() };
    refused(&someone, &policy(), Code::EngineNotAnswering, "something listens at /run/docker.sock");
    let engine = EngineSeen { api: broken, ..running(DaemonJson::Absent, &[]) };
    refused(&engine, &policy(), Code::EngineNotAnswering, "pid 7");
    refused(&engine, &policy(), Code::EngineNotAnswering, "no answer to _ping within 5s");
}

#[test]
fn an_engine_that_is_too_old_is_named_with_both_versions() {
    let policy = EnginePolicy { min_api: ApiVersion(1, 44), ..policy() };
    let seen = running(says(r#"{"iptables":false}"#), &[]);
    refused(&seen, &policy, Code::EngineTooOld, "20.10.24");
    refused(&seen, &policy, Code::EngineTooOld, "1.44");
    // 1.9 is older than 1.41, and 2.0 is newer.
    let api = |api| EngineApi::Answers(EngineVersion { version: "x".into(), api });
    refused(
        &EngineSeen { api: api(ApiVersion(1, 9)), ..seen.clone() },
        &policy,
        Code::EngineTooOld,
        "1.9",
    );
    assert!(plan(&EngineSeen { api: api(ApiVersion(2, 0)), ..seen }, &policy).is_ok());
}

#[test]
fn an_engine_that_is_coming_up_is_only_waited_for() {
    // Even its file is left as it is: what it would say now is not in force.
    let seen = EngineSeen { api: EngineApi::Absent, ..running(DaemonJson::Absent, &[]) };
    let plan = plan(&seen, &policy()).unwrap();
    assert_eq!(names(&plan), ["awaitEngine"]);
    let Step::AwaitEngine { socket, min_api, within } = &plan.steps[0] else { unreachable!() };
    assert_eq!((socket.as_str(), *min_api), ("/run/docker.sock", ApiVersion(1, 41)));
    assert_eq!(*within, Duration::from_secs(60));
}

#[test]
fn planning_again_after_each_step_took_effect_leads_to_nothing_left_to_do() {
    for mut seen in [bare(), bare_with_systemd(), stopped(says("{}"))] {
        let mut done = Vec::new();
        while let Some(step) = plan(&seen, &policy()).unwrap().steps.into_iter().next() {
            done.push(step.name());
            assert!(done.len() < 10, "{done:?}");
            take_effect(&step, &mut seen);
        }
        assert_eq!(plan(&seen, &strict()), Ok(EnginePlan::default()));
    }
}

/// What a step does to the machine, as Debian's packages and dockerd do it.
fn take_effect(step: &Step, seen: &mut EngineSeen) {
    match step {
        Step::WriteDaemonJson { text, .. } => {
            seen.daemon_json = DaemonJson::Object { text: text.clone(), modified_at: STARTED - 1 };
        }
        Step::Install { .. } => {
            seen.installed = Some("/usr/sbin/dockerd".into());
            if seen.init == Init::Systemd {
                seen.unit = Some(unit("loaded", "inactive", "disabled"));
            }
        }
        Step::EnableUnit(_) => seen.unit.as_mut().unwrap().file = "enabled".into(),
        Step::StartUnit(_) | Step::StartDaemon { .. } => {
            seen.process = running(DaemonJson::Absent, &[]).process;
        }
        Step::AwaitEngine { .. } => seen.api = running(DaemonJson::Absent, &[]).api,
        other => panic!("the engine's plan has the step {}", other.name()),
    }
}
