//! What was promised to the controller is kept: over kills and restarts of the agent, and while its disk
//! is full or read-only. Calls that only look need no disk. (A disk that hangs is the unit tests': nothing
//! here makes one.)

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::absent::Absent;
use crate::support::controller::{Answer, Controller};
use crate::support::gate::Gate;
use crate::support::http::{request, try_receive};
use crate::support::{Agent, Place, task, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

const PREPARE: &str = "/zbs/primarystorage/vhost/target/prepareenv";
const RESIZE: &str = "/zbs/primarystorage/vhost/resize";
const HEALTH: &str = "/zbs/primarystorage/vhost/target/health";
const ONE_PAGE: &str = r#"{"hugepageNr":1}"#;
const CONNECT: &str = r#"{"hostUuid":"a","sendCommandUrl":"http://10.0.0.1/x"}"#;
const COUNTER: &str = "sys/devices/system/node/has_cpu";

async fn accepted(agent: &Agent, path: &str, number: u32, url: &str, body: &str) {
    let reply = agent.post_task(path, &task(number), url, body).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
}

async fn kill(mut agent: Agent) {
    agent.signal(Signal::SIGKILL);
    agent.ended().await;
}

fn file(state: &Path, number: u32) -> PathBuf {
    state.join("outbox").join(task(number)).with_extension("json")
}

/// Takes a gate away at which nobody waits any more.
fn put_back(place: &Place, counter: &str) {
    fs::write(place.folder().join("counter"), counter).unwrap();
    fs::rename(place.folder().join("counter"), place.path(COUNTER)).unwrap();
}

/// What the state says of a task.
fn kept(state: &Path, number: u32) -> Option<Value> {
    Some(serde_json::from_slice(&fs::read(file(state, number)).ok()?).unwrap())
}

async fn has_result(state: &Path, number: u32) {
    until("the result is written", async || kept(state, number)?["result"].as_object().map(drop))
        .await;
}

async fn gone(state: &Path, number: u32) {
    until("the file is gone", async || kept(state, number).is_none().then_some(())).await;
}

#[tokio::test]
async fn a_call_is_on_disk_when_it_is_answered_and_what_it_said_never_is() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let mut gate = Gate::before_pools(&place);
    let absent = Absent::new();
    let body = r#"{"hugepageNr":1,"sshPassword":"hunter2-Zq8"}"#;
    accepted(&agent, PREPARE, 1, &absent.url(), body).await;
    let entry = kept(&place.state(), 1).unwrap();
    assert_eq!(entry["callbackUrl"], absent.url());
    assert_eq!(
        (&entry["version"], &entry["task"], &entry["route"], &entry["result"]),
        (&json!(1), &json!(task(1)), &json!("prepareenv"), &Value::Null)
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file(&place.state(), 1)), 0o600);
    assert_eq!(mode(&place.state().join("outbox")), 0o700);
    gate.wait().await;
    gate.open().await;
    agent.logged("could not be delivered to").await;
    let text = fs::read_to_string(file(&place.state(), 1)).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
    let result = kept(&place.state(), 1).unwrap()["result"].clone();
    let controller = absent.appears();
    assert_eq!(controller.wait(1).await[0].body, result["body"].as_str().unwrap());
    gone(&place.state(), 1).await;
}

#[tokio::test]
async fn a_result_that_waited_is_offered_after_a_kill_just_as_before() {
    let place = Place::on("two-node").mounted().settings(
        "[callbacks]\nfirst_delay = \"1m\"\nmax_delay = \"1m\"\nattempt_timeout = \"5s\"\n",
    );
    let answers = [Answer::Status(500), Answer::Reset, Answer::Status(429), Answer::Silence];
    let controller = Controller::answering(answers.to_vec()).await;
    let agent = place.ready().await;
    accepted(&agent, PREPARE, 1, &controller.url, ONE_PAGE).await;
    let mut runs = vec![agent];
    for attempts in 1..=5 {
        controller.wait(attempts).await;
        if attempts < 5 {
            kill(runs.pop().unwrap()).await;
            runs.push(place.ready().await);
        }
    }
    let seen = controller.seen();
    for call in &seen {
        assert_eq!(call.header("taskuuid"), Some(task(1).as_str()));
        assert_eq!((&call.body, &call.headers), (&seen[0].body, &seen[0].headers));
        assert_eq!(call.first_line, seen[0].first_line);
    }
    gone(&place.state(), 1).await;
    kill(runs.pop().unwrap()).await;
    let mut last = place.ready().await;
    assert_eq!(last.stop().await.code(), Some(0));
    assert_eq!(controller.seen().len(), 5, "what was taken is not offered again");
}

#[tokio::test]
async fn a_task_that_comes_again_after_a_restart_is_known_and_gets_one_result() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let absent = Absent::new();
    accepted(&agent, PREPARE, 1, &absent.url(), ONE_PAGE).await;
    kill(agent).await;
    let mut agent = place.ready().await;
    accepted(&agent, PREPARE, 1, &absent.url(), ONE_PAGE).await;
    agent.logged("the repeated call is ignored").await;
    let controller = absent.appears();
    controller.wait(1).await;
    assert_eq!(agent.stop().await.code(), Some(0));
    assert_eq!(controller.seen().len(), 1);
    assert!(kept(&place.state(), 1).is_none(), "a stop waits for the disk as well");
}

#[tokio::test]
async fn a_task_that_was_at_work_when_the_agent_died_is_called_back_and_can_be_called_again() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let counter = place.read(COUNTER);
    let mut gate = Gate::before_pools(&place);
    accepted(&agent, PREPARE, 1, &controller.url, ONE_PAGE).await;
    gate.wait().await;
    kill(agent).await;
    put_back(&place, &counter);
    let agent = place.ready().await;
    let seen = controller.wait(1).await;
    let text = seen[0].json()["error"].as_str().unwrap().to_string();
    assert_eq!(seen[0].json()["success"], false);
    assert!(text.starts_with("the agent was ended while it worked on this call (prepareenv"));
    assert!(text.ends_with("call again"), "{text}");
    assert_eq!(seen[0].header("error"), Some(text.as_str()));
    gone(&place.state(), 1).await;
    accepted(&agent, PREPARE, 1, &controller.url, ONE_PAGE).await;
    assert_eq!(controller.wait(2).await[1].json()["success"], true);
}

#[tokio::test]
async fn interrupted_and_undelivered_work_is_reported_at_the_next_start() {
    let place = Place::on("two-node").mounted().settings("[http]\ndrain_timeout = \"200ms\"\n");
    let mut agent = place.ready().await;
    let absent = Absent::new();
    accepted(&agent, RESIZE, 1, &absent.url(), "{}").await;
    has_result(&place.state(), 1).await;
    let counter = place.read(COUNTER);
    let mut gate = Gate::before_pools(&place);
    accepted(&agent, PREPARE, 2, &absent.url(), ONE_PAGE).await;
    gate.wait().await;
    assert_eq!(agent.stop().await.code(), Some(0));
    put_back(&place, &counter);
    let _agent = place.ready().await;
    let controller = absent.appears();
    let seen = controller.wait(2).await;
    let of = |number| seen.iter().find(|s| s.header("taskuuid") == Some(&task(number))).unwrap();
    assert_eq!(of(1).json()["code"], "invalid-body");
    assert_eq!(of(2).json()["code"], "agent-ended");
}

#[tokio::test]
async fn files_that_cannot_be_used_take_no_result_with_them_and_one_too_old_is_offered_once() {
    let place = Place::on("two-node").mounted();
    let absent = Absent::new();
    let agent = place.ready().await;
    for number in 1..=3 {
        accepted(&agent, PREPARE, number, &absent.url(), ONE_PAGE).await;
        has_result(&place.state(), number).await;
    }
    kill(agent).await;
    fs::write(file(&place.state(), 1), "{\"version\": 1, \"ta").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    let mut old = kept(&place.state(), 2).unwrap();
    old["result"]["since"] = json!(humantime::format_rfc3339_millis(long_ago).to_string());
    fs::write(file(&place.state(), 2), old.to_string()).unwrap();
    let agent = place.ready().await;
    agent.logged("was discarded").await;
    agent.logged("cannot be used and was set aside").await;
    gone(&place.state(), 2).await;
    assert!(file(&place.state(), 1).with_extension("json.unusable").exists());
    let controller = absent.appears();
    assert_eq!(controller.wait(1).await[0].header("taskuuid"), Some(task(3).as_str()));
    // What was set aside is not known any more.
    accepted(&agent, PREPARE, 1, &controller.url, ONE_PAGE).await;
    controller.wait(2).await;
}

/// A state folder of its own, small, and how it looks to the agent.
fn small() -> Place {
    let place = Place::on("two-node").mounted();
    let state = place.state().display().to_string();
    place.prelude(&format!(
        "mkdir -p {state} && mount -t tmpfs -o size=128k,mode=700 tmpfs {state} || exit 98; "
    ))
}

#[tokio::test]
async fn a_full_disk_refuses_calls_and_loses_no_result_and_is_used_again_when_there_is_room() {
    let place = small();
    let agent = place.start_unseen().await;
    let inside = format!("/proc/{}/root{}", agent.pid(), place.state().display());
    let state = Path::new(&inside);
    let absent = Absent::new();
    let mut gate = Gate::before_pools(&place);
    accepted(&agent, PREPARE, 1, &absent.url(), ONE_PAGE).await;
    gate.wait().await;
    assert!(fs::write(state.join("full"), vec![0; 1 << 20]).is_err());
    let reply = agent.post_task(PREPARE, &task(2), &absent.url(), "{}").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "state-unwritable"));
    for part in ["No space left on device", "outbox", "free space"] {
        assert!(reply.text().contains(part), "{part}: {}", reply.text());
    }
    assert_eq!(reply.json()["success"], false);
    let looking = Controller::start().await;
    accepted(&agent, HEALTH, 3, &looking.url, "{}").await;
    accepted(&agent, "/host/ping", 4, &looking.url, "{}").await;
    let seen = looking.wait(2).await;
    assert!(seen.iter().all(|call| call.json()["success"] == true), "{seen:?}");
    accepted(&agent, "/host/connect", 5, &looking.url, CONNECT).await;
    let connect = looking.wait(3).await[2].json();
    assert_eq!(connect["success"], false, "who the host is has to be kept: {connect}");
    assert_eq!(connect["code"], "state-unwritable", "{connect}");
    gate.open().await;
    agent.logged("could not be delivered to").await;
    assert!(kept(state, 1).unwrap()["result"].is_null(), "it is offered without being written");
    fs::remove_file(state.join("full")).unwrap();
    has_result(state, 1).await;
    agent.logged("the outbox can be written again").await;
    let controller = absent.appears();
    assert_eq!(controller.wait(1).await[0].header("taskuuid"), Some(task(1).as_str()));
    gone(state, 1).await;
    accepted(&agent, PREPARE, 2, &controller.url, ONE_PAGE).await;
    assert_eq!(controller.wait(2).await[1].json()["success"], true);
}

#[tokio::test]
async fn a_disk_that_turned_read_only_refuses_calls_before_any_work_until_it_is_writable() {
    let place = small();
    let agent = place.start_unseen().await;
    let controller = Controller::start().await;
    accepted(&agent, PREPARE, 1, &controller.url, ONE_PAGE).await;
    controller.wait(1).await;
    // Over the folder only: the whole cannot be made read-only while the agent's lock is open for writing.
    let folder = place.state().join("outbox").display().to_string();
    let inside = |command: &[&str]| {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--mount", "--target", &agent.pid().to_string()]).args(command).arg(&folder);
        assert!(nsenter.status().unwrap().success());
    };
    inside(&["mount", "-t", "tmpfs", "-o", "ro", "tmpfs"]);
    let reply = agent.post_task(PREPARE, &task(2), &controller.url, ONE_PAGE).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "state-unwritable"));
    assert!(reply.text().contains("Read-only file system"), "{}", reply.text());
    for (number, path, body) in [(3, HEALTH, "{}"), (4, "/host/connect", CONNECT)] {
        accepted(&agent, path, number, &controller.url, body).await;
        let seen = controller.wait(number as usize - 1).await;
        assert_eq!(seen.last().unwrap().json()["success"], true, "{path}: {seen:?}");
    }
    inside(&["umount"]);
    accepted(&agent, PREPARE, 2, &controller.url, ONE_PAGE).await;
    let seen = controller.wait(4).await;
    assert_eq!(seen[3].header("taskuuid"), Some(task(2).as_str()));
}

/// One call; whether it was answered 200, as far as that was heard.
async fn try_call(agent: std::net::SocketAddr, number: u32, url: &str) -> Option<u32> {
    let (path, body) = match number % 3 {
        0 => (PREPARE, ONE_PAGE),
        1 => (RESIZE, "{}"),
        _ => (RESIZE, "not json"),
    };
    let task = task(number);
    let bytes = request("POST", path, &[("taskuuid", &task), ("callbackurl", url)], body);
    let mut stream = TcpStream::connect(agent).await.ok()?;
    stream.write_all(bytes.as_bytes()).await.ok()?;
    let reply = try_receive(&mut stream).await?;
    (reply.status == 200).then_some(number)
}

/// Numbers that look like dice, the same each time (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

#[tokio::test]
async fn whenever_the_agent_is_killed_each_call_that_was_answered_is_called_back() {
    let place = Place::on("two-node").mounted();
    let mut answers = vec![Answer::Status(200); 160];
    for (number, answer) in answers.iter_mut().enumerate().skip(3).step_by(8) {
        *answer = if number % 16 == 3 { Answer::Status(500) } else { Answer::Reset };
    }
    let controller = Controller::answering(answers).await;
    let (mut dice, mut answered) = (Dice(20_240_611), BTreeSet::new());
    for round in 0..30 {
        let agent = place.ready().await;
        let mut calls = tokio::task::JoinSet::new();
        for call in 0..9 {
            let (number, pause) = (round * 9 + call, Duration::from_micros(dice.below(5_000)));
            let (address, url) = (agent.address, controller.url.clone());
            calls.spawn(async move {
                sleep(pause).await;
                try_call(address, number, &url).await
            });
        }
        // Some were answered, others are on their way, at work or not there yet.
        for _ in 0..dice.below(9) {
            answered.extend(calls.join_next().await.unwrap().unwrap().map(task));
        }
        sleep(Duration::from_micros(dice.below(40_000))).await;
        kill(agent).await;
        answered.extend(calls.join_all().await.into_iter().flatten().map(task));
    }
    assert!(answered.len() >= 60, "only {} were answered", answered.len());
    let mut last = place.ready().await;
    until("the outbox is empty", async || {
        fs::read_dir(place.state().join("outbox")).unwrap().next().is_none().then_some(())
    })
    .await;
    assert_eq!(last.stop().await.code(), Some(0));
    let seen = controller.seen();
    for call in &seen {
        assert!(call.json()["success"].is_boolean(), "{}", call.body);
    }
    let came: BTreeSet<String> =
        seen.iter().map(|call| call.header("taskuuid").unwrap().to_string()).collect();
    eprintln!(
        "{} seen, {} ended",
        seen.len(),
        seen.iter().filter(|s| s.body.contains("agent-ended")).count()
    );
    let missing: Vec<&String> = answered.difference(&came).collect();
    assert!(missing.is_empty(), "of {} answered, never called back: {missing:?}", answered.len());
}

#[tokio::test]
async fn results_of_calls_that_look_leave_no_file_and_go_out_before_a_stop() {
    let place = Place::on("two-node");
    let mut agent = place.ready().await;
    let absent = Absent::new();
    accepted(&agent, HEALTH, 1, &absent.url(), "{}").await;
    accepted(&agent, "/host/connect", 2, &absent.url(), CONNECT).await;
    accepted(&agent, HEALTH, 1, &absent.url(), "{}").await;
    agent.logged("the repeated call is ignored").await;
    agent.logged("could not be delivered to").await;
    assert!(!place.state().join("outbox").exists());
    agent.signal(Signal::SIGTERM);
    let controller = absent.appears();
    assert_eq!(agent.ended().await.code(), Some(0));
    let seen = controller.seen();
    let tasks: BTreeSet<_> = seen.iter().map(|call| call.header("taskuuid").unwrap()).collect();
    assert_eq!((seen.len(), tasks), (2, [task(1).as_str(), &task(2)].into()));
}
