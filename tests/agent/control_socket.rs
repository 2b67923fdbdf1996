//! How the agent tells a target's health when its control socket misbehaves: a played engine with one
//! container, a played target in it, the built agent over HTTP.

use std::fs;

use crate::support::played::{Manner, Played};
use crate::support::{Agent, process, until};

const HEALTH: &str = "/v1/targets/zbs-vhost/health";
const SETTINGS: &str = "[health]\nmax_age = \"0s\"\ntimeout = \"1s\"\ninterval = \"60s\"\n";
/// More than the agent may need for whatever a target sends, in KiB.
const MOST_KIB: u64 = 200 * 1024;

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
async fn a_misbehaving_control_socket_is_reported_until_it_replies() {
    let played = Played::with(SETTINGS);
    let mut agent = played.place.ready().await;
    serves_again(&agent, "nothing").await;
    let deeper = "{\"a\":".repeat(100_000).leak();
    for (manner, reason) in [
        (Manner::OnlyStarts, "did not answer framework_wait_init"),
        (Manner::NeverAnswers, "did not answer spdk_get_version within 1s"),
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

// As in longhorn#13322, where the counter stood at 18.9 million and the large pool was too small for the load.
#[tokio::test]
async fn exhausted_buffers_degrade_a_target_that_still_runs_and_say_what_to_set() {
    // The counters are asked for every 20 probes.
    let played = Played::with(&SETTINGS.replace("60s", "20ms"));
    played.becomes(Manner::Waits(18_900_000));
    let agent = played.place.ready().await;
    serves_again(&agent, "counters that do not grow").await;
    let counted = until("its counters are known", async || {
        let page = agent.get("/metrics").await.text().to_string();
        page.contains("vhost_target_buffer_waits_total{").then_some(())
    });
    counted.await;
    played.becomes(Manner::Waits(18_900_002));
    let degraded = until("it is degraded", async || {
        let health = agent.get(HEALTH).await.json();
        (health["state"] != "serving").then_some(health)
    });
    let health = degraded.await;
    let why = health["reason"].as_str().unwrap();
    assert_eq!(health["state"], "degraded", "{health}");
    assert!(why.starts_with("SPDK v24.01 answers") && why.contains("large_pool_count"), "{why}");
    assert!(health["ageMs"].is_u64(), "{health}");
    let compatible = agent.post("/zbs/primarystorage/vhost/target/health", "{}").await.json();
    assert_eq!(compatible["targetRunning"], true, "{compatible}");
    let finding = until("it is a finding", async || {
        let status = agent.get("/v1/status").await.json();
        status["findings"].get(0).map(|it| it["code"].clone())
    });
    assert_eq!(finding.await, "buffers-exhausted");
    let page = agent.get("/metrics").await.text().to_string();
    for line in [r#"pool="small"} 0"#, r#"pool="large"} 2"#] {
        let line = format!("vhost_target_buffer_waits_total{{target=\"zbs-vhost\",{line}\n");
        assert!(page.contains(&line), "{line} in {page}");
    }
}

#[tokio::test]
async fn health_is_returned_without_starting_a_process() {
    let played = Played::with(SETTINGS);
    let agent = played.place.ready().await;
    serves_again(&agent, "nothing").await;
    let before = process::faults_of_children(agent.pid());
    for _ in 0..100 {
        serves_again(&agent, "a while").await;
        let compatible = agent.post("/zbs/primarystorage/vhost/target/health", "{}").await.json();
        assert_eq!(compatible["targetRunning"], true, "{compatible}");
        let children = format!("/proc/{0}/task/{0}/children", agent.pid());
        assert_eq!(fs::read_to_string(children).unwrap(), "");
    }
    assert_eq!(process::faults_of_children(agent.pid()), before);
}

#[tokio::test]
async fn callers_at_the_same_time_wait_no_longer_than_one() {
    let played = Played::with(SETTINGS);
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
