//! How the agent tells a target's health when its control socket misbehaves: a played engine with one
//! container, a played target in it, the built agent over HTTP.
#![allow(clippy::disallowed_methods)]

mod support;

use std::fs;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use support::{Agent, Place, until};

/// What the target does with a call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    Answers,
    /// Its version, but not that its start has ended.
    OnlyStarts,
    NeverAnswers,
    Says(&'static str),
    /// This, and then no newline and no end.
    Endless(&'static str),
    /// As `Endless`, with line ends in between.
    EndlessLines(&'static str),
    ClosesAtOnce,
}

/// A node with an engine, one container, and a target whose manner changes.
struct Played {
    place: Place,
    manner: Arc<Mutex<Manner>>,
}

/// The pid of the container's process; it lives on the fixture's `/proc`.
const PID: u32 = 77;
const HEALTH: &str = "/v1/targets/zbs-vhost/health";
const SETTINGS: &str =
    "[health]\nmax_age = \"0s\"\ntimeout = \"300ms\"\n[engine]\nsocket = \"/run/docker.sock\"\n";
/// More than the agent may need for whatever a target sends, in KiB.
const MOST_KIB: u64 = 200 * 1024;

impl Played {
    fn new() -> Played {
        let place = Place::on("two-node").mounted().settings(SETTINGS);
        for folder in ["run", "var/tmp/vhost-sockets", &format!("proc/{PID}")] {
            fs::create_dir_all(place.path(folder)).unwrap();
        }
        let rest = "0 ".repeat(44);
        place.write(&format!("proc/{PID}/stat"), &format!("{PID} (vhost) S 0 1 1 0 -1 {rest}\n"));
        let engine = UnixListener::bind(place.path("run/docker.sock")).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = engine.accept().await {
                tokio::spawn(support::engine::tell_of_the_container(stream, PID));
            }
        });
        let manner = Arc::new(Mutex::new(Manner::Answers));
        let target = UnixListener::bind(place.path("var/tmp/vhost-sockets/vhost.sock")).unwrap();
        let played = manner.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = target.accept().await {
                tokio::spawn(behave(stream, played.clone()));
            }
        });
        Played { place, manner }
    }

    fn becomes(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }
}

async fn behave(mut stream: UnixStream, manner: Arc<Mutex<Manner>>) {
    let mut bytes = Vec::new();
    loop {
        let mut requests = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        let request = requests.next();
        let taken = requests.byte_offset();
        let Some(Ok(request)) = request else {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        bytes.drain(..taken);
        let manner = *manner.lock().unwrap();
        let said = match manner {
            Manner::OnlyStarts if request["method"] == "framework_wait_init" => Ok(()),
            Manner::Answers | Manner::OnlyStarts => {
                let result = json!({"version": "SPDK v24.01", "reactors": [{}]});
                let reply = json!({"id": request["id"], "result": result});
                stream.write_all(format!("{reply}\n").as_bytes()).await
            }
            Manner::NeverAnswers => Ok(()),
            Manner::Says(text) => stream.write_all(text.as_bytes()).await,
            Manner::Endless(text) => pour(&mut stream, text, "0,").await,
            Manner::EndlessLines(text) => pour(&mut stream, text, "0,\n").await,
            Manner::ClosesAtOnce => return,
        };
        if said.is_err() {
            return;
        }
    }
}

async fn pour(stream: &mut UnixStream, text: &str, drop: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    let drops = drop.repeat(20_000);
    loop {
        stream.write_all(drops.as_bytes()).await?;
    }
}

/// The most memory that the agent has had, in KiB (proc_pid_status(5)).
fn peak(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn serves_again(agent: &Agent, after: &str) {
    let health = agent.get(HEALTH).await.json();
    assert_eq!(health["state"], "serving", "after {after}: {health}");
}

#[tokio::test]
async fn a_control_socket_that_misbehaves_is_told_and_the_next_good_answer_counts() {
    let played = Played::new();
    let mut agent = played.place.ready().await;
    serves_again(&agent, "nothing").await;
    let deeper = "{\"a\":".repeat(100_000).leak();
    for (manner, reason) in [
        (Manner::OnlyStarts, "did not answer framework_wait_init"),
        (Manner::NeverAnswers, "did not answer spdk_get_version within 300ms"),
        (Manner::Says("HTTP/1.1 400 Bad Request\r\n\r\n"), "something else than was expected"),
        (Manner::Says("no newline"), "something else than was expected"),
        (Manner::Says("{\"id\": 1, \"result\": {\"version\": \"SP"), "did not answer"),
        (Manner::Says("{\"id\": \"another\", \"result\": true}\n"), "did not answer"),
        (Manner::Says("{\"id\": null, \"result\": {\"version\": \"x\"}}\n"), "did not answer"),
        (Manner::Endless("{\"id\": 1, \"result\": ["), "an answer of more than"),
        (Manner::EndlessLines("{\"id\": 1, \"result\": ["), "an answer of more than"),
        (Manner::Says(deeper), "did not answer"),
        (Manner::ClosesAtOnce, "closed the connection"),
    ] {
        played.becomes(manner);
        let health = agent.get(HEALTH).await.json();
        let why = health["reason"].as_str().unwrap();
        assert_eq!(health["state"], "degraded", "{manner:?}: {health}");
        // A stream without end may be cut by either bound: its length, or the time.
        let endless = why.contains("did not answer") && reason.contains("more than");
        assert!(why.contains(reason) || endless, "{manner:?}: {why}");
        assert!(why.len() < 2000, "{}", why.len());
        played.becomes(Manner::Answers);
        serves_again(&agent, reason).await;
    }
    agent.must_live();
    assert!(peak(&agent) < MOST_KIB, "{} KiB", peak(&agent));
}

#[tokio::test]
async fn callers_at_the_same_time_wait_no_longer_than_one() {
    let played = Played::new();
    let agent = played.place.ready().await;
    played.becomes(Manner::NeverAnswers);
    let calls: Vec<_> = (0..50).map(|_| agent.get(HEALTH)).collect();
    for health in futures_util::future::join_all(calls).await {
        assert_eq!(health.json()["state"], "degraded");
    }
    played.becomes(Manner::Answers);
    until("it serves again", async || {
        (agent.get(HEALTH).await.json()["state"] == "serving").then_some(())
    })
    .await;
}
