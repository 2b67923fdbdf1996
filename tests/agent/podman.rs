//! Podman at Docker's socket, as the package podman-docker puts it there.

use crate::support::engine::noting_podman;
use crate::support::http::{Reply, call};
use crate::support::{Agent, Place};

const SETTINGS: &str = "engine.manage = true\nengine.socket = \"/run/docker.sock\"\n";

async fn deploy(agent: &Agent) -> Reply {
    let json = [("Content-Type", "application/json")];
    let target = r#"{"kind":"zbs","image":"zbs-vhost:1","cores":"[1]"}"#;
    call(agent.address, "PUT", "/v1/targets/zbs-vhost", &json, target).await
}

#[tokio::test]
async fn podman_is_named_and_neither_prepared_nor_deployed_to() {
    let place = Place::on("two-node").mounted().settings(SETTINGS);
    let changes = noting_podman(&place);
    let agent = place.ready().await;
    let before = place.snapshot();
    let prepared = agent.post("/v1/prepare", r#"{"hugepages":[]}"#).await;
    let planned = agent.post("/v1/prepare?dryRun=true", r#"{"hugepages":[]}"#).await;
    let deployed = deploy(&agent).await;
    for reply in [prepared, planned, deployed] {
        reply.must_be_problem(409, "engine-not-docker");
        let detail = reply.json()["detail"].as_str().unwrap().to_string();
        for words in ["podman listens at", "docker.sock", "engine.socket", "podman-docker"] {
            assert!(detail.contains(words), "no {words}: {detail}");
        }
    }
    let engine = agent.get("/v1/node").await.json()["engine"].clone();
    assert_eq!(engine["state"], "unreachable");
    assert!(engine["reason"].as_str().unwrap().contains("podman"), "{engine}");
    assert!(changes.lock().unwrap().is_empty(), "it was only asked who it is: {changes:?}");
    before.must_only_differ_in(&place, |name| !name.starts_with("root/"));
    assert_eq!(agent.get("/v1/targets").await.json().to_string().matches("zbs-vhost").count(), 0);
}
