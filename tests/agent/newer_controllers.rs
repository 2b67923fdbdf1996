//! Calls of controllers that only check a target which the storage's own product runs, and name the host instead of a
//! container or a socket.

use std::time::Duration;

use crate::support::Place;
use crate::support::engine::{Changes, noting_engine};
use crate::support::http::call;
use crate::support::played::{Manner, Played};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const CHECK: &str = "/zbs/primarystorage/vhost/check";
const HEALTH: &str = "/zbs/primarystorage/vhost/target/health";
const DEPLOY: &str = "/zbs/primarystorage/vhost/deploy";
/// Body of such a controller: the address of the host, and those of a server and the storage.
const HOST: &str = r#"{"hostIp":"10.0.0.9","addr":"10.0.0.1","uuid":"0123","containerName":null}"#;
const SETTINGS: &str =
    "[health]\nmax_age = \"0s\"\ninterval = \"50ms\"\n[target]\nready_timeout = \"500ms\"\n";

#[tokio::test]
async fn target_that_answers_is_ready_and_running() {
    let played = Played::with(SETTINGS);
    let agent = played.place.ready().await;
    let reply = agent.post(CHECK, HOST).await;
    assert_eq!((reply.status, reply.json()), (200, json!({"success": true, "error": ""})));
    for body in [HOST, "{}", r#"{"hostIp":"fd00::9"}"#] {
        assert_eq!(agent.post(HEALTH, body).await.json()["targetRunning"], true, "{body}");
        assert_eq!(agent.post(CHECK, body).await.json()["success"], true, "{body}");
    }
}

#[tokio::test]
async fn target_that_begins_to_answer_is_ready_at_once() {
    let settings = SETTINGS.replace("500ms", "15s");
    let played = Played::with(&settings);
    played.becomes(Manner::ClosesAtOnce);
    let agent = played.place.ready().await;
    let (address, began) = (agent.address, Instant::now());
    let check = tokio::spawn(async move { call(address, "POST", CHECK, &[], HOST).await });
    sleep(Duration::from_millis(300)).await;
    assert!(!check.is_finished());
    played.becomes(Manner::Answers);
    assert_eq!(check.await.unwrap().json()["success"], true);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn host_without_a_target_is_told_in_the_words_that_controllers_know() {
    let place = Place::on("two-node").settings("[target]\nready_timeout = \"300ms\"\n");
    let agent = place.ready().await;
    let before = place.snapshot();
    let began = Instant::now();
    let result = agent.post(CHECK, HOST).await.json();
    assert!(began.elapsed() >= Duration::from_millis(300), "it may still be coming up");
    assert_eq!(
        (&result["success"], &result["code"]),
        (&json!(false), &json!("target-not-serving"))
    );
    let error = result["error"].as_str().unwrap();
    let words = "vhost target is not ready in ZStone for host 10.0.0.9: ";
    assert!(error.starts_with(words), "{error}");
    assert!(error.contains("zbs-vhost is") && error.contains("zbsvhost-10.0.0.9 is"), "{error}");
    let health = agent.post(HEALTH, HOST).await.json();
    assert_eq!((&health["success"], &health["targetRunning"]), (&json!(true), &json!(false)));
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn texts_in_place_of_the_hosts_address_lead_nowhere() {
    let place = Place::on("two-node").settings("[target]\nready_timeout = \"20ms\"\n");
    let agent = place.ready().await;
    let before = place.snapshot();
    let long = "x".repeat(100_000);
    for text in ["../../etc", "$(reboot)", "a;id", "{{x}}", "-v", "a\nb\0c", long.as_str()] {
        let body = json!({"hostIp": text}).to_string();
        let result = agent.post(CHECK, &body).await.json();
        assert_eq!(result["code"], "target-not-serving", "{text:.40}");
        assert!(result["error"].as_str().unwrap().len() < 1000, "{result}");
        let health = agent.post(HEALTH, &body).await.json();
        assert_eq!(health["targetRunning"], false, "{text:.40}");
    }
    for body in [r#"{"hostIp":7}"#, r#"{"hostIp":["10.0.0.9"]}"#] {
        let refused = agent.post(CHECK, body).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "invalid-body"), "{body}");
    }
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn target_of_the_storages_product_counts_where_the_agent_has_none() {
    let played = Played::with(SETTINGS);
    played.becomes(Manner::ClosesAtOnce);
    played.also_at("var/zbsvhost/sockets/admin.sock");
    let agent = played.place.ready().await;
    assert_eq!(agent.post(HEALTH, HOST).await.json()["targetRunning"], true);
    assert_eq!(agent.post(CHECK, HOST).await.json()["success"], true);
    assert_eq!(agent.post(HEALTH, "{}").await.json()["targetRunning"], false, "nobody named it");
}

/// The body with which the engine was asked for a container.
fn created(changes: &Changes) -> Value {
    let changes = changes.lock().unwrap();
    let create = changes.iter().find(|(_, path, _)| path.contains("/containers/create"));
    serde_json::from_slice(&create.expect("a container is made").2).unwrap()
}

/// A node whose engine notes what it is asked for.
fn noted(settings: &str) -> (Place, Changes) {
    let settings = format!(
        "engine.socket = \"/run/docker.sock\"\n[target]\nimage = \"zbs-vhost:1\"\ncore_count = 1\n\
         ready_timeout = \"50ms\"\ncall_timeout = \"1s\"\n{settings}"
    );
    let place = Place::on("two-node").mounted().settings(&settings);
    let changes = noting_engine(&place);
    (place, changes)
}

/// Memory of the target in MiB, and the command of its container, after a deploy with this `hugepageSize`.
async fn deployed(settings: &str, size: &str) -> (u64, String) {
    let (place, changes) = noted(settings);
    let agent = place.ready().await;
    agent.post(DEPLOY, &format!(r#"{{"hostIp":"10.0.0.9","hugepageSize":{size}}}"#)).await;
    let body = created(&changes);
    let spec = body["Labels"]["vhost-agent.spec"].as_str().unwrap();
    let spec: Value = serde_json::from_str(spec).unwrap();
    (spec["memoryMib"].as_u64().unwrap(), body["Cmd"].to_string())
}

#[tokio::test]
async fn hugepage_size_of_a_deploy_leaves_the_memory_to_the_settings_and_the_volumes() {
    // Controllers send the memory in MiB, or the size of a page; kinds with and without {memoryMib}.
    for size in ["1024", "\"1024\"", "2", "\"a gigabyte\""] {
        assert_eq!(deployed("", size).await.0, 512, "{size}");
    }
    for (memory, expected) in [("", 512), ("memory_mib = 128\n", 128)] {
        let (mib, command) = deployed(&format!("kind = \"spdk\"\n{memory}"), "1024").await;
        assert_eq!(mib, expected);
        assert!(command.contains(&format!("\"{mib}\"")), "{command}");
    }
}

#[tokio::test]
async fn container_is_made_below_the_slice_that_the_settings_or_a_request_name() {
    let slice = "zstone.vhost.slice";
    let (place, changes) = noted(&format!("cgroup_parent = \"{slice}\"\n"));
    let agent = place.ready().await;
    agent.post(DEPLOY, HOST).await;
    assert_eq!(created(&changes)["HostConfig"]["CgroupParent"], slice);
    let (place, changes) = noted("");
    let agent = place.ready().await;
    let put = async |query: &str, parent: &str| {
        let body = json!({"cgroupParent": parent}).to_string();
        call(agent.address, "PUT", &format!("/v1/targets/a{query}"), &[], &body).await
    };
    let plan = put("?dryRun=true", slice).await.json();
    let steps = plan["steps"].as_array().unwrap();
    let below =
        |step: &Value| step["after"].as_str().unwrap().ends_with(", below zstone.vhost.slice");
    assert!(steps.iter().any(below), "{plan}");
    put("?dryRun=true", "machine.slice").await.must_be_problem(403, "path-not-allowed");
    for parent in ["../zstone.vhost.slice", "/a/../b", "vhost", "a--b.slice", "/a:b:c"] {
        put("", parent).await.must_be_problem(400, "invalid-body");
    }
    assert_eq!(changes.lock().unwrap().len(), 0);
    put("", slice).await;
    assert_eq!(created(&changes)["HostConfig"]["CgroupParent"], slice);
    agent.post(DEPLOY, HOST).await;
    let bodies = changes.lock().unwrap();
    let last = bodies.iter().rfind(|(_, path, _)| path.contains("/containers/create")).unwrap();
    let last: Value = serde_json::from_slice(&last.2).unwrap();
    assert_eq!(last["HostConfig"]["CgroupParent"], Value::Null, "the engine's own choice");
}

#[tokio::test]
async fn volumes_need_no_field_about_ssh() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let volume = r#"{"hostIp":"10.0.0.9","logicalPool":"lpool1","volume":"volume_01","bdevName":"zbs-bdev-01"}"#;
    let path = "/zbs/primarystorage/vhost/bdev";
    let created = agent.post(&format!("{path}/create"), volume).await.json();
    // There is neither an engine nor an image.
    assert_eq!(created["success"], false);
    assert!(
        ["engine-absent", "image-missing"].contains(&created["code"].as_str().unwrap()),
        "{created}"
    );
    let body = r#"{"hostIp":"10.0.0.9","bdevName":"zbs-bdev-01"}"#;
    let deleted = agent.post(&format!("{path}/delete"), body).await.json();
    assert_eq!(deleted, json!({"success": true, "error": ""}));
}
