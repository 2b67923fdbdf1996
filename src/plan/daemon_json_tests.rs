//! Every branch of the policy on `"iptables"`, on observations made by hand.

use super::super::engine::{EnginePlan, plan};
use super::super::engine_fixture::*;
use super::*;

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
