//! What calls for volumes are judged by before anything is done, over real HTTP and by command, on a node
//! without an engine.

use std::fs;

use crate::support::controller::Controller;
use crate::support::http::call;
use crate::support::{Agent, Place, task};
use serde_json::{Value, json};

const ZBS: &str = "/zbs/primarystorage/vhost";
const VOLUME: &str = "/v1/targets/zbs-vhost/volumes/v";
const MALLOC: &str = r#"{"backing": {"kind": "malloc", "sizeMib": 16}}"#;

const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);

/// A node on which the usual target was wanted before the agent started.
fn wanted() -> Place {
    let place = Place::on("two-node").mounted();
    let sockets = "/var/tmp/vhost-sockets";
    let spec = json!({
        "name": "zbs-vhost", "kind": "built-in", "cores": {"count": 1}, "memoryMib": 0,
        "socketDir": sockets, "controlSock": format!("{sockets}/vhost.sock"),
    });
    fs::create_dir_all(place.state().join("targets")).unwrap();
    let entry = json!({"version": 1, "spec": spec}).to_string();
    fs::write(place.state().join("targets/zbs-vhost.json"), entry).unwrap();
    place
}

async fn refused(agent: &Agent, route: &str, body: &Value, code: &str) {
    let result = agent.post(&format!("{ZBS}/{route}"), &body.to_string()).await.json();
    assert_eq!((&result["success"], &result["code"]), (&json!(false), &json!(code)), "{body}");
    assert!(result["error"].as_str().is_some_and(|error| !error.is_empty()), "{result}");
}

#[tokio::test]
async fn the_compatible_routes_judge_names_and_paths_before_anything_is_done() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let before = place.snapshot();
    let activate = |path: &str, bdev: &str, controller: &str| json!({"installPath": path, "bdevName": bdev, "controllerName": controller});
    let long = "x".repeat(200);
    for name in ["../../etc/x", "$(reboot)", "{{x}}", "a b", "vhost.sock", long.as_str()] {
        let code = "invalid-volume-name";
        refused(&agent, "activate", &activate("p/v", name, "c"), code).await;
        refused(&agent, "activate", &activate("p/v", "b", name), code).await;
        refused(&agent, "deactivate", &json!({"bdevName": name}), code).await;
        refused(&agent, "resize", &json!({"bdevName": name, "sizeMib": 1}), code).await;
        let create = json!({"logicalPool": "p", "volume": "v", "bdevName": name});
        refused(&agent, "bdev/create", &create, code).await;
        refused(&agent, "bdev/delete", &json!({"bdevName": name}), code).await;
    }
    refused(&agent, "activate", &activate("../../etc/x", "b", "c"), "invalid-backing").await;
    let create = json!({"logicalPool": "..", "volume": "v", "bdevName": "b"});
    refused(&agent, "bdev/create", &create, "invalid-backing").await;
    for (route, body) in [
        ("activate", json!({"bdevName": "b", "controllerName": "c"})),
        ("deactivate", json!({"controlSock": null})),
        ("resize", json!({"bdevName": "b", "sizeMib": 0})),
        ("bdev/create", json!({"hostIp": "10.0.0.1", "bdevName": "b"})),
        ("bdev/delete", json!({"bdevName": ""})),
    ] {
        refused(&agent, route, &body, "invalid-body").await;
    }
    let socket = json!({"bdevName": "b", "controlSock": "/var/tmp/vhost-sockets/a-volume"});
    refused(&agent, "deactivate", &socket, "invalid-control-socket").await;
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn a_callback_names_the_refusal_and_no_password_is_logged() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let body = json!({"hostIp": "10.0.0.1", "sshPassword": "hunter2", "logicalPool": "p",
                      "volume": "../v", "bdevName": "b"});
    let route = format!("{ZBS}/bdev/create/");
    let reply = agent.post_task(&route, &task(1), &controller.url, &body.to_string()).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    let callback = controller.wait(1).await[0].json();
    assert_eq!(
        (&callback["success"], &callback["code"]),
        (&json!(false), &json!("invalid-backing"))
    );
    agent.logged("\"route\":\"activate\"").await;
    assert!(!agent.log().contains("hunter2"), "{}", agent.log());
}

#[tokio::test]
async fn an_activation_where_no_engine_can_run_the_target_says_so() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let body = json!({"image": "zbs-vhost:1", "installPath": "zbs://p/v", "bdevName": "b",
                      "controllerName": "c"});
    refused(&agent, "activate", &body, "engine-absent").await;
    let create = json!({"logicalPool": "p", "volume": "v", "bdevName": "b"});
    refused(&agent, "bdev/create", &create, "engine-absent").await;
}

#[tokio::test]
async fn volumes_of_a_target_that_is_not_wanted_are_not_found() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let list = format!(r#"{{"volumes": [{{"name": "v", {}]}}"#, &MALLOC[1..]);
    for (method, path, body) in [
        ("PUT", VOLUME, MALLOC),
        ("PUT", "/v1/targets/zbs-vhost/volumes", list.as_str()),
        ("DELETE", VOLUME, ""),
        ("POST", "/v1/targets/zbs-vhost/volumes/v/resize", r#"{"sizeMib": 32}"#),
    ] {
        let reply = call(agent.address, method, path, &[], body).await;
        reply.must_be_problem(404, "target-unknown");
    }
}

#[tokio::test]
async fn the_native_routes_judge_volumes_and_refuse_what_they_do_not_know() {
    let place = wanted();
    let agent = place.ready().await;
    let resize = "/v1/targets/zbs-vhost/volumes/v/resize";
    let all = "/v1/targets/zbs-vhost/volumes";
    for (method, path, body, code) in [
        ("GET", "/v1/targets/..%2Fx/volumes", "", "invalid-target-name"),
        ("GET", "/v1/targets/zbs-vhost/volumes/..%2Fx", "", "invalid-volume-name"),
        ("PUT", "/v1/targets/zbs-vhost/volumes/vhost.sock", MALLOC, "invalid-volume-name"),
        ("PUT", VOLUME, "{}", "invalid-body"),
        ("PUT", VOLUME, r#"{"backing": {"kind": "malloc", "sizeMib": 1}, "x": 1}"#, "invalid-body"),
        ("PUT", VOLUME, r#"{"backing": {"kind": "malloc", "sizeMib": 0}}"#, "invalid-backing"),
        ("PUT", VOLUME, r#"{"backing": {"kind": "zbs", "path": "../x"}}"#, "invalid-backing"),
        ("PUT", VOLUME, r#"{"backing": {"kind": "aio", "path": "x"}}"#, "invalid-body"),
        ("PUT", VOLUME, r#"{"backing": {"kind": "raw", "method": "kill"}}"#, "invalid-backing"),
        ("PUT", VOLUME, "[]", "invalid-body"),
        ("PUT", all, MALLOC, "invalid-body"),
        (
            "PUT",
            all,
            r#"{"volumes": [{"backing": {"kind": "malloc", "sizeMib": 1}}]}"#,
            "invalid-body",
        ),
        ("POST", resize, r#"{"sizeMib": 0}"#, "invalid-body"),
        ("POST", resize, r#"{"sizeMib": 1, "force": true}"#, "invalid-body"),
        ("DELETE", "/v1/targets/zbs-vhost/volumes/v?force=maybe", "", "invalid-query"),
        ("DELETE", "/v1/targets/zbs-vhost/volumes/v?timeoutMs=99999999", "", "invalid-query"),
    ] {
        let reply = call(agent.address, method, path, &[], body).await;
        reply.must_be_problem(400, code);
    }
    let many: Vec<Value> = (0..4097)
        .map(|number| json!({"name": format!("v{number}"), "backing": {"kind": "zbs", "path": format!("p/{number:0>300}")}}))
        .collect();
    let body = json!({"volumes": many}).to_string();
    assert!(body.len() > 1 << 20, "more than other routes take");
    call(agent.address, "PUT", all, &[], &body).await.must_be_problem(400, "too-many-volumes");
}

#[tokio::test]
async fn the_command_wants_an_agent_that_runs_and_good_words() {
    let place = Place::on("two-node");
    let before = place.snapshot();
    let alone = place.run(&["volume", "list"]).await;
    assert_eq!(alone.code, FAILED, "{alone:?}");
    assert!(alone.err.contains("no agent runs on this node"), "{}", alone.err);
    before.must_be_what_is(&place);
    let _agent = place.ready().await;
    let unwanted = place.run(&["volume", "activate", "v", "--malloc-mib", "16"]).await;
    assert_eq!(unwanted.code, FAILED, "{unwanted:?}");
    assert!(unwanted.err.contains("no target zbs-vhost is wanted"), "{}", unwanted.err);
    for words in [
        &["volume", "activate", "v"][..],
        &["volume", "activate", "../v", "--malloc-mib", "1"],
        &["volume", "activate", "v", "--raw", "bdev_null_create", "--params", "[]"],
        &["volume", "show", "vhost.sock"],
        &["volume", "resize", "v"],
    ] {
        assert_eq!(place.run(words).await.code, USAGE, "{words:?}");
    }
}

#[tokio::test]
async fn a_command_with_a_volume_that_cannot_be_is_wrong_usage() {
    let place = wanted();
    let _agent = place.ready().await;
    for words in [
        &["volume", "activate", "v", "--zbs", "../x", "--output", "text"][..],
        &["volume", "activate", "v", "--malloc-mib", "0"],
        &["volume", "activate", "v", "--malloc-mib", "1", "--cpumask", "all"],
        &["volume", "resize", "v", "--size-mib", "0"],
    ] {
        let ended = place.run(words).await;
        assert_eq!(ended.code, USAGE, "{ended:?}");
    }
}
