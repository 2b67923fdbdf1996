//! The engine's configuration: what is merged into it, and that all else stays as the operator has it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use vhost_agent::config::Settings;
use vhost_agent::host::{Root, daemon_json};
use vhost_agent::model::daemon_json::with_insecure_registry;
use vhost_agent::model::engine::{DaemonJson, EngineApi, EngineSeen, Init};
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
            trusts_one_more(&file, &object(read).expect("it is an object"));
        }
        DaemonJson::Unusable(_) => {
            assert!(with_insecure_registry(&file, REGISTRY).is_err());
        }
        DaemonJson::Absent => panic!("it is there"),
    }
    leaves_the_packet_filter(&file);
});

fn object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
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
    assert_eq!(object(&text), Some(wanted), "{text}");
}

fn leaves_the_packet_filter(file: &DaemonJson) {
    let seen = EngineSeen {
        api: EngineApi::Absent,
        process: None,
        installed: Some("/usr/bin/dockerd".into()),
        daemon_json: file.clone(),
        init: Init::Other("init".into()),
        unit: None,
        unit_error: None,
        package_manager: None,
    };
    let plan = plan(&seen, &Settings::default().engine);
    let DaemonJson::Object { text, .. } = file else { return assert!(plan.is_err()) };
    let before = object(text).expect("it is an object");
    let written =
        plan.expect("an engine can be started").steps.into_iter().find_map(|step| match step {
            Step::WriteDaemonJson { text, .. } => Some(text),
            _ => None,
        });
    let Some(written) = written else { return assert!(before.contains_key("iptables")) };
    let mut wanted = before;
    assert_eq!(wanted.insert("iptables".to_string(), json!(false)), None);
    assert_eq!(object(&written), Some(wanted), "{written}");
}
