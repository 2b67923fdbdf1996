//! The compatible protocol and the native routes, over real HTTP against the built agent.

use crate::support::controller::Controller;
use crate::support::gate::Gate;
use crate::support::http::{call, chunk, receive, request, send};
use crate::support::{Place, soon, task, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PREPARE: &str = "/zbs/primarystorage/vhost/target/prepareenv";
/// The two-node tree has 400 free pages, 40 of them promised.
const HOLDS: &str = r#"{"hugepageNr": 360}"#;
const CONNECT: &str = r#"{"hostUuid":"9d3f6a","sendCommandUrl":"http://10.0.0.1:8080/zstack/asyncrest/sendcommand","version":"4.8.0"}"#;

type Headers<'a> = &'a [(&'a str, &'a str)];

// The compatible protocol.

#[tokio::test]
async fn an_async_call_is_answered_at_once_with_an_empty_200_and_called_back_when_it_is_done() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    let reply = agent.post_task(PREPARE, &task(1), &controller.url, HOLDS).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    gate.wait().await;
    assert_eq!(controller.seen().len(), 0, "the work is not done");
    gate.open().await;
    let seen = controller.wait(1).await;
    assert_eq!(seen[0].first_line, "POST /zstack/asyncrest/callback HTTP/1.1");
    assert_eq!(seen[0].header("taskuuid"), Some(task(1).as_str()));
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    assert_eq!(seen[0].header("error"), None);
    assert!(seen[0].body.is_ascii());
    let result = seen[0].json();
    assert_eq!((&result["success"], &result["error"]), (&json!(true), &json!("")));
}

#[tokio::test]
async fn the_same_task_again_is_ignored_while_it_runs_and_gets_one_callback() {
    let place = Place::on("two-node").mounted();
    let mut agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    for _ in 0..3 {
        let reply = agent.post_task(PREPARE, &task(7), &controller.url, HOLDS).await;
        assert_eq!((reply.status, reply.text()), (200, ""));
        gate.wait().await;
    }
    gate.open().await;
    controller.wait(1).await;
    // Nothing can come any more from an agent that has ended, and it ends when all is delivered.
    assert_eq!(agent.stop().await.code(), Some(0));
    assert_eq!(controller.seen().len(), 1);
}

#[tokio::test]
async fn a_task_that_is_done_can_be_asked_for_again() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    for round in 1..=2 {
        agent.post_task("/host/ping", &task(7), &controller.url, "{}").await;
        controller.wait(round).await;
        agent.logged(&format!("\"task\":\"{}\"", task(7))).await;
        // The controller has seen the result before the agent has seen that it was taken.
        until("the result was noted as delivered", async || {
            (agent.log().matches("was delivered to").count() == round).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn header_names_compare_case_insensitively() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let forms =
        [("TASKUUID", "CALLBACKURL"), ("TaskUuid", "callbackUrl"), ("taskuuid", "Callbackurl")];
    for (number, (task_name, url_name)) in forms.into_iter().enumerate() {
        let id = task(u32::try_from(number).unwrap());
        let headers = [(task_name, id.as_str()), (url_name, controller.url.as_str())];
        let reply = call(agent.address, "POST", "/host/ping", &headers, "{}").await;
        assert_eq!((reply.status, reply.text()), (200, ""));
        controller.wait(number + 1).await;
    }
}

#[tokio::test]
async fn routes_answer_with_and_without_a_trailing_slash() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let posts = [(PREPARE, HOLDS), ("/host/connect", CONNECT), ("/host/ping", "{}")];
    for (path, body) in posts.into_iter().chain([("/host/echo", "")]) {
        let plain = agent.post(path, body).await;
        let slash = agent.post(&format!("{path}/"), body).await;
        assert_eq!((plain.status, slash.status), (200, 200), "{path}");
        assert_eq!(plain.body.is_empty(), slash.body.is_empty(), "{path}");
    }
    for path in ["/healthz", "/readyz", "/v1/node"] {
        assert_eq!(agent.get(&format!("{path}/")).await.status, 200, "{path}");
    }
    let controller = Controller::start().await;
    agent.post_task("/host/ping/", &task(1), &controller.url, "{}").await;
    assert_eq!(controller.wait(1).await[0].json()["success"], true);
}

#[tokio::test]
async fn without_taskuuid_the_answer_is_the_result() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let reply = agent.post(PREPARE, HOLDS).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let result = reply.json();
    assert_eq!((&result["success"], &result["error"]), (&json!(true), &json!("")));
    assert_eq!((&result["outcome"], &result["steps"]), (&json!("holds"), &json!([])));
}

#[tokio::test]
async fn missing_and_malformed_headers_are_refused_with_the_text_that_the_controller_knows() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let id = task(1);
    let long = format!("http://10.0.0.1/{}", "x".repeat(200_000));
    let url = "http://127.0.0.1:9/callback";
    let cases: &[(Headers, &str, &str)] = &[
        (&[("callbackurl", url)], "task-uuid-missing", "taskUuid missing in request header"),
        (&[("taskuuid", &id)], "callback-url-missing", "callbackUrl missing in request header"),
        (&[("taskuuid", ""), ("callbackurl", url)], "task-uuid-malformed", "32 hex digits"),
        (
            &[("taskuuid", "00000000-0000-0000-0000-000000000001"), ("callbackurl", url)],
            "task-uuid-malformed",
            "32 hex digits",
        ),
        (
            &[("taskuuid", "g0000000000000000000000000000000"), ("callbackurl", url)],
            "task-uuid-malformed",
            "32 hex digits",
        ),
        (
            &[("taskuuid", "../../../../../../../etc/passwd0"), ("callbackurl", url)],
            "task-uuid-malformed",
            "32 hex digits",
        ),
        (
            &[("taskuuid", &id), ("callbackurl", "ftp://10.0.0.1/x")],
            "callback-url-malformed",
            "http:// or https://",
        ),
        (
            &[("taskuuid", &id), ("callbackurl", "file:///etc/passwd")],
            "callback-url-malformed",
            "callbackUrl malformed",
        ),
        (
            &[("taskuuid", &id), ("callbackurl", "/zstack/asyncrest/callback")],
            "callback-url-malformed",
            "http:// or https://",
        ),
        (&[("taskuuid", &id), ("callbackurl", "http://")], "callback-url-malformed", "callbackUrl"),
        (&[("taskuuid", &id), ("callbackurl", "")], "callback-url-malformed", "callbackUrl"),
        (&[("taskuuid", &id), ("callbackurl", "Größe")], "callback-url-malformed", "callbackUrl"),
    ];
    for (headers, code, text) in cases {
        for path in [PREPARE, "/host/ping", "/host/connect"] {
            let reply = call(agent.address, "POST", path, headers, "{}").await;
            let result = reply.json();
            assert_eq!((reply.status, result["success"].as_bool()), (400, Some(false)), "{result}");
            assert_eq!(result["code"], *code, "{headers:?}");
            assert!(result["error"].as_str().unwrap().contains(text), "{result}");
        }
    }
    let headers = [("taskuuid", id.as_str()), ("callbackurl", long.as_str())];
    let reply = call(agent.address, "POST", "/host/ping", &headers, "{}").await;
    assert_eq!(reply.status, 431, "a head that no controller sends");
}

#[tokio::test]
async fn an_invalid_body_of_an_async_call_is_called_back_as_a_failure_with_the_reason() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let bodies = [
        (PREPARE, "{\"hugepageNr\": ", "not JSON"),
        (PREPARE, "{\"hugepageNr\": -1}", "-1 is not a whole number"),
        (PREPARE, "[]", "does not fit"),
        ("/host/connect", "{}", "hostUuid is missing"),
        ("/host/ping", "nonsense", "not JSON"),
    ];
    for (number, (path, body, reason)) in bodies.into_iter().enumerate() {
        let id = task(u32::try_from(number).unwrap());
        let reply = agent.post_task(path, &id, &controller.url, body).await;
        assert_eq!((reply.status, reply.text()), (200, ""), "{body}");
        let seen = controller.wait(number + 1).await;
        let result = seen[number].json();
        assert_eq!(seen[number].header("taskuuid"), Some(id.as_str()));
        assert_eq!(result["success"], false, "{body}");
        assert!(result["error"].as_str().unwrap().contains(reason), "{result}");
    }
}

#[tokio::test]
async fn an_invalid_body_of_a_sync_call_is_a_400_with_the_reason() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let before = place.snapshot();
    let cases = [
        (PREPARE, "{\"hugepageNr\": ", "invalid-json"),
        (PREPARE, "\u{0}", "invalid-json"),
        (PREPARE, "[1024]", "invalid-body"),
        (PREPARE, "\"1024\"", "invalid-body"),
        (PREPARE, "{\"hugepageNr\": {}}", "invalid-body"),
        ("/host/ping", "[]", "invalid-body"),
        ("/host/connect", "{", "invalid-json"),
        ("/host/connect", "{}", "invalid-body"),
        ("/host/connect", r#"{"hostUuid":"","sendCommandUrl":"http://h/"}"#, "invalid-body"),
        ("/host/connect", r#"{"hostUuid":"a","sendCommandUrl":null}"#, "invalid-body"),
        ("/host/connect", r#"{"hostUuid":7,"sendCommandUrl":"http://h/"}"#, "invalid-body"),
        ("/host/connect", r#"{"hostUuid":"a\nb","sendCommandUrl":"http://h/"}"#, "invalid-body"),
        ("/host/connect", r#"{"hostUuid":"a","sendCommandUrl":"gopher://h/"}"#, "invalid-body"),
        ("/host/connect", r#"{"hostUuid":"a","sendCommandUrl":"not an address"}"#, "invalid-body"),
    ];
    for (path, body, code) in cases {
        let reply = agent.post(path, body).await;
        let result = reply.json();
        assert_eq!((reply.status, &result["success"]), (400, &json!(false)), "{path} {body}");
        assert_eq!(result["code"], code, "{path} {body}");
        assert!(!result["error"].as_str().unwrap().is_empty());
    }
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn fields_that_the_agent_does_not_know_are_ignored_on_the_compatible_routes() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let extra = json!({
        "hugepageNr": 10, "uuid": "u", "addr": "10.0.0.7", "monUuid": null,
        "threadContext": {"api": "x"}, "newInNextVersion": [{"a": 1}, 2.5, "{{x}}"],
        "taskContext": {"__messagetimeout__": "1800000", "__messagedeadline__": "1763000000000"},
    });
    let reply = agent.post(PREPARE, &extra.to_string()).await;
    assert_eq!((reply.status, &reply.json()["success"]), (200, &json!(true)));
    let headers = [("X-Resource-UUID", "0123"), ("X-Whatever", "{{x}}")];
    let reply = call(agent.address, "POST", "/host/ping", &headers, &extra.to_string()).await;
    assert_eq!((reply.status, &reply.json()["success"]), (200, &json!(true)));
}

#[tokio::test]
async fn a_body_cut_off_by_a_length_in_characters_is_a_failure_and_not_another_request() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let body = r#"{"name":"Größe","hugepageNr":1}"#;
    let head = format!(
        "POST {PREPARE} HTTP/1.1\r\nHost: n\r\ntaskuuid: {}\r\ncallbackurl: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        task(1),
        controller.url,
        body.chars().count()
    );
    let reply = send(agent.address, format!("{head}{body}").as_bytes()).await;
    assert_eq!(reply.status, 200);
    let result = controller.wait(1).await[0].json();
    assert_eq!((&result["success"], &result["code"]), (&json!(false), &json!("invalid-json")));
}

#[tokio::test]
async fn a_count_of_pages_can_be_absent_null_empty_zero_a_number_or_digits() {
    // The default is more than the floor lets grow, so that it can be told from 300, which is there.
    let place = Place::on("two-node").mounted().settings("[pools]\ndefault_pages = 30000\n");
    let agent = place.ready().await;
    for body in ["", "{}", r#"{"hugepageNr":null}"#, r#"{"hugepageNr":""}"#, r#"{"hugepageNr":0}"#]
    {
        let reply = agent.post(PREPARE, body).await;
        let result = reply.json();
        assert_eq!((reply.status, &result["success"]), (200, &json!(false)), "{body}");
        assert_eq!(result["code"], "memory-floor", "{body}");
    }
    for number in ["300", "\"300\"", "300.0", "3e2", "\" 300 \""] {
        let result = agent.post(PREPARE, &format!(r#"{{"hugepageNr":{number}}}"#)).await.json();
        assert_eq!(result["success"], true, "{number}: {result}");
    }
    let bad = [
        "-1",
        "-0.5",
        "1.5",
        "\"x\"",
        "\"-1\"",
        "\"1.5\"",
        "1e30",
        "1e300",
        "true",
        "[1]",
        "{}",
        "99999999999999999999999999",
        "\"99999999999999999999999999\"",
        "\"0x10\"",
    ];
    for number in bad {
        let reply = agent.post(PREPARE, &format!(r#"{{"hugepageNr":{number}}}"#)).await;
        let result = reply.json();
        assert_eq!((reply.status, &result["success"]), (400, &json!(false)), "{number}: {result}");
        assert_eq!(result["code"], "invalid-body", "{number}");
    }
    for number in ["1000000000000", "1e12", "9007199254740991", "18446744073709551615"] {
        let reply = agent.post(PREPARE, &format!(r#"{{"hugepageNr":{number}}}"#)).await;
        let result = reply.json();
        assert_eq!(result["code"], "too-many-pages", "{number}: {result}");
        assert!(result["error"].as_str().unwrap().contains("64255 MiB"), "{result}");
    }
}

#[tokio::test]
async fn the_identity_from_connect_is_in_ping_after_a_restart() {
    let place = Place::on("two-node");
    let mut agent = place.ready().await;
    let unknown = agent.post("/host/ping", r#"{"hostUuid":"9d3f6a"}"#).await.json();
    assert_eq!((&unknown["success"], &unknown["hostUuid"]), (&json!(true), &json!("")));
    let connected = agent.post("/host/connect", CONNECT).await.json();
    assert_eq!(connected["success"], true, "{connected}");
    assert_eq!((&connected["libvirtVersion"], &connected["qemuVersion"]), (&json!(""), &json!("")));
    let expected = json!({
        "success": true,
        "error": "",
        "hostUuid": "9d3f6a",
        "sendCommandUrl": "http://10.0.0.1:8080/zstack/asyncrest/sendcommand",
        "version": "4.8.0",
    });
    assert_eq!(agent.post("/host/ping", r#"{"hostUuid":"other"}"#).await.json(), expected);
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    agent.ended().await;
    let agent = place.ready().await;
    assert_eq!(agent.post("/host/ping", "{}").await.json(), expected);
}

#[tokio::test]
async fn echo_is_an_empty_200_also_while_a_prepare_is_at_work() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    agent.post_task(PREPARE, &task(1), &controller.url, "{}").await;
    gate.wait().await;
    for body in ["", "{}", "anything"] {
        let reply = agent.post("/host/echo", body).await;
        assert_eq!((reply.status, reply.text()), (200, ""));
    }
    assert_eq!(agent.get("/healthz").await.status, 200);
    assert_eq!(agent.post("/host/ping", "{}").await.status, 200);
}

#[tokio::test]
async fn a_call_that_takes_longer_than_the_controller_waits_is_called_back_in_time() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    let body = r#"{"taskContext":{"__messagetimeout__":"200"}}"#;
    agent.post_task(PREPARE, &task(1), &controller.url, body).await;
    gate.wait().await;
    let result = controller.wait(1).await[0].json();
    assert_eq!((&result["success"], &result["code"]), (&json!(false), &json!("task-timeout")));
}

// The native routes.

#[tokio::test]
async fn unknown_routes_and_methods_are_problems_with_a_code() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let paths =
        ["/", "/v1", "/v1/nodes", "/v2/node", "/host/nothing", "/zbs/x", "/v1/node/x", "//"];
    for path in paths {
        for method in ["GET", "POST", "DELETE", "BREW"] {
            let reply = call(agent.address, method, path, &[], "").await;
            reply.must_be_problem(404, "no-such-route");
            assert!(reply.json()["detail"].as_str().unwrap().contains(method));
        }
    }
    let known = [
        ("GET", PREPARE, "POST"),
        ("PUT", "/host/echo", "POST"),
        ("POST", "/v1/node", "GET,HEAD"),
        ("GET", "/v1/prepare", "POST"),
        ("DELETE", "/healthz", "GET,HEAD"),
        ("BREW", "/v1/reclaim", "POST"),
    ];
    for (method, path, allow) in known {
        let reply = call(agent.address, method, path, &[], "").await;
        reply.must_be_problem(405, "method-not-allowed");
        assert_eq!(reply.header("allow"), Some(allow), "{method} {path}");
    }
}

#[tokio::test]
async fn bodies_of_prepare_that_do_not_fit_are_refused_and_nothing_is_changed() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let before = place.snapshot();
    let many = format!(r#"{{"hugepages":[{}{{"pages":1}}]}}"#, r#"{"pages":1},"#.repeat(64));
    let deep = "[".repeat(100_000);
    let cases = [
        ("hello", "invalid-json"),
        ("{", "invalid-json"),
        ("{} {}", "invalid-json"),
        (deep.as_str(), "invalid-json"),
        ("7", "invalid-body"),
        ("null", "invalid-body"),
        (r#"{"hugepages":{}}"#, "invalid-body"),
        ("[[]]", "invalid-body"),
        (r#"{"hugepages":[{}]}"#, "invalid-body"),
        (r#"{"hugepages":[[2,10,null,null]]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":"10"}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":-1}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":1.5}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":1e12}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":99999999999999999999}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":1,"sizeMib":3}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":1,"sizeMib":0}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":1,"sizeMib":18446744073709551615}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":1,"nodes":[]}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":1,"nodes":[-1]}]}"#, "invalid-body"),
        (r#"{"hugepages":[{"pages":1,"node":0}]}"#, "invalid-body"),
        (r#"{"hugepageNr":1024}"#, "invalid-body"),
        (r#"{"keepPartial":"yes"}"#, "invalid-body"),
        (r#"{"engine":1}"#, "invalid-body"),
        (many.as_str(), "invalid-body"),
    ];
    for (body, code) in cases {
        let reply = agent.post("/v1/prepare", body).await;
        reply.must_be_problem(400, code);
    }
    let unknown = agent.post("/v1/prepare", r#"{"hugepages":[],"enigne":true}"#).await;
    unknown.must_be_problem(400, "invalid-body");
    assert!(unknown.text().contains("enigne"), "the field is named: {}", unknown.text());
    for query in ["dryrun=true", "dryRun=maybe", "dryRun=true&x=1", "dryRun=true&dryRun=false"] {
        let reply = agent.post(&format!("/v1/prepare?{query}"), "{}").await;
        reply.must_be_problem(400, "invalid-query");
    }
    for (path, body) in [
        ("/v1/reclaim", r#"{"sizeMib":3}"#),
        ("/v1/reclaim", r#"{"pages":3}"#),
        ("/v1/restore", r#"{"pages":3}"#),
    ] {
        agent.post(path, body).await.must_be_problem(400, "invalid-body");
    }
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn impossible_page_counts_are_refused_with_the_numbers() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let before = place.snapshot();
    for pages in [1_000_000_000_000_u64, u64::MAX] {
        for (size, query) in [(2, ""), (2, "?dryRun=true"), (1024, "?dryRun=true")] {
            let body = json!({"hugepages": [{"pages": pages, "sizeMib": size}]}).to_string();
            let reply = agent.post(&format!("/v1/prepare{query}"), &body).await;
            reply.must_be_problem(422, "too-many-pages");
            let detail = reply.json()["detail"].as_str().unwrap().to_string();
            assert!(
                detail.contains(&pages.to_string()) && detail.contains("64255 MiB"),
                "{detail}"
            );
        }
    }
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn a_dry_run_returns_the_steps_and_changes_nothing() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let before = place.snapshot();
    let body = r#"{"hugepages":[{"pages":1024}]}"#;
    let reply = agent.post("/v1/prepare?dryRun=true", body).await;
    let report = reply.json();
    assert_eq!((reply.status, &report["outcome"]), (200, &json!("wouldChange")));
    assert_eq!(report["dryRun"], true);
    let steps = report["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["outcome"] == "planned"), "{report}");
    before.must_be_what_is(&place);
    let again = agent.post("/v1/prepare?dryRun=true", body).await.json();
    assert_eq!(again["steps"], report["steps"]);
}

#[tokio::test]
async fn a_prepare_is_streamed_line_by_line_to_those_who_accept_it() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let mut gate = Gate::before_pools(&place);
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let headers = [("Accept", "application/x-ndjson"), ("Connection", "close")];
    let body = r#"{"hugepages":[{"pages":360}]}"#;
    let bytes = request("POST", "/v1/prepare", &headers, body);
    stream.write_all(bytes.as_bytes()).await.unwrap();
    gate.wait().await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the head comes before the work is done", stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200") && head.contains("application/x-ndjson"), "{head}");
    gate.open().await;
    let (mut rest, mut text) = (Vec::new(), Vec::new());
    while let Some(chunk) = soon("a chunk", chunk(&mut stream, &mut rest)).await.unwrap() {
        text.extend(chunk);
    }
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["progress", "progress", "report"], "{text}");
    assert_eq!(lines[0]["data"]["kind"], "begun");
    assert_eq!(
        (&lines[1]["data"]["kind"], &lines[1]["data"]["step"]),
        (&json!("ended"), &json!("mount"))
    );
    let report = &lines[2]["data"];
    assert_eq!((&report["outcome"], &report["dryRun"]), (&json!("changed"), &json!(false)));
    let dry = call(
        agent.address,
        "POST",
        "/v1/prepare?dryRun=true",
        &headers,
        r#"{"hugepages":[{"pages":1000000000000}]}"#,
    );
    let last: Value = serde_json::from_str(dry.await.text().lines().last().unwrap()).unwrap();
    assert_eq!(last["data"]["errors"][0]["code"], "too-many-pages");
}

#[tokio::test]
async fn probes_say_that_the_agent_lives_and_takes_calls() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    assert_eq!(agent.get("/healthz").await.json(), json!({"status": "ok"}));
    assert_eq!(agent.get("/readyz").await.json(), json!({"status": "ready"}));
    // A HEAD has a length and no body.
    let bytes = request("HEAD", "/healthz", &[("Connection", "close")], "");
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    soon("the answer", stream.read_to_end(&mut all)).await.unwrap();
    let text = String::from_utf8(all).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn one_connection_takes_many_calls_and_pipelined_ones() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let ping = request("POST", "/host/ping", &[], "{}");
    for _ in 0..50 {
        stream.write_all(ping.as_bytes()).await.unwrap();
        assert_eq!(receive(&mut stream).await.status, 200);
    }
    let broken = request("POST", "/host/ping", &[], "{");
    stream.write_all(broken.as_bytes()).await.unwrap();
    assert_eq!(receive(&mut stream).await.status, 400);
    stream.write_all(ping.as_bytes()).await.unwrap();
    assert_eq!(receive(&mut stream).await.status, 200, "a refused body does not spoil the rest");
}

#[tokio::test]
async fn two_hundred_calls_at_once_are_all_answered() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let address = agent.address;
    let calls: Vec<_> = (0..200)
        .map(|_| tokio::spawn(async move { call(address, "POST", "/host/ping", &[], "{}").await }))
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn prepares_at_the_same_time_share_one_run_when_the_first_wants_the_same_or_more() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    agent.post_task(PREPARE, &task(1), &controller.url, HOLDS).await;
    gate.wait().await;
    for number in 2..=20 {
        let body = format!(r#"{{"hugepageNr":{}}}"#, 340 + number);
        agent.post_task(PREPARE, &task(number), &controller.url, &body).await;
    }
    // One look goes through the gate; a second run would stand before it for good.
    gate.open().await;
    for seen in controller.wait(20).await {
        assert_eq!(seen.json()["success"], true, "{}", seen.body);
    }
}

// Targets, where no engine is.

const HEALTH: &str = "/zbs/primarystorage/vhost/target/health";
const ENSURE: &str = "/zbs/primarystorage/vhost/target/ensure";

#[tokio::test]
async fn names_and_paths_of_a_target_are_judged_before_anything_is_done() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let long = format!("/{}", "x".repeat(120));
    let socket = format!(r#"{{"controlSock": "{long}"}}"#);
    for (path, body, code) in [
        ("/v1/targets/..%2Fx", "{}", "invalid-target-name"),
        ("/v1/targets/a;id", "{}", "invalid-target-name"),
        ("/v1/targets/a", r#"{"cores": "7-6"}"#, "invalid-cores"),
        ("/v1/targets/a", r#"{"cores": "1", "coreCount": 1}"#, "invalid-cores"),
        ("/v1/targets/a", r#"{"coreCount": 0}"#, "invalid-cores"),
        ("/v1/targets/a", r#"{"socketDir": "/var/../etc"}"#, "invalid-body"),
        ("/v1/targets/a", r#"{"socketDir": "relative"}"#, "invalid-body"),
        ("/v1/targets/a", &socket, "socket-path-too-long"),
        (
            "/v1/targets/a",
            r#"{"controlSock": "/var/tmp/vhost-sockets/zbs-vhost-01"}"#,
            "invalid-control-socket",
        ),
        ("/v1/targets/a", r#"{"kind": "spdk", "image": "../containers"}"#, "invalid-image"),
        ("/v1/targets/a", r#"{"kind": "qemu"}"#, "invalid-body"),
        ("/v1/targets/a", r#"{"imageUrl": "file:///etc/shadow"}"#, "invalid-image-url"),
        ("/v1/targets/a", r#"{"imageUrl": "http://user:word@a/b"}"#, "invalid-image-url"),
        (
            "/v1/targets/a",
            r#"{"imageUrl": "http://a/b", "imageSha256": "ab"}"#,
            "invalid-image-sha256",
        ),
        ("/v1/targets/a", r#"{"unknown": 1}"#, "invalid-body"),
        ("/v1/targets/a?recreate=maybe", "{}", "invalid-query"),
    ] {
        call(agent.address, "PUT", path, &[], body).await.must_be_problem(400, code);
    }
    for body in [
        r#"{"containerName": "$(reboot)"}"#,
        r#"{"containerName": "a", "controlSock": "vhost.sock"}"#,
        &socket,
        r#"{"containerName": 7}"#,
    ] {
        let result = agent.post(HEALTH, body).await.json();
        assert_eq!(result["success"], false, "{body}: {result}");
        assert!(result["error"].as_str().is_some_and(|error| !error.is_empty()), "{result}");
    }
    for (body, code) in [
        (r#"{"image": "a:1", "coreCount": 99999999}"#, "invalid-cores"),
        (r#"{"image": "a:1", "imageUrl": "ftp://a/vhost.tar"}"#, "invalid-image-url"),
    ] {
        let result = agent.post(ENSURE, body).await.json();
        assert_eq!((&result["success"], &result["code"]), (&json!(false), &json!(code)));
    }
}

#[tokio::test]
async fn a_target_without_an_engine_is_not_running_and_cannot_be_deployed() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let result = agent.post(HEALTH, r#"{"containerName": null, "controlSock": ""}"#).await.json();
    assert_eq!((&result["success"], &result["targetRunning"]), (&json!(true), &json!(false)));
    let health = agent.get("/v1/targets/zbs-vhost/health").await.json();
    // None is wanted: not deployed is not unhealthy.
    assert_eq!(health["state"], "absent", "{health}");
    let reason = health["reason"].as_str().unwrap();
    assert!(reason.contains("nobody listens"), "{reason}");
    let reply = call(agent.address, "PUT", "/v1/targets/zbs-vhost", &[], "{}").await;
    reply.must_be_problem(503, "engine-absent");
    assert!(!place.path("var/tmp/vhost-sockets").exists());
}
