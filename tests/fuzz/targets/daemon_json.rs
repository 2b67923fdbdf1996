//! The engine's configuration: what is merged into it, and that all else stays as the operator has it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use vhost_agent::config::Settings;
use vhost_agent::host::{Root, daemon_json};
use vhost_agent::model::daemon_json::{unmarked, with_insecure_registry};
use vhost_agent::model::engine::{CommandLine, DaemonJson, EngineApi, EngineSeen, Init};
use vhost_agent::model::network::NodeNetwork;
use vhost_agent::model::step::Step;
use vhost_agent::plan::engine::plan;
use vhost_agent_fuzz::Tree;

const REGISTRIES: &str = "insecure-registries";
const REGISTRY: &str = "10.0.0.1:5000";

fuzz_target!(|text: &[u8]| {
    let tree = Tree::empty();
    tree.put("daemon.json", text);
    let file = daemon_json::read(&Root::new(tree.path()), "/daemon.json");
    match &file {
        DaemonJson::Object { text: read, .. } => {
            assert_eq!(read.as_bytes(), text);
            trusts_one_more(&file, &object(read));
        }
        DaemonJson::Unusable(_) => {
            assert!(with_insecure_registry(&file, REGISTRY).is_err());
        }
        DaemonJson::Absent => panic!("it is there"),
    }
    leaves_the_packet_filter(&file);
});

/// The object that a text is; a blank one counts as empty.
fn object(text: &str) -> Map<String, Value> {
    match unmarked(text).trim() {
        "" => Map::new(),
        text => serde_json::from_str(text).expect("it is an object"),
    }
}

fn trusts_one_more(file: &DaemonJson, before: &Map<String, Value>) {
    let list = before.get(REGISTRIES).map_or(Some(Vec::new()), |list| list.as_array().cloned());
    let merged = with_insecure_registry(file, REGISTRY);
    let Some(mut list) = list else { return assert!(merged.is_err()) };
    let Some(text) = merged.expect("a list can be added to") else {
        return assert!(list.contains(&json!(REGISTRY)));
    };
    list.insert(0, json!(REGISTRY));
    let mut wanted = before.clone();
    wanted.insert(REGISTRIES.to_string(), Value::Array(list));
    assert_eq!(object(&text), wanted, "{text}");
}

fn leaves_the_packet_filter(file: &DaemonJson) {
    let seen = EngineSeen {
        api: EngineApi::Absent,
        process: None,
        installed: Some("/usr/bin/dockerd".into()),
        socket_target: None,
        executable: Some("/usr/bin/dockerd".into()),
        is_new: false,
        installed_version: None,
        command_line: CommandLine::Known(Vec::new()),
        config_file: "/etc/docker/daemon.json".into(),
        daemon_json: file.clone(),
        init: Init::Other("init".into()),
        unit: None,
        unit_error: None,
        package_manager: None,
        network: NodeNetwork::default(),
    };
    let plan = plan(&seen, &Settings::default().engine);
    let DaemonJson::Object { text, .. } = file else { return assert!(plan.is_err()) };
    let before = object(text);
    let Ok(plan) = plan else { return assert!(before.contains_key("hosts")) };
    let written = plan.steps.into_iter().find_map(|step| match step {
        Step::WriteDaemonJson { text, .. } => Some(text),
        _ => None,
    });
    let Some(written) = written else {
        let is_chosen = before.contains_key("iptables") || before.get("icc") == Some(&json!(false));
        return assert!(is_chosen);
    };
    let mut wanted = before;
    assert_eq!(wanted.insert("iptables".to_string(), json!(false)), None);
    assert_eq!(object(&written), wanted, "{written}");
}
