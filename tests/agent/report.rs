//! How the controller is told of the node: a played engine with one container, a played target in it, a
//! played controller, the built agent between them.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::absent::Absent;
use crate::support::controller::{Answer, Controller, Seen};
use crate::support::http::{receive, request};
use crate::support::played::{Manner, Played};
use crate::support::{Agent, Place, until};

const HEALTH: &str = "/v1/targets/zbs-vhost/health";
/// States are seen soon, and only a change is reported.
const SETTINGS: &str = "health.interval = \"20ms\"\nhealth.timeout = \"2s\"\n\
    report.interval = \"1d\"\n";

/// A node whose target serves or closes its door.
struct Node(Played);

impl Node {
    /// With more settings.
    fn with(settings: &str) -> Node {
        Node(Played::with(&format!("{SETTINGS}{settings}")))
    }

    fn serves(&self, serves: bool) {
        self.0.becomes(if serves { Manner::Answers } else { Manner::ClosesAtOnce });
    }

    /// Turns the target, and waits until the agent knows.
    async fn becomes(&self, agent: &Agent, state: &str) {
        self.serves(state == "serving");
        until(&format!("it is {state}"), async || {
            (state_in(&status(agent).await) == state).then_some(())
        })
        .await;
    }

    /// The agent, with its eye on the target.
    async fn watching(&self) -> Agent {
        let agent = self.0.place.ready().await;
        assert_eq!(agent.get(HEALTH).await.json()["state"], "serving");
        agent
    }
}

async fn connect(agent: &Agent, url: &str) {
    let body = json!({"hostUuid": "5f0c", "sendCommandUrl": url}).to_string();
    assert_eq!(agent.post("/host/connect", &body).await.json()["success"], true);
}

async fn status(agent: &Agent) -> Value {
    agent.get("/v1/status").await.json()
}

fn state_in(report: &Value) -> String {
    report["targets"][0]["state"].as_str().unwrap_or_default().to_string()
}

fn generation(report: &Value) -> u64 {
    report["generation"].as_u64().unwrap_or_else(|| panic!("{report}"))
}

/// Waits until the controller has heard that the target is in that state; the call that told so.
async fn heard(controller: &Controller, state: &str) -> Seen {
    until(&format!("the controller hears that it is {state}"), async || {
        controller.seen().into_iter().rev().find(|call| state_in(&call.json()) == state)
    })
    .await
}

fn rises(seen: &[Seen]) {
    let generations: Vec<u64> = seen.iter().map(|call| generation(&call.json())).collect();
    assert!(generations.is_sorted(), "{generations:?}");
}

#[tokio::test]
async fn a_targets_change_is_reported_at_once_with_its_host() {
    let node = Node::with("");
    let agent = node.watching().await;
    let controller = Controller::start().await;
    connect(&agent, &controller.url).await;
    let call = heard(&controller, "serving").await;
    assert!(call.first_line.starts_with("POST /zstack/asyncrest/"), "{}", call.first_line);
    let path = call.header("commandpath");
    assert_eq!(path, Some("/zbs/primarystorage/vhost/target/status"));
    assert_eq!(call.header("content-type"), Some("application/json"));
    let report = call.json();
    assert_eq!(report["hostUuid"], "5f0c");
    assert_eq!(report["bootId"], "0f6a3b52-9d0e-4c1c-8b1f-5a0d7e2c4f19");
    assert_eq!(report["agentVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["targets"][0]["name"], "zbs-vhost");
    assert!(report["targets"][0]["reason"].as_str().unwrap().contains("SPDK v24.01"));
    let pool = json!({"sizeKib": 2048, "node": 1, "pages": 600, "freePages": 300, "grownPages": 0, "reservedPages": 0, "arrivalPages": 0});
    assert_eq!(report["pools"][1], pool);
    assert!(report["at"].is_string());
    for state in ["degraded", "serving", "degraded"] {
        let before = generation(&status(&agent).await);
        node.serves(state == "serving");
        until("it is reported", async || {
            let last = controller.seen().last()?.json();
            (state_in(&last) == state && generation(&last) > before).then_some(())
        })
        .await;
    }
    let seen = controller.seen();
    rises(&seen);
    assert!(seen.iter().all(|call| call.json()["hostUuid"] == "5f0c"), "never without its name");
    agent.logged("accepts the node's status").await;
    let accepted = agent.log().matches("accepts the node's status").count();
    assert_eq!(accepted, 1, "{}", agent.log());
}

#[tokio::test]
async fn the_controller_hears_again_and_again_of_a_node_on_which_nothing_changes() {
    let place = Place::on("two-node").settings("[report]\ninterval = \"50ms\"\n");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    connect(&agent, &controller.url).await;
    let seen = controller.wait(6).await;
    rises(&seen);
    let last = |call: &Seen| generation(&call.json());
    assert_eq!(last(&seen[4]), last(&seen[5]));
    assert_eq!(generation(&status(&agent).await), last(&seen[5]));
}

#[tokio::test]
async fn a_controller_that_was_away_gets_the_newest_state_only() {
    let node = Node::with("report.first_delay = \"50ms\"\nreport.max_delay = \"200ms\"\n");
    let agent = node.watching().await;
    let absent = Absent::new();
    connect(&agent, &absent.url()).await;
    agent.logged("the node's status cannot be reported").await;
    for state in ["degraded", "serving", "degraded"] {
        node.becomes(&agent, state).await;
    }
    let newest = generation(&status(&agent).await);
    let controller = absent.appears();
    let seen = controller.wait(1).await;
    assert_eq!(
        (generation(&seen[0].json()), state_in(&seen[0].json())),
        (newest, "degraded".into())
    );
    agent.logged("accepts the node's status").await;
    let log = agent.log();
    assert_eq!(log.matches("cannot be reported").count(), 1, "said once: {log}");
    assert!(log.contains("Connection refused"), "the log says why: {log}");
}

#[tokio::test]
async fn a_controller_that_knows_no_such_path_is_left_alone_until_it_connects_again() {
    let node = Node::with("");
    let agent = node.watching().await;
    let controller = Controller::answering(vec![Answer::Status(404); 1000]).await;
    connect(&agent, &controller.url).await;
    agent.logged("has no handler for reports").await;
    let before = controller.seen().len();
    for state in ["degraded", "serving", "degraded"] {
        node.becomes(&agent, state).await;
    }
    assert_eq!(controller.seen().len(), before, "no change is offered to it");
    connect(&agent, &controller.url).await;
    let seen = controller.wait(before + 1).await;
    assert_eq!(state_in(&seen[before].json()), "degraded");
    assert_eq!(agent.log().matches("has no handler for reports").count(), 1);
    assert!(!agent.log().contains("cannot be reported"), "{}", agent.log());
}

#[tokio::test]
async fn a_controller_that_is_rarely_asked_is_asked_again() {
    let node = Node::with("report.unknown_delay = \"50ms\"\n");
    let agent = node.watching().await;
    let controller = Controller::answering(vec![Answer::Status(404); 3]).await;
    connect(&agent, &controller.url).await;
    agent.logged("accepts the node's status").await;
    assert_eq!(controller.seen().len(), 4);
}

#[tokio::test]
async fn where_to_report_and_who_this_is_are_known_after_a_restart() {
    let node = Node::with("");
    let mut agent = node.watching().await;
    let controller = Controller::start().await;
    connect(&agent, &controller.url).await;
    let before = heard(&controller, "serving").await.json();
    assert_eq!(agent.stop().await.code(), Some(0));
    let count = controller.seen().len();
    let agent = node.watching().await;
    let seen = controller.wait(count + 1).await;
    let first = seen[count].json();
    assert_eq!(first["hostUuid"], "5f0c");
    assert!(generation(&first) > generation(&before), "{first} after {before}");
    drop(agent);
}

#[tokio::test]
async fn a_hanging_post_delays_a_newer_state_up_to_its_limit() {
    // Only being overtaken can end the first attempt.
    let node = Node::with("report.timeout = \"1h\"\n");
    let agent = node.watching().await;
    let controller = Controller::answering(vec![Answer::Silence]).await;
    connect(&agent, &controller.url).await;
    controller.wait(1).await;
    node.serves(false);
    heard(&controller, "degraded").await;
}

#[tokio::test]
async fn a_silent_controller_is_logged_once_and_retried() {
    let node = Node::with("report.timeout = \"100ms\"\nreport.first_delay = \"20ms\"\n");
    let agent = node.watching().await;
    let answers = [vec![Answer::Silence; 2], vec![Answer::Status(500), Answer::Reset]].concat();
    let controller = Controller::answering(answers).await;
    connect(&agent, &controller.url).await;
    agent.logged("accepts the node's status").await;
    assert_eq!(controller.seen().len(), 5);
    assert_eq!(agent.log().matches("cannot be reported").count(), 1, "{}", agent.log());
    assert!(agent.log().contains("did not answer within 100ms"), "{}", agent.log());
}

#[tokio::test]
async fn an_address_and_a_path_of_the_settings_are_taken_instead() {
    let controller = Controller::start().await;
    let url = &controller.url;
    let node = Node::with(&format!("report.url = \"{url}\"\nreport.command_path = \"/a/b\"\n"));
    let agent = node.watching().await;
    let call = heard(&controller, "serving").await;
    assert_eq!(call.header("commandpath"), Some("/a/b"));
    let other = Controller::start().await;
    connect(&agent, &other.url).await;
    until("its name is told", async || {
        controller.seen().last().filter(|call| call.json()["hostUuid"] == "5f0c").map(drop)
    })
    .await;
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test]
async fn disabled_reports_are_not_sent_and_the_status_is_served() {
    let node = Node::with("report.enabled = false\n");
    let mut agent = node.watching().await;
    let controller = Controller::start().await;
    connect(&agent, &controller.url).await;
    node.becomes(&agent, "degraded").await;
    assert_eq!(agent.stop().await.code(), Some(0));
    assert_eq!(controller.seen().len(), 0);
}

// Asking instead of being told.

#[tokio::test]
async fn who_waits_for_the_next_generation_hears_of_it_at_once() {
    let node = Node::with("");
    let agent = node.watching().await;
    let now = status(&agent).await;
    let path = format!("/v1/status?after={}&timeoutMs=60000", generation(&now));
    let (next, ()) = tokio::join!(agent.get(&path), async { node.serves(false) });
    let next = next.json();
    assert_eq!((generation(&next), state_in(&next)), (generation(&now) + 1, "degraded".into()));
    // What is older, and what is none of this agent's, is no reason to wait.
    for other in [0, generation(&now), u64::MAX] {
        let path = format!("/v1/status?after={other}&timeoutMs=60000");
        assert_eq!(generation(&agent.get(&path).await.json()), generation(&next));
    }
}

#[tokio::test]
async fn who_waits_in_vain_gets_the_same_and_who_asks_for_nonsense_a_reason() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let now = generation(&status(&agent).await);
    let reply = agent.get(&format!("/v1/status?after={now}&timeoutMs=30")).await;
    assert_eq!((reply.status, generation(&reply.json())), (200, now));
    for query in ["after=-1", "after=x", "timeoutMs=60001", "since=1"] {
        agent.get(&format!("/v1/status?{query}")).await.must_be_problem(400, "invalid-query");
    }
}

#[tokio::test]
async fn who_waits_is_answered_when_the_agent_stops() {
    let place = Place::on("two-node");
    let mut agent = place.ready().await;
    let now = generation(&status(&agent).await);
    let mut waits = TcpStream::connect(agent.address).await.unwrap();
    let path = format!("/v1/status?after={now}&timeoutMs=60000");
    waits.write_all(request("GET", &path, &[], "").as_bytes()).await.unwrap();
    // Nobody can see from here that the call was taken in, which a stop does not wait for.
    tokio::time::sleep(Duration::from_millis(200)).await;
    agent.signal(Signal::SIGTERM);
    assert_eq!(generation(&receive(&mut waits).await.json()), now);
    assert_eq!(agent.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_command_line_shows_the_targets_of_an_agent_that_runs() {
    let node = Node::with("");
    let _agent = node.watching().await;
    let table = node.0.place.run(&["status"]).await;
    assert_eq!(table.code, Some(0), "{table:?}");
    let line = table.out.lines().find(|line| line.contains("zbs-vhost")).unwrap();
    assert!(line.contains("serving") && line.contains("0/0"), "{}", table.out);
}
