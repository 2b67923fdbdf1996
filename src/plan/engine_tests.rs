//! Every branch of the engine's policy, on observations made by hand.

use std::time::Duration;

use super::super::engine_fixture::*;
use super::*;
use crate::model::engine::{ApiVersion, PackageSets};

#[test]
fn daemon_json_comes_before_the_packages_and_these_before_the_start() {
    let plan = plan(&bare(), &policy()).unwrap();
    assert_eq!(names(&plan), ["writeDaemonJson", "install", "startDaemon", "awaitEngine"]);
    let keys = serde_json::json!({"iptables": false, "ip6tables": false, "bridge": "none"});
    assert_eq!(written(&plan), keys);
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
    let binary = "/usr/local/bin/dockerd".to_string();
    assert_eq!(plan.steps[0], Step::StartDaemon { binary, args: Vec::new() });
}

#[test]
fn daemon_is_started_with_the_settings_that_differ_from_its_own() {
    let policy = EnginePolicy {
        daemon_json: "/etc/d.json".into(),
        socket: "/run/other.sock".into(),
        ..policy()
    };
    let start = |text: &str| {
        let command_line = CommandLine::Known(policy.own_arguments(true));
        let seen = EngineSeen { command_line, ..stopped(says(text)) };
        match plan(&seen, &policy).unwrap().steps.remove(0) {
            Step::StartDaemon { args, .. } => args,
            other => panic!("{other:?}"),
        }
    };
    let args = ["--config-file=/etc/d.json", "--host=unix:///run/other.sock"];
    assert_eq!(start(r#"{"iptables": false}"#), args);
}

#[test]
fn engine_with_another_socket_is_named_with_it_instead_of_waited_for() {
    let elsewhere = ["--host", "unix:///run/user.sock", "-H", "tcp://127.0.0.1:2375"];
    let runs = EngineSeen { api: EngineApi::Absent, ..running(says("{}"), &elsewhere) };
    refused(&runs, &policy(), Code::EngineSocketElsewhere, "unix:///run/user.sock");
    let stopped = stopped_with(&[], says(r#"{"hosts": ["unix:///run/user.sock"]}"#));
    refused(&stopped, &policy(), Code::EngineSocketElsewhere, "engine.socket");
    let linked = EngineSeen { socket_target: Some("/run/user.sock".into()), ..stopped };
    assert!(names(&plan(&linked, &policy()).unwrap()).contains(&"awaitEngine"), "by a link");
    for host in ["fd://", "unix:///var/run/docker.sock", "unix://", ""] {
        let seen = stopped_with(&["-H", host], says(r#"{"iptables": false}"#));
        assert_eq!(names(&plan(&seen, &policy()).unwrap()), ["startUnit", "awaitEngine"], "{host}");
    }
}

#[test]
fn daemon_whose_unit_systemd_does_not_know_is_not_started() {
    let seen = EngineSeen {
        unit: Some(unit("not-found", "inactive", "")),
        ..stopped_with(&[], says(r#"{"iptables": false}"#))
    };
    refused(&seen, &policy(), Code::EngineUnitMissing, "/usr/sbin/dockerd");
    refused(&seen, &policy(), Code::EngineUnitMissing, "engine.unit");
}

#[test]
fn unit_of_another_name_is_enabled_and_started() {
    let mut snap = unit("loaded", "inactive", "disabled");
    snap.name = "snap.docker.dockerd.service".into();
    let plan = plan(&stopped_unit(snap.clone()), &policy()).unwrap();
    assert_eq!(plan.steps[0], Step::EnableUnit(snap.name.clone()));
    assert_eq!(plan.steps[1], Step::StartUnit(snap.name));
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
fn another_engine_is_named_whether_docker_is_installed_or_not() {
    let podman = EngineApi::NotDocker("podman listens at /run/docker.sock".into());
    for seen in [bare(), stopped(says("{}")), running(DaemonJson::Absent, &[])] {
        let seen = EngineSeen { api: podman.clone(), ..seen };
        for words in ["podman listens at /run/docker.sock", "podman-docker", "engine.socket"] {
            refused(&seen, &policy(), Code::EngineNotDocker, words);
        }
    }
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
            seen.installed_version = Some("20.10.24".into());
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
