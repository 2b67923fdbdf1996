//! Settings that the engine gets for a container, beside what packaging/doc/security.md says of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;

const DOCUMENTED: &str = include_str!("../../../packaging/doc/security.md");

fn spec(isolation: Option<Isolation>) -> ContainerSpec {
    ContainerSpec {
        name: "zbs-vhost".into(),
        image: "spdk:1".into(),
        command: vec!["/vhost".into()],
        env: Vec::new(),
        binds: vec![("/sockets".into(), false), ("/etc/zbs/client.conf".into(), true)],
        isolation,
        devices: Vec::new(),
        capabilities: vec!["SYS_NICE".into()],
        privileged: false,
        cpus: Some("1".into()),
        memory_nodes: Some("0".into()),
        cgroup_parent: Some("zstone.vhost.slice".into()),
        labels: BTreeMap::new(),
    }
}

fn isolation() -> Isolation {
    Isolation { read_only_root: true, tmpfs: vec!["/tmp".into()], tmpfs_mib: 64, pids_limit: 512 }
}

/// The part of the body that says how the container runs, without what it leaves to the engine.
fn host_config(spec: &ContainerSpec) -> BTreeMap<String, Value> {
    let host = serde_json::to_value(create_body(spec, None).host_config).unwrap();
    let Value::Object(fields) = host else { panic!("{host}") };
    fields.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

/// The first two cells of each row of the documented table: an item, and how it is set.
fn documented() -> BTreeMap<&'static str, &'static str> {
    let table = DOCUMENTED.lines().skip_while(|line| !line.starts_with("| Item |"));
    let rows = table.filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| {
        let (item, rest) = row.split_once('`')?;
        Some((item, rest.split('|').nth(1)?))
    })
    .collect()
}

#[test]
fn container_is_isolated_as_the_security_document_says() {
    let made = host_config(&spec(Some(isolation())));
    let items: BTreeSet<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(items, documented().keys().copied().collect(), "made, and documented");
    for (item, expected) in [
        ("NetworkMode", json!("host")),
        ("SecurityOpt", json!(["no-new-privileges", "label=disable"])),
        ("ReadonlyRootfs", json!(true)),
        ("Tmpfs", json!({"/tmp": "rw,noexec,nosuid,nodev,size=64m"})),
        ("PidsLimit", json!(512)),
        ("UsernsMode", json!("host")),
        ("IpcMode", json!("private")),
        ("LogConfig", json!({"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}})),
        ("CapDrop", json!(["ALL"])),
        ("CapAdd", json!(["SYS_NICE"])),
        ("Privileged", json!(false)),
        ("CgroupParent", json!("zstone.vhost.slice")),
        ("Binds", json!(["/sockets:/sockets", "/etc/zbs/client.conf:/etc/zbs/client.conf:ro"])),
    ] {
        assert_eq!(made[item], expected, "{item}");
        // Texts that are the same for every target are documented as they are.
        for text in ["host", "private", "json-file", "10m", "no-new-privileges", "ALL"] {
            let is_set = expected.to_string().contains(&format!("\"{text}\""));
            assert!(!is_set || documented()[item].contains(text), "{item} says {text}");
        }
    }
}

#[test]
fn privileged_container_is_isolated_all_the_same() {
    let privileged = ContainerSpec { privileged: true, ..spec(Some(isolation())) };
    let made = host_config(&privileged);
    assert_eq!((&made["Privileged"], made.get("CapDrop")), (&json!(true), None));
    for item in ["SecurityOpt", "ReadonlyRootfs", "PidsLimit", "LogConfig"] {
        assert_eq!(made[item], host_config(&spec(Some(isolation())))[item], "{item}");
    }
}

#[test]
fn container_of_an_older_agent_is_made_without_isolation() {
    let made = host_config(&spec(None));
    let isolated = host_config(&spec(Some(isolation())));
    let more: Vec<&str> =
        isolated.keys().filter(|item| !made.contains_key(*item)).map(String::as_str).collect();
    let expected = [
        "IpcMode",
        "LogConfig",
        "PidsLimit",
        "ReadonlyRootfs",
        "SecurityOpt",
        "Tmpfs",
        "UsernsMode",
    ];
    assert_eq!(more, expected);
}

// syslog and fluentd refuse `max-size` (dockerd: "unknown log opt 'max-size' for syslog log driver").
#[test]
fn output_is_bounded_where_the_engines_driver_keeps_it_in_files() {
    let log =
        |driver| create_body(&spec(Some(isolation())), driver).host_config.unwrap().log_config;
    for driver in ["json-file", "local"] {
        let config = log(Some(driver)).unwrap();
        assert_eq!(config.typ.as_deref(), Some(driver));
        assert_eq!(config.config.unwrap()["max-size"], "10m");
    }
    assert_eq!(log(None).unwrap().typ.as_deref(), Some("json-file"), "an unknown driver");
    for driver in ["journald", "syslog", "none"] {
        let config = log(Some(driver)).unwrap();
        assert_eq!(config.typ, None, "{driver}: with the engine's own settings");
        assert_eq!(config.config.unwrap(), [("mode".into(), "non-blocking".into())].into());
    }
}
