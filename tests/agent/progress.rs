//! How the controller is told of long work that goes on, where its call asked for that: a played kernel, real
//! listeners, the built agent between them.

use crate::support::absent::Absent;
use crate::support::controller::{Answer, Controller, Seen};
use crate::support::kernel::Kernel;
use crate::support::{Agent, Place, soon, task, until};
use serde_json::{Value, json};

const PREPARE: &str = "/zbs/primarystorage/vhost/target/prepareenv";
const ENSURE: &str = "/zbs/primarystorage/vhost/target/ensure";
/// The two-node tree has 400 free pages.
const HOLDS: u64 = 360;
/// For these it has to grow pages on both its NUMA nodes.
const GROWS: u64 = 1024;

/// It, with a kernel that gives pages, and an agent that says all it has to say.
fn node() -> (Place, Kernel) {
    let place = Place::on("two-node")
        .mounted()
        .settings("[log]\nlevel = \"debug\"\n[report]\nenabled = false\ntimeout = \"3s\"\n");
    let kernel = Kernel::serve(&place, &[(5000, 0), (5000, 0)]);
    (place, kernel)
}

fn context() -> Value {
    json!({"api": "a5b1", "task-stage": "20-80", "Größe": [1, null]})
}

/// A call of a controller that wants to be told there.
fn body(pages: u64, context: &Value, url: &str) -> String {
    let stack = json!(["one", {"two": 2}]);
    json!({"hugepageNr": pages, "threadContext": context, "threadContextStack": stack, "sendCommandUrl": url})
        .to_string()
}

async fn prepare(agent: &Agent, body: &str) -> Value {
    soon("the prepare ends", agent.post(PREPARE, body)).await.json()
}

async fn connect(agent: &Agent, url: &str) {
    let body = json!({"hostUuid": "5f0c", "sendCommandUrl": url}).to_string();
    assert_eq!(agent.post("/host/connect", &body).await.json()["success"], true);
}

fn percents(seen: &[Seen]) -> Vec<u32> {
    let percent = |call: &Seen| call.json()["progress"].as_str().unwrap().parse().unwrap();
    seen.iter().map(percent).collect()
}

/// Waits until the controller is told that percent; all that came so far.
async fn reported(controller: &Controller, percent: u32) -> Vec<Seen> {
    until(&format!("{percent} percent are told"), async || {
        Some(controller.seen()).filter(|seen| percents(seen).last() == Some(&percent))
    })
    .await
}

#[tokio::test]
async fn a_prepare_reports_progress_within_its_stage() {
    let (place, _kernel) = node();
    let agent = place.ready().await;
    let controller = Controller::start().await;
    connect(&agent, "http://127.0.0.1:1/elsewhere").await;
    let result = prepare(&agent, &body(GROWS, &context(), &controller.url)).await;
    assert_eq!((&result["success"], &result["outcome"]), (&json!(true), &json!("changed")));
    let seen = reported(&controller, 80).await;
    let percents = percents(&seen);
    assert!(percents[0] == 20 && percents.is_sorted(), "{percents:?}");
    for call in &seen {
        assert_eq!(call.header("commandpath"), Some("/progress/report"));
        assert_eq!(call.header("content-type"), Some("application/json"));
        assert!(call.body.is_ascii(), "{}", call.body);
        let reported = call.json();
        assert_eq!(reported["processType"], "vhost-target-prepare");
        assert_eq!(
            (&reported["resourceUuid"], &reported["serverUuid"]),
            (&Value::Null, &json!("5f0c"))
        );
        assert_eq!(reported["threadContextMap"], context());
        assert_eq!(reported["threadContextStack"], json!(["one", {"two": 2}]));
    }
    let last = json!({"step": "grow", "subject": "node1/2M", "outcome": "done"});
    assert_eq!(seen.last().unwrap().json()["detail"], last);
}

#[tokio::test]
async fn a_call_with_callback_and_no_stage_reports_up_to_100() {
    let (place, _kernel) = node();
    let agent = place.ready().await;
    let (controller, callbacks) = (Controller::start().await, Controller::start().await);
    let body = body(HOLDS, &json!({"api": "a5b1"}), &controller.url);
    let reply = agent.post_task(PREPARE, &task(1), &callbacks.url, &body).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    let seen = reported(&controller, 100).await;
    assert_eq!((percents(&seen), &seen[0].json()["detail"]), (vec![0, 100], &Value::Null));
    assert_eq!(seen[0].json()["serverUuid"], Value::Null, "no controller has connected");
    assert_eq!(callbacks.wait(1).await[0].json()["success"], true);
}

#[tokio::test]
async fn the_address_that_the_controller_connected_with_is_taken_where_the_call_names_none() {
    let (place, _kernel) = node();
    let agent = place.ready().await;
    let controller = Controller::start().await;
    connect(&agent, &controller.url).await;
    for (number, url) in ["", "ftp://user:secret@h/", "/only/a/path"].into_iter().enumerate() {
        let context = json!({"api": "a5b1", "task-stage": "80-20"});
        let result = prepare(&agent, &body(HOLDS, &context, url)).await;
        assert_eq!(result["success"], true, "{result}");
        let seen = controller.wait(2 * (number + 1)).await;
        assert_eq!(percents(&seen[2 * number..]), [0, 100], "the stage makes no sense: the whole");
    }
    agent.logged("sendCommandUrl is ignored").await;
    assert!(!agent.log().contains("secret"), "{}", agent.log());
}

#[tokio::test]
async fn a_call_that_does_not_ask_reports_no_progress() {
    let (place, _kernel) = node();
    let mut agent = place.ready().await;
    let controller = Controller::start().await;
    connect(&agent, &controller.url).await;
    for context in [json!(null), json!({}), json!({"api": ""}), json!("api"), json!(["api"])] {
        let result = prepare(&agent, &body(HOLDS, &context, &controller.url)).await;
        assert_eq!(result["success"], true, "{result}");
    }
    assert_eq!(prepare(&agent, "{\"hugepageNr\": 360}").await["success"], true);
    // Whatever was begun before it would have come before this one.
    prepare(&agent, &body(HOLDS, &context(), &controller.url)).await;
    let seen = reported(&controller, 80).await;
    assert_eq!(percents(&seen), [20, 80]);
    assert_eq!(agent.stop().await.code(), Some(0));
    assert_eq!(controller.seen().len(), 2);
}

#[tokio::test]
async fn who_refuses_or_hangs_or_answers_nonsense_changes_nothing_of_the_call() {
    let (place, _kernel) = node();
    let mut agent = place.ready().await;
    let absent = Absent::new();
    let secret = absent.url().replace("http://", "http://user:secret@") + "?token=secret";
    for (before, url) in [absent.url(), secret].into_iter().enumerate() {
        let result = prepare(&agent, &body(HOLDS, &context(), &url)).await;
        assert_eq!(result["success"], true, "{result}");
        until("the log tells of it", async || {
            let reported =
                agent.log().matches("the progress of a call could not be reported").count();
            (reported > before).then_some(())
        })
        .await;
    }
    let odd = [Answer::Status(500), Answer::Reset, Answer::Unfinished(200), Answer::Silence];
    for answer in odd {
        let controller = Controller::answering(vec![answer; 100]).await;
        let result = prepare(&agent, &body(HOLDS, &context(), &controller.url)).await;
        assert_eq!(result["success"], true, "{result}");
        assert_eq!(percents(&controller.wait(2).await), [20, 80]);
    }
    // A listener that hangs does not hold back a stop either.
    let silent = Controller::answering(vec![Answer::Silence; 2]).await;
    let grown = prepare(&agent, &body(GROWS, &context(), &silent.url)).await;
    assert_eq!(grown["outcome"], "changed", "{grown}");
    assert_eq!(agent.stop().await.code(), Some(0));
    assert!(!agent.log().contains("secret"), "{}", agent.log());
    assert!(!agent.log().contains("\"level\":\"WARN\""), "{}", agent.log());
}

#[tokio::test]
async fn a_404_ends_the_progress_of_that_call() {
    let (place, _kernel) = node();
    let agent = place.ready().await;
    let controller = Controller::answering(vec![Answer::Status(404)]).await;
    let result = prepare(&agent, &body(GROWS, &context(), &controller.url)).await;
    assert_eq!(result["success"], true, "{result}");
    agent.logged("has no handler for progress (404)").await;
    prepare(&agent, &body(HOLDS, &context(), &controller.url)).await;
    assert_eq!(percents(&reported(&controller, 80).await), [20, 20, 80], "the next call is");
}

#[tokio::test]
async fn a_failed_deploy_reports_progress_and_never_100() {
    let (place, _kernel) = node();
    let mut agent = place.ready().await;
    let controller = Controller::start().await;
    let body = json!({"image": "zbs-vhost:1", "threadContext": context(), "sendCommandUrl": controller.url});
    let result = agent.post(ENSURE, &body.to_string()).await.json();
    assert_eq!(result["code"], "engine-absent", "{result}");
    let seen = controller.wait(1).await;
    assert_eq!(agent.stop().await.code(), Some(0));
    assert!(percents(&controller.seen()).iter().all(|percent| *percent < 80));
    let reported = seen[0].json();
    assert_eq!(reported["processType"], "vhost-target-deploy");
    assert_eq!(
        (&reported["progress"], &reported["threadContextStack"]),
        (&json!("20"), &Value::Null)
    );
}
