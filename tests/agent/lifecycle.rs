//! How the agent starts, says so, logs, and ends.

use std::io::Read as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::support::absent::Absent;
use crate::support::controller::Controller;
use crate::support::gate::Gate;
use crate::support::http::{call, receive, request, send};
use crate::support::legacy::Legacy;
use crate::support::{Agent, Place, soon, task, until};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PREPARE: &str = "/zbs/primarystorage/vhost/target/prepareenv";

// Starting.

#[tokio::test]
async fn a_second_agent_on_the_same_state_is_refused_and_the_first_goes_on() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let second = place.run(&["serve"]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.err.contains("is held by another vhost-agent"), "{}", second.err);
    assert!(second.err.contains(&format!("pid {}", agent.pid())), "{}", second.err);
    assert_eq!(agent.get("/readyz").await.status, 200);
    let lock = std::fs::read_to_string(place.state().join("lock")).unwrap();
    assert_eq!(lock, format!("pid {}, http://{}", agent.pid(), agent.address));
}

#[tokio::test]
async fn an_address_in_use_is_named_and_the_state_is_free_again() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let other = Place::on("two-node");
    let address = agent.address.to_string();
    let ended = other.run(&["serve", "--listen", &address]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains(&format!("cannot listen on {address}")), "{}", ended.err);
    assert!(ended.err.contains("Address already in use"), "{}", ended.err);
    other.ready().await;
}

#[tokio::test]
async fn an_address_of_another_machine_is_named() {
    let place = Place::on("two-node");
    // TEST-NET-1 (RFC 5737): nobody has it.
    let ended = place.run(&["serve", "--listen", "192.0.2.1:7070"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("cannot listen on 192.0.2.1:7070"), "{}", ended.err);
}

#[tokio::test]
async fn the_unspecified_ipv6_address_answers_on_both_families() {
    let place = Place::on("two-node").env("VHOST_AGENT_LISTEN", "[::]:0");
    let agent = place.ready().await;
    assert!(agent.address.is_ipv4(), "the lock tells the address that this machine reaches");
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, agent.address.port()));
    let ping = request("POST", "/host/ping", &[("Connection", "close")], "{}");
    for address in [agent.address, six] {
        assert_eq!(send(address, ping.as_bytes()).await.status, 200, "{address}");
    }
}

#[tokio::test]
async fn an_agent_that_was_killed_leaves_nothing_in_the_way_of_the_next() {
    let place = Place::on("two-node");
    let mut agent = place.ready().await;
    agent.signal(Signal::SIGKILL);
    agent.ended().await;
    let agent = place.ready().await;
    assert_eq!(agent.post("/host/ping", "{}").await.status, 200);
}

#[tokio::test]
async fn with_no_room_for_its_state_the_agent_serves_and_takes_nothing_it_cannot_note() {
    let place = Place::on("two-node").mounted();
    let state = place.state().display().to_string();
    let place = place.env("VHOST_AGENT_RUN_DIR", &state).prelude(&format!(
        "mkdir -p {state} && mount -t tmpfs -o size=16k tmpfs {state} || exit 98; \
         head -c 64k /dev/zero > {state}/full 2>/dev/null; "
    ));
    let agent = place.start_unseen().await;
    let reply = agent.post("/v1/prepare", r#"{"hugepages":[{"pages":1024}]}"#).await;
    reply.must_be_problem(503, "state-unwritable");
    let detail = reply.json()["detail"].as_str().unwrap().to_string();
    for part in ["No space left on device", &state, "free space"] {
        assert!(detail.contains(part), "{part}: {detail}");
    }
    let knob = "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";
    assert_eq!(place.read(knob), "512\n");
    let connect = r#"{"hostUuid":"a","sendCommandUrl":"http://10.0.0.1/x"}"#;
    let result = agent.post("/host/connect", connect).await.json();
    assert_eq!((&result["success"], &result["code"]), (&json!(false), &json!("state-unwritable")));
    let held = agent.post("/v1/prepare", r#"{"hugepages":[{"pages":360}]}"#).await.json();
    assert_eq!(held["outcome"], "holds");
}

#[tokio::test]
async fn while_pages_of_the_last_boot_are_taken_again_the_agent_answers_and_is_not_ready() {
    let place = Place::on("two-node");
    let mut gate = restoring(&place);
    let agent = place.start_behind(&mut gate).await;
    assert_eq!(agent.get("/healthz").await.status, 200);
    let reply = agent.get("/readyz").await;
    assert_eq!((reply.status, reply.json()), (503, json!({"status": "starting"})));
    gate.open().await;
    until("it is ready", async || (agent.get("/readyz").await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_pages_of_the_last_boot_that_hang() {
    let place = Place::on("two-node").settings("[http]\ndrain_timeout = \"500ms\"\n");
    let mut gate = restoring(&place);
    let mut agent = place.start_behind(&mut gate).await;
    let began = Instant::now();
    assert_eq!(agent.stop().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_restore_that_a_stop_has_cut_short_is_done_by_the_next_start() {
    let settings = "[http]\ndrain_timeout = \"100ms\"\n[log]\nlevel = \"debug\"\n";
    let place = Place::on("two-node").settings(settings);
    let mut gate = restoring(&place);
    let mut agent = place.start_behind(&mut gate).await;
    agent.signal(Signal::SIGTERM);
    agent.logged("was asked to end").await;
    gate.open().await;
    assert_eq!(agent.ended().await.code(), Some(0));
    let agent = place.ready().await;
    let steps = agent.post("/v1/restore", "{}").await.json()["steps"].clone();
    assert_eq!(steps, json!([]), "it was done at the start");
    assert_eq!(agent.get("/v1/node").await.json()["totals"][0]["grown"], 1);
}

/// Pages to take again, and a gate before the pools.
fn restoring(place: &Place) -> Gate {
    std::fs::create_dir_all(place.state()).unwrap();
    let wanted = r#"[{"size": "2M", "node": 0, "pages": 1}]"#;
    std::fs::write(place.state().join("reservations.json"), wanted).unwrap();
    Gate::before_pools(place)
}

// Ending.

#[tokio::test]
async fn a_stop_lets_calls_in_flight_end_and_then_nobody_listens() {
    let place = Place::on("two-node").mounted();
    let mut agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    let body = r#"{"hugepages":[{"pages":360}]}"#;
    let mut in_flight = TcpStream::connect(agent.address).await.unwrap();
    in_flight.write_all(request("POST", "/v1/prepare", &[], body).as_bytes()).await.unwrap();
    gate.wait().await;
    agent.post_task(PREPARE, &task(1), &controller.url, r#"{"hugepageNr":360}"#).await;
    agent.signal(Signal::SIGTERM);
    agent.logged("stopping").await;
    gate.open().await;
    let reply = receive(&mut in_flight).await;
    assert_eq!((reply.status, &reply.json()["outcome"]), (200, &json!("holds")));
    assert_eq!(controller.wait(1).await[0].json()["success"], true);
    assert_eq!(agent.ended().await.code(), Some(0));
    assert!(TcpStream::connect(agent.address).await.is_err());
    let log = agent.log();
    assert!(log.contains("\"signal\":\"SIGTERM\"") && log.contains("\"stopped\""), "{log}");
}

/// Agent that was asked to stop, and waits for a controller's task, which stands before the gate.
async fn draining(place: &Place) -> (Agent, Controller, Gate) {
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(place);
    agent.post_task(PREPARE, &task(1), &controller.url, r#"{"hugepageNr":360}"#).await;
    gate.wait().await;
    agent.signal(Signal::SIGTERM);
    agent.logged("stopping").await;
    (agent, controller, gate)
}

#[tokio::test]
async fn while_tasks_end_new_calls_are_told_that_the_agent_stops() {
    let place = Place::on("two-node").mounted();
    let (mut agent, controller, gate) = draining(&place).await;
    let health = "/zbs/primarystorage/vhost/target/health";
    for path in [PREPARE, health, "/host/connect", "/host/ping"] {
        let reply = agent.post_task(path, &task(2), &controller.url, "{}").await;
        let result = reply.json();
        assert_eq!((reply.status, &result["success"]), (400, &json!(false)), "{path}: {result}");
        // The words are kvmagent's.
        assert!(result["error"].as_str().unwrap().starts_with("kvmagent is stopping"), "{result}");
        assert_eq!(result["code"], "stopping", "{path}");
        let reply = agent.post(path, "{}").await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "stopping"), "{path}");
    }
    for (method, path) in [
        ("POST", "/v1/prepare"),
        ("PUT", "/v1/targets/a"),
        ("DELETE", "/v1/targets/a"),
        ("PUT", "/v1/targets/a/volumes/b"),
    ] {
        let reply = call(agent.address, method, path, &[], "{}").await;
        reply.must_be_problem(503, "stopping");
    }
    assert_eq!(agent.post("/host/echo", "").await.status, 503, "the next agent is polled for");
    assert_eq!(agent.get("/readyz").await.json(), json!({"status": "draining"}));
    for path in ["/healthz", "/metrics", "/v1/targets"] {
        assert_eq!(agent.get(path).await.status, 200, "{path}");
    }
    gate.open().await;
    assert_eq!(controller.wait(1).await[0].json()["success"], true);
    assert_eq!(agent.ended().await.code(), Some(0));
    assert_eq!(controller.seen().len(), 1, "{:?}", controller.seen());
}

#[tokio::test]
async fn nothing_is_forwarded_while_tasks_end() {
    let legacy = Legacy::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let place = Place::on("two-node").mounted().settings(&legacy.settings(""));
    let (mut agent, controller, gate) = draining(&place).await;
    for path in ["/kvm/vm/start", "/host/ping", "/host/echo"] {
        let reply = agent.post_task(path, &task(2), &controller.url, "{}").await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "stopping"), "{path}");
        let error = reply.json()["error"].to_string();
        assert!(error.contains("kvmagent is stopping"), "{path}: {error}");
        let reply = agent.post(path, "{}").await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "stopping"), "{path}");
    }
    gate.open().await;
    assert_eq!(agent.ended().await.code(), Some(0));
    assert_eq!(legacy.seen(), [] as [&str; 0]);
}

#[tokio::test]
async fn work_that_hangs_does_not_keep_the_agent_from_ending_in_its_time() {
    let place = Place::on("two-node").settings("[http]\ndrain_timeout = \"1s\"\n");
    let mut agent = place.ready().await;
    let absent = Absent::new();
    agent.post_task("/host/ping", &task(2), &absent.url(), "{}").await;
    let mut gate = Gate::before_pools(&place);
    agent.post_task(PREPARE, &task(1), &absent.url(), "{}").await;
    let mut in_flight = TcpStream::connect(agent.address).await.unwrap();
    let bytes = request("POST", "/v1/prepare", &[], "{}");
    in_flight.write_all(bytes.as_bytes()).await.unwrap();
    gate.wait().await;
    let began = Instant::now();
    assert_eq!(agent.stop().await.code(), Some(0));
    let took = began.elapsed();
    // Connections, tasks and results share the one second; two more go to the hanging write, one to
    // the process's own end.
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
    assert!(agent.log().contains("work unfinished or results undelivered"), "{}", agent.log());
}

#[tokio::test]
async fn results_that_are_on_the_disk_do_not_keep_the_agent_from_ending_at_once() {
    let place = Place::on("two-node").mounted();
    let mut agent = place.ready().await;
    let absent = Absent::new();
    agent.post_task(PREPARE, &task(1), &absent.url(), r#"{"hugepageNr":1}"#).await;
    agent.logged("could not be delivered to").await;
    let began = Instant::now();
    assert_eq!(agent.stop().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let controller = absent.appears();
    let _agent = place.ready().await;
    assert_eq!(controller.wait(1).await[0].json()["success"], true);
}

#[tokio::test]
async fn idle_connections_and_silent_ones_do_not_delay_the_end() {
    let place = Place::on("two-node");
    let mut agent = place.ready().await;
    let mut idle = TcpStream::connect(agent.address).await.unwrap();
    idle.write_all(request("GET", "/healthz", &[], "").as_bytes()).await.unwrap();
    assert_eq!(receive(&mut idle).await.status, 200);
    let silent = TcpStream::connect(agent.address).await.unwrap();
    let began = Instant::now();
    agent.signal(Signal::SIGTERM);
    let mut rest = Vec::new();
    let _ = soon("the idle connection is closed", idle.read_to_end(&mut rest)).await;
    assert_eq!(agent.ended().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(silent);
}

#[tokio::test]
async fn an_interrupt_ends_it_as_well() {
    let place = Place::on("two-node");
    let mut agent = place.ready().await;
    agent.signal(Signal::SIGINT);
    assert_eq!(agent.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_call_on_an_open_connection_learns_of_the_shutdown() {
    let place = Place::on("two-node").mounted();
    let mut agent = place.ready().await;
    let mut gate = Gate::before_pools(&place);
    // The second call's head comes before the stop, its body after it.
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let body = r#"{"hugepageNr":10}"#;
    let bytes = request("POST", PREPARE, &[], body);
    let (head, rest) = bytes.split_at(bytes.len() - 4);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut other = TcpStream::connect(agent.address).await.unwrap();
    other.write_all(bytes.as_bytes()).await.unwrap();
    gate.wait().await;
    agent.signal(Signal::SIGTERM);
    agent.logged("stopping").await;
    stream.write_all(rest.as_bytes()).await.unwrap();
    let reply = receive(&mut stream).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "stopping"));
    gate.open().await;
    assert_eq!(receive(&mut other).await.json()["success"], true);
    assert_eq!(agent.ended().await.code(), Some(0));
}

// Telling.

/// A file that is gone when it is dropped.
struct RemovedAtEnd(std::path::PathBuf);

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn a_log_that_nobody_takes_holds_up_nothing() {
    let place = Place::on("two-node").mounted().settings("[log]\nlevel = \"trace\"\n");
    let pipe = place.folder().join("agent.log");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let mut options = std::fs::File::options();
    let mut unread = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&pipe).unwrap();
    let mut agent = place.ready().await;
    // Before the agent, whose log is read then.
    let _away = RemovedAtEnd(pipe);
    for _ in 0..800 {
        let reply = agent.post("/v1/prepare", r#"{"hugepages":[{"pages":1}]}"#).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let began = Instant::now();
    assert_eq!(agent.stop().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let mut log = Vec::new();
    let _ = unread.read_to_end(&mut log);
    // Its 64 KiB, but for the room that the next line does not fit into.
    assert!(log.len() >= 60 * 1024, "the pipe was not full: {}", log.len());
}

#[tokio::test]
async fn every_line_of_the_log_is_a_json_object_where_there_is_no_terminal() {
    let place = Place::on("two-node").mounted().settings("[log]\nlevel = \"trace\"\n");
    let mut agent = place.ready().await;
    let controller = Controller::start().await;
    agent.post_task("/host/ping", &task(1), &controller.url, "nonsense \" \n { \u{1}").await;
    controller.wait(1).await;
    agent.post("/v1/prepare", r#"{"hugepages":[{"pages":1}]}"#).await;
    assert_eq!(agent.stop().await.code(), Some(0));
    let log = agent.log();
    assert!(log.lines().count() > 10);
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for field in ["timestamp", "level", "message", "target"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
    }
}

#[tokio::test]
async fn a_call_that_may_change_the_node_has_a_line_when_it_ends_and_to_who_wants_it_when_it_begins()
 {
    let place = Place::on("two-node").mounted().settings("[log]\nlevel = \"debug\"\n");
    let mut agent = place.ready().await;
    let controller = Controller::start().await;
    let body = r#"{"hugepages":[{"pages":1}]}"#;
    agent.post_task(PREPARE, &task(1), &controller.url, r#"{"hugepageNr":1}"#).await;
    controller.wait(1).await;
    agent.post(PREPARE, r#"{"hugepageNr":99999999}"#).await;
    agent.post("/v1/prepare", body).await;
    agent.post("/v1/prepare?dryRun=true", body).await;
    agent.post("/v1/reclaim", "{}").await;
    agent.post("/v1/restore", "{}").await;
    agent.post("/host/ping", "{}").await;
    assert_eq!(agent.stop().await.code(), Some(0));
    let log = agent.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let calls = lines.iter().filter(|line| line["route"].is_string());
    let (begins, ends): (Vec<_>, Vec<_>) =
        calls.partition(|line| line["message"].as_str().unwrap().ends_with(" begins"));
    let routes = |lines: &[&Value]| {
        lines.iter().map(|line| line["route"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let expected = ["prepareenv", "prepareenv", "prepare", "reclaim", "restore"];
    let expected = expected.map(str::to_owned).to_vec();
    assert_eq!((routes(&begins), routes(&ends)), (expected.clone(), expected));
    assert_eq!(
        (&begins[0]["message"], &ends[1]["message"]),
        (&json!("prepareenv begins"), &json!("prepareenv by uid 0: failed"))
    );
    assert_eq!((&ends[0]["task"], &ends[0]["outcome"]), (&json!(task(1)), &json!("holds")));
    assert_eq!(
        (&ends[1]["outcome"], &ends[1]["code"]),
        (&json!("failed"), &json!("too-many-pages"))
    );
    assert_eq!((&ends[2]["outcome"], &ends[2]["level"]), (&json!("holds"), &json!("DEBUG")));
    assert_eq!((&ends[3]["outcome"], &ends[3]["level"]), (&json!("done"), &json!("INFO")));
    let peer = begins[0]["span"]["peer"].as_str().unwrap();
    assert!(peer.starts_with("127.0.0.1:"), "{peer}");
}

#[tokio::test]
async fn nothing_secret_is_ever_logged_or_kept() {
    let place = Place::on("two-node").mounted().settings("[log]\nlevel = \"trace\"\n");
    let mut agent = place.ready().await;
    let controller = Controller::start().await;
    let secret = "hunter2-Zq8";
    let bodies = [
        format!(r#"{{"sshPassword":"{secret}","password":"{secret}","hugepageNr":1}}"#),
        format!(r#"{{"sshPassword":"{secret}","hugepageNr":"x"}}"#),
        format!(r#"{{"hostUuid":"a","sendCommandUrl":"http://h/","sshPassword":"{secret}"}}"#),
        format!(r#"{{"sshPassword":"{secret}","#),
        format!(r#"{{"sshPassword":{{"{secret}":"{secret}"}}}}"#),
    ];
    let mut number = 0;
    for body in &bodies {
        for path in [PREPARE, "/host/connect", "/host/ping", "/v1/prepare", "/v1/reclaim"] {
            let reply = agent.post(path, body).await;
            assert!(!reply.text().contains(secret), "{path}: {}", reply.text());
            if path.starts_with("/v1") {
                continue;
            }
            number += 1;
            agent.post_task(path, &task(number), &controller.url, body).await;
        }
    }
    for seen in controller.wait(number as usize).await {
        assert!(!seen.body.contains(secret), "{}", seen.body);
    }
    assert_eq!(agent.stop().await.code(), Some(0));
    assert!(!agent.log().contains(secret));
    place.snapshot().must_not_say(secret);
}

/// Socket on which systemd hears of the agents of this place.
fn heard_by_systemd(place: Place) -> (Place, UnixDatagram) {
    let socket = place.folder().join("notify");
    let heard = UnixDatagram::bind(&socket).unwrap();
    heard.set_nonblocking(true).unwrap();
    (place.env("NOTIFY_SOCKET", socket.to_str().unwrap()), heard)
}

#[tokio::test]
async fn systemd_hears_ready_watchdog_and_stopping() {
    let (place, heard) = heard_by_systemd(Place::on("two-node"));
    let place = place.env("WATCHDOG_USEC", "2000000");
    let next = async |word: &str| {
        until(&format!("systemd hears {word}"), async || {
            let mut bytes = [0; 4096];
            let length = heard.recv(&mut bytes).ok()?;
            let text = std::str::from_utf8(&bytes[..length]).unwrap().to_string();
            text.lines().any(|line| line == word).then_some(())
        })
        .await;
    };
    let mut agent = place.start().await;
    next("READY=1").await;
    let watched = async |what: &str| {
        let began = Instant::now();
        for _ in 0..3 {
            next("WATCHDOG=1").await;
        }
        let took = began.elapsed();
        assert!(took < Duration::from_millis(3 * 2000), "{what}: {took:?}");
    };
    watched("each in time").await;
    let mut gate = Gate::before_pools(&place);
    let controller = Controller::start().await;
    agent.post_task(PREPARE, &task(1), &controller.url, "{}").await;
    gate.wait().await;
    watched("also at work").await;
    gate.open().await;
    controller.wait(1).await;
    agent.signal(Signal::SIGTERM);
    next("STOPPING=1").await;
    assert_eq!(agent.ended().await.code(), Some(0));
}

#[tokio::test]
async fn systemd_hears_ready_only_when_what_was_kept_is_restored() {
    let (place, heard) = heard_by_systemd(Place::on("two-node"));
    let mut gate = restoring(&place);
    let _agent = place.start_behind(&mut gate).await;
    let mut bytes = [0; 4096];
    let mut next = async || {
        let length = until("systemd hears something", async || heard.recv(&mut bytes).ok()).await;
        std::str::from_utf8(&bytes[..length]).unwrap().trim().to_string()
    };
    assert_eq!(next().await, "EXTEND_TIMEOUT_USEC=60000000", "it is asked to wait");
    let early = heard.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
    gate.open().await;
    assert_eq!(next().await, "READY=1");
}
