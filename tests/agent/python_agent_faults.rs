//! What the Python agent does wrong, as it was found by running it, and this one must not. What is tested
//! more closely elsewhere is named here, so that the list is whole:
//!
//! - shell commands are built from request fields: here;
//! - ten silent connections stall every call: `bounds.rs`, with ten and with a thousand;
//! - 200 calls at once overflow the backlog: here, and with 2,000;
//! - a string with `{{…}}` in a body makes it spin for ever: here;
//! - an unresponsive target is healthy: `control_socket.rs`, and a frozen process in `engine/cases` and `engine/exits`;
//! - activate succeeds on another volume's bdev: `volumes.rs`, and takes `../../etc/x` for a name:
//!   `volume_admission.rs`;
//! - deactivate gives away every free page of the host: `engine/exits`, `pools.rs`;
//! - ensure empties the socket folder first: `src/host/leftovers.rs`, `engine/faults`;
//! - growing pages is slow and drops the page cache: `benches/agent/growth.rs`, `nodes.rs`;
//! - no command has a time limit: `engine/cases`; error pages show stack traces: here;
//! - a health call costs 19 processes: `control_socket.rs`, and what it costs here: `benches/agent/health.rs`.

use std::fs;

use crate::support::calls::{ZBS, calls, in_each_field};
use crate::support::http::{call, receive, request, send};
use crate::support::played::Played;
use crate::support::{Agent, Place, process, soon, task};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

fn children(agent: &Agent) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    let children = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("children"));
    tasks.flatten().filter_map(|entry| children(entry).ok()).collect()
}

#[tokio::test]
async fn shell_text_in_any_field_of_any_call_runs_nothing() {
    let listed = "[target]\nimage_urls = [\"http://127.0.0.1:1\"]\n";
    runs_nothing(&Place::on("two-node").mounted().settings(listed)).await;
    // Where there is an engine and a target, calls come further.
    runs_nothing(&Played::with(listed).place).await;
}

async fn runs_nothing(place: &Place) {
    let mut agent = place.ready().await;
    let canary = place.folder().join("canary");
    let touch = format!("touch {}", canary.display());
    for text in [
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("; {touch};"),
        format!("x\n{touch}\n"),
        format!("| {touch}"),
        format!("&& {touch} #"),
        format!("'; {touch}; '"),
        format!("\"; {touch}; \""),
        format!("--help\0; {touch}"),
    ] {
        for (route, body) in calls() {
            for body in in_each_field(&body, &text) {
                let reply = agent.post(&route, &body.to_string()).await;
                assert!([200, 400].contains(&reply.status), "{route} {body}: {}", reply.text());
                assert_ne!(reply.code(), "internal", "{route} {body}: {}", reply.text());
            }
        }
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for (method, path) in [
            ("PUT", format!("/v1/targets/{escaped}")),
            ("DELETE", format!("/v1/targets/{escaped}")),
            ("GET", format!("/v1/targets/zbs-vhost/health?controlSock={escaped}")),
            ("PUT", format!("/v1/targets/zbs-vhost/volumes/{escaped}")),
        ] {
            let reply = call(agent.address, method, &path, &[], "{}").await;
            assert!((400..500).contains(&reply.status), "{method} {path}: {}", reply.text());
        }
        // Line ends cannot be in a header.
        let header = text.replace(['\n', '\0'], " ");
        let headers = [("taskuuid", header.as_str()), ("callbackurl", header.as_str())];
        let path = format!("{ZBS}/target/prepareenv");
        assert_eq!(call(agent.address, "POST", &path, &headers, "{}").await.status, 400);
    }
    assert!(!canary.exists());
    assert_eq!(children(&agent), "");
    agent.must_live();
}

#[tokio::test]
async fn text_in_braces_is_text() {
    let place = Place::on("two-node").mounted();
    let mut agent = place.ready().await;
    for text in
        ["{{x}}", "{{", "}}{{", "{{{{{{{{x}}}}}}}}", &"{{a}}".repeat(2000), "{% for %}", "${x}"]
    {
        for (route, body) in calls() {
            for body in in_each_field(&body, text) {
                let reply = agent.post(&route, &body.to_string()).await;
                assert!([200, 400].contains(&reply.status), "{route} {body}: {}", reply.text());
            }
            let mut more = body.clone();
            more["threadContext"] = json!({"api": text, text: text});
            assert!([200, 400].contains(&agent.post(&route, &more.to_string()).await.status));
        }
    }
    agent.must_live();
    assert_eq!(agent.post("/host/ping", "{}").await.status, 200);
}

/// Calls that all are there before any is looked at: the agent is stopped meanwhile.
async fn at_once(count: usize, agent: &Agent) {
    let bytes = request("POST", "/host/ping", &[("Connection", "close")], "{}");
    agent.signal(Signal::SIGSTOP);
    let mut streams = Vec::new();
    for _ in 0..count {
        let connect = TcpStream::connect(agent.address);
        let mut stream = soon("the kernel takes it for the agent", connect).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    agent.signal(Signal::SIGCONT);
    let answers = streams.iter_mut().map(async |stream| receive(stream).await.status);
    let statuses = join_all(answers).await;
    assert_eq!((statuses.len(), statuses.iter().all(|status| *status == 200)), (count, true));
}

#[tokio::test]
async fn two_hundred_and_two_thousand_calls_at_once_are_all_answered() {
    process::may_open_many_files();
    let place = Place::on("two-node");
    let agent = place.ready().await;
    for count in [200, 2000] {
        at_once(count, &agent).await;
    }
}

#[tokio::test]
async fn an_error_names_the_fault_and_no_internals() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let deep = "[".repeat(5000);
    let mut answers = Vec::new();
    for (route, _) in calls() {
        for body in
            ["{", "[]", "\"x\"", "{\"hugepageNr\": {}}", "{\"image\": 5}", "\u{0}", deep.as_str()]
        {
            answers.push(agent.post(&route, body).await);
        }
        for method in ["GET", "PUT", "DELETE", "BREW"] {
            answers.push(call(agent.address, method, &route, &[], "").await);
        }
    }
    for path in
        ["/", "/x", "/v1/x", "/v1/targets/..%2f..", "/v1/status?after=x", "/%00", "/host/echo/x"]
    {
        answers.push(agent.get(path).await);
    }
    answers.push(send(agent.address, b"GET /v1/node?\xff HTTP/1.1\r\nHost: n\r\n\r\n").await);
    for reply in answers {
        let text = reply.text();
        for inside in ["Traceback", "panicked", ".rs:", "stack backtrace", "src/", "<html"] {
            assert!(!text.contains(inside), "{}: {text}", reply.status);
        }
    }
    let call = agent.post_task("/host/ping", &task(1), "http://", "{}").await;
    assert_eq!((call.status, call.code().as_str()), (400, "callback-url-malformed"));
}
