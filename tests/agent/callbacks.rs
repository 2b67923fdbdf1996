//! How results get to the controller: real listeners that are there, are not there, answer this or
//! that, or not at all.

use std::time::Duration;

use crate::support::absent::Absent;
use crate::support::certificates::certificate;
use crate::support::controller::{Answer, Controller, Seen};
use crate::support::{Agent, Place, task};
use serde_json::json;

/// A call that is done at once and is called back.
async fn ask(agent: &Agent, number: u32, url: &str) {
    let reply = agent.post_task("/host/ping", &task(number), url, "{}").await;
    assert_eq!((reply.status, reply.text()), (200, ""));
}

/// The result is delivered with so many calls, and the agent then ends at once without another.
async fn delivered(mut agent: Agent, controller: &Controller, calls: usize) {
    agent.logged("was delivered to").await;
    assert_eq!(agent.stop().await.code(), Some(0));
    assert_eq!(controller.seen().len(), calls);
}

fn tasks(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|call| call.header("taskuuid").unwrap()).collect()
}

#[tokio::test]
async fn a_controller_that_is_down_for_a_while_gets_the_result_once_when_it_is_back() {
    let place = Place::on("two-node").settings("[log]\nlevel = \"debug\"\n");
    let agent = place.ready().await;
    let absent = Absent::new();
    ask(&agent, 1, &absent.url()).await;
    agent.logged("\"attempt\":3").await;
    let warnings = agent.log().matches("\"level\":\"WARN\"").count();
    assert_eq!(warnings, 1, "it is said once that nobody takes it: {}", agent.log());
    assert!(agent.log().contains("Connection refused"), "the log says why");
    let controller = absent.appears();
    let seen = controller.wait(1).await;
    assert_eq!(tasks(&seen), [task(1)]);
    assert_eq!(seen[0].json()["success"], true);
    delivered(agent, &controller, 1).await;
}

#[tokio::test]
async fn errors_429_and_resets_are_tried_again_with_growing_delays_until_it_is_taken() {
    let place = Place::on("two-node")
        .settings("[callbacks]\nfirst_delay = \"40ms\"\nmax_delay = \"160ms\"\n");
    let agent = place.ready().await;
    let controller = Controller::answering(vec![
        Answer::Status(500),
        Answer::Status(429),
        Answer::Reset,
        Answer::Status(503),
        Answer::Status(400),
        Answer::Status(200),
    ])
    .await;
    ask(&agent, 1, &controller.url).await;
    let seen = controller.wait(6).await;
    assert!(seen.iter().all(|call| call.body == seen[0].body && call.headers == seen[0].headers));
    // 40, 80, 160, 160 … less a fifth at most.
    let least = [32, 64, 128, 128, 128].map(Duration::from_millis);
    for (pair, least) in seen.windows(2).zip(least) {
        assert!(pair[1].at - pair[0].at >= least, "{:?} < {least:?}", pair[1].at - pair[0].at);
    }
    delivered(agent, &controller, 6).await;
}

#[tokio::test]
async fn a_404_means_that_nobody_waits_and_ends_the_attempts() {
    let place = Place::on("two-node");
    let mut agent = place.ready().await;
    let controller = Controller::answering(vec![Answer::Status(500), Answer::Status(404)]).await;
    ask(&agent, 1, &controller.url).await;
    controller.wait(2).await;
    agent.logged("does not wait for the result of").await;
    // The agent ends at once when nothing waits, and nothing comes from an agent that has ended.
    assert_eq!(agent.stop().await.code(), Some(0));
    assert_eq!(controller.seen().len(), 2);
    assert!(!agent.log().contains("results undelivered"), "{}", agent.log());
}

#[tokio::test]
async fn a_listener_that_does_not_answer_costs_one_attempt_and_is_tried_again() {
    let place = Place::on("two-node").settings("[callbacks]\nattempt_timeout = \"150ms\"\n");
    let agent = place.ready().await;
    let controller = Controller::answering(vec![Answer::Silence, Answer::Silence]).await;
    ask(&agent, 1, &controller.url).await;
    let seen = controller.wait(3).await;
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(150));
    assert_eq!(tasks(&seen), [task(1), task(1), task(1)]);
    agent.logged("did not answer within 150ms").await;
    agent.logged("was delivered to").await;
}

#[tokio::test]
async fn a_result_is_taken_by_the_status_whatever_becomes_of_the_answers_body() {
    let place = Place::on("two-node").settings("[callbacks]\nattempt_timeout = \"150ms\"\n");
    let agent = place.ready().await;
    let controller = Controller::answering(vec![Answer::Unfinished(200)]).await;
    ask(&agent, 1, &controller.url).await;
    delivered(agent, &controller, 1).await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let elsewhere = Controller::start().await;
    let controller = Controller::answering(vec![Answer::Redirect(elsewhere.url.clone())]).await;
    ask(&agent, 1, &controller.url).await;
    controller.wait(2).await;
    agent.logged("was delivered to").await;
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn an_https_controller_is_called_back_when_its_certificate_is_known() {
    let (acceptor, ca) = certificate("127.0.0.1");
    let place = Place::on("two-node");
    let file = place.folder().join("ca.pem");
    std::fs::write(&file, ca).unwrap();
    let place = place.env("SSL_CERT_FILE", file.to_str().unwrap());
    let agent = place.ready().await;
    let controller = Controller::with_tls(acceptor).await;
    ask(&agent, 1, &controller.url).await;
    let seen = controller.wait(1).await;
    assert_eq!((tasks(&seen), &seen[0].json()["success"]), (vec![task(1).as_str()], &json!(true)));
}

#[tokio::test]
async fn an_https_controller_that_nobody_vouches_for_gets_nothing() {
    let (_, ca) = certificate("127.0.0.1");
    let (acceptor, _) = certificate("127.0.0.1");
    let place = Place::on("two-node");
    let file = place.folder().join("ca.pem");
    std::fs::write(&file, ca).unwrap();
    let place = place.env("SSL_CERT_FILE", file.to_str().unwrap());
    let agent = place.ready().await;
    let controller = Controller::with_tls(acceptor).await;
    ask(&agent, 1, &controller.url).await;
    agent.logged("invalid peer certificate").await;
    assert_eq!(controller.seen().len(), 0);
    // Others are not held up by it.
    let other = Controller::start().await;
    ask(&agent, 2, &other.url).await;
    other.wait(1).await;
}

#[tokio::test]
async fn a_result_that_nobody_takes_in_all_the_time_is_given_up_loudly() {
    let place = Place::on("two-node").settings("[callbacks]\nmax_age = \"300ms\"\n");
    let mut agent = place.ready().await;
    let absent = Absent::new();
    ask(&agent, 1, &absent.url()).await;
    agent.logged("was discarded").await;
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("was discarded")).unwrap();
    assert!(line.contains("\"level\":\"ERROR\"") && line.contains(&task(1)), "{line}");
    let controller = absent.appears();
    ask(&agent, 2, &controller.url).await;
    controller.wait(1).await;
    assert_eq!(agent.stop().await.code(), Some(0));
    assert_eq!(tasks(&controller.seen()), [task(2)]);
}

#[tokio::test]
async fn dead_addresses_do_not_hold_back_results_for_others() {
    // Two attempts at a time, and more silent listeners than that.
    let place =
        Place::on("two-node").settings("[callbacks]\nparallel = 2\nattempt_timeout = \"500ms\"\n");
    let agent = place.ready().await;
    let silent = Controller::answering(vec![Answer::Silence; 1000]).await;
    let absent = Absent::new();
    for number in 0..4 {
        ask(&agent, number, &silent.url).await;
        ask(&agent, 10 + number, &absent.url()).await;
    }
    let controllers = [Controller::start().await, Controller::start().await];
    for number in 0..20_u32 {
        ask(&agent, 100 + number, &controllers[(number % 2) as usize].url).await;
    }
    for (which, controller) in controllers.iter().enumerate() {
        let seen = controller.wait(10).await;
        let mut came: Vec<String> = tasks(&seen).into_iter().map(str::to_string).collect();
        came.sort_unstable();
        let expected = (0..20).filter(|n| n % 2 == which).map(|n| task(100 + n as u32));
        assert_eq!(came, expected.collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_callback_is_ascii_whatever_the_text() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let body = r#"{"hugepageNr": "Größe 磁 😀 {{x}}"}"#;
    let path = "/zbs/primarystorage/vhost/target/prepareenv";
    agent.post_task(path, &task(1), &controller.url, body).await;
    let seen = controller.wait(1).await;
    assert!(seen[0].body.is_ascii(), "{}", seen[0].body);
    assert!(seen[0].body.contains(r"Gr\u00f6\u00dfe \u78c1 \ud83d\ude00"), "{}", seen[0].body);
    let error = seen[0].json()["error"].as_str().unwrap().to_string();
    assert!(error.contains("Größe 磁 😀 {{x}}"), "{error}");
}

#[tokio::test]
async fn a_task_that_comes_again_while_its_result_waits_is_not_done_twice() {
    let place = Place::on("two-node");
    let mut agent = place.ready().await;
    let absent = Absent::new();
    for _ in 0..3 {
        ask(&agent, 1, &absent.url()).await;
        agent.logged("could not be delivered to").await;
    }
    let controller = absent.appears();
    controller.wait(1).await;
    agent.logged("was delivered to").await;
    assert_eq!(agent.stop().await.code(), Some(0));
    assert_eq!(tasks(&controller.seen()), [task(1)]);
}

#[tokio::test]
async fn results_for_one_controller_reuse_its_connections_or_not_and_all_arrive() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    for number in 0..100 {
        ask(&agent, number, &controller.url).await;
    }
    let seen = controller.wait(100).await;
    let mut came = tasks(&seen);
    came.sort_unstable();
    came.dedup();
    assert_eq!((came.len(), seen.len()), (100, 100));
}
