//! Every branch of the policy on `"iptables"`, on observations made by hand.

use super::super::engine::{EnginePlan, plan};
use super::super::engine_fixture::*;
use super::*;
use crate::model::engine::PackageSets;
use crate::model::step::Step;

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
fn operator_choices_are_kept_and_reported_or_refused_by_setting() {
    for text in [r#"{"iptables": true}"#, r#"{"iptables": "no"}"#] {
        let seen = EngineSeen { installed_version: Some("29.0.0".into()), ..stopped(says(text)) };
        let plan = plan(&seen, &policy()).unwrap();
        assert_eq!(names(&plan), ["startDaemon", "awaitEngine"]);
        assert_eq!(codes(&plan), [Code::IptablesSetByOperator]);
        refused(&seen, &strict(), Code::IptablesSetByOperator, "/etc/docker/daemon.json");
    }
}

#[test]
fn a_file_is_not_touched_where_the_unit_has_the_flag_for_dockerd_refuses_both() {
    let with_flag = |flag: &str| stopped_with(&[flag], says("{}"));
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
fn file_that_the_command_line_names_is_written() {
    let seen = EngineSeen {
        config_file: "/etc/d.json".into(),
        ..stopped_with(&["--config-file", "/etc/d.json"], DaemonJson::Absent)
    };
    let plan = plan(&seen, &policy()).unwrap();
    match &plan.steps[0] {
        Step::WriteDaemonJson { path, replaces, .. } => {
            assert_eq!((path.as_str(), *replaces), ("/etc/d.json", false))
        }
        other => panic!("{other:?}"),
    }
    let chosen = EngineSeen { daemon_json: says(r#"{"iptables": true}"#), ..seen };
    refused(&chosen, &strict(), Code::IptablesSetByOperator, "/etc/d.json says");
}

#[test]
fn unknown_options_are_a_finding_and_only_a_demand_makes_them_an_error() {
    let why = "docker.service starts it by /bin/sh";
    let unknown = CommandLine::Unknown(why.into());
    for seen in [
        EngineSeen { command_line: unknown.clone(), ..stopped_with(&[], says("{}")) },
        EngineSeen { command_line: unknown, ..running(says(r#"{"iptables":false}"#), &[]) },
    ] {
        let plan = plan(&seen, &policy()).unwrap();
        assert_eq!(codes(&plan), [Code::EngineOptionsUnknown]);
        assert!(!names(&plan).contains(&"writeDaemonJson"), "{plan:?}");
        refused(&seen, &strict(), Code::EngineOptionsUnknown, why);
    }
}

// Docker 19.03 and older do not start with a key that they do not know.
#[test]
fn filter_of_ipv6_is_switched_off_where_the_engine_knows_the_key() {
    let keys = |version: Option<&str>| {
        let seen = stopped_with(&[], says(r#"{"debug": true}"#));
        let seen = EngineSeen { installed_version: version.map(String::from), ..seen };
        written(&plan(&seen, &policy()).unwrap())
    };
    let both = serde_json::json!({"debug": true, "iptables": false, "ip6tables": false});
    let one = serde_json::json!({"debug": true, "iptables": false});
    for (version, expected) in [
        (Some("18.09.0"), &one),
        (Some("19.03.15"), &one),
        (Some("20.10.24+dfsg1"), &both),
        (Some("29.0.0"), &both),
        (None, &one),
    ] {
        assert_eq!(&keys(version), expected, "{version:?}");
    }
    // A package for dnf can hold an old engine, and is not started before its version is known.
    let seen = EngineSeen { package_manager: Some(PackageManager::Dnf), ..bare() };
    let sets = vec![vec!["docker-engine".to_string()]];
    let packages = PackageSets::from([(PackageManager::Dnf, sets)]);
    let keys = written(&plan(&seen, &EnginePolicy { packages, ..policy() }).unwrap());
    assert_eq!(keys, serde_json::json!({"iptables": false, "bridge": "none"}));
}

// moby#48365: 27 filters IPv6 whatever "iptables" says; moby#48594: 28 leaves the policy alone, or is told to.
#[test]
fn running_engine_that_filters_ipv6_is_reported_and_never_refused() {
    let off = r#"{"iptables": false}"#;
    for (version, text, words) in [
        ("20.10.24", off, None),
        ("26.1.5", off, None),
        (
            "26.1.5",
            r#"{"iptables": false, "ip6tables": true}"#,
            Some("DROP in IPv6, also for bridges"),
        ),
        ("27.1.2", off, Some("FORWARD policy DROP in IPv6, also for bridges of others")),
        ("28.0.0", off, Some("if the engine switches forwarding on")),
        (
            "28.0.0",
            r#"{"iptables": false, "ip-forward-no-drop": true}"#,
            Some("ip-forward-no-drop"),
        ),
        (
            "29.0.0",
            r#"{"iptables": false, "firewall-backend": "nftables"}"#,
            Some("tables of its own to nftables"),
        ),
        ("29.0.0", r#"{"iptables": false, "ip6tables": false}"#, None),
    ] {
        let plan = plan(&of_version(version, running(says(text), &[])), &strict()).unwrap();
        match words {
            None => assert_eq!(plan.findings, [], "{version} {text}"),
            Some(words) => {
                assert_eq!(codes(&plan), [Code::EngineMayChangeIp6tables], "{version} {text}");
                let told = &plan.findings[0].text;
                assert!(told.contains(words) && told.contains("IPv6"), "{told} / {words}");
            }
        }
    }
}

// dockerd: "You specified --iptables=false with --icc=false".
#[test]
fn key_that_would_keep_the_engine_from_starting_is_not_written() {
    for seen in
        [stopped_with(&["--icc=false"], says("{}")), stopped_with(&[], says(r#"{"icc": false}"#))]
    {
        let plan = plan(&seen, &policy()).unwrap();
        assert_eq!(
            (names(&plan), codes(&plan)),
            (vec!["startUnit", "awaitEngine"], vec![Code::IptablesSetByOperator])
        );
        refused(&seen, &strict(), Code::IptablesSetByOperator, "icc = false");
    }
}

// moby#36153: the engine's own bridge can take the network of the node's controller.
#[test]
fn engine_that_the_agent_installs_makes_no_bridge_unless_the_operator_chose_one() {
    for text in
        [r#"{"bip": "10.9.0.1/24"}"#, r#"{"bridge": "br0"}"#, r#"{"default-address-pools": []}"#]
    {
        let seen = EngineSeen { daemon_json: says(text), ..bare() };
        let keys = written(&plan(&seen, &policy()).unwrap());
        assert_ne!(keys["bridge"], serde_json::json!("none"), "{text}");
    }
    let flag =
        EngineSeen { command_line: CommandLine::Known(vec!["-b".into(), "br0".into()]), ..bare() };
    assert_eq!(written(&plan(&flag, &policy()).unwrap()).get("bridge"), None, "a flag and a key");
    // Packages that are installed half-way: the engine has been in use.
    let used = EngineSeen { is_new: false, ..bare() };
    assert_eq!(written(&plan(&used, &policy()).unwrap()).get("bridge"), None);
    let installed = written(&plan(&stopped(says("{}")), &policy()).unwrap());
    assert_eq!(installed.get("bridge"), None, "an engine of the operator keeps its bridge");
}
