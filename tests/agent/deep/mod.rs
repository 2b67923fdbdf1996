//! The deep probe on real targets: through the agent, and by the command alone.

mod qemu;

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::device::process::Target;
use crate::support::{Agent, Place, until};

const HEALTH: &str = "/v1/targets/zbs-vhost/health?deep=true&controlSock=/t/rpc.sock";
/// A canary of an agent that is no more.
const ORPHAN: &str = "vhost-agent-probe-999999999-1-0";

/// Folders whose control sockets callers may name.
const ROOTS: &str = "[target]\nsocket_roots = [\"/t\", \"/nowhere\"]\n";

/// A node with a target whose folder is `/t` there.
fn node_with(target: &Target, settings: &str) -> Place {
    let place = Place::on("two-node").settings(&format!("{ROOTS}{settings}"));
    symlink(target.dir.path(), place.path("/t")).unwrap();
    place
}

async fn deep(agent: &Agent) -> Value {
    let reply = agent.get(HEALTH).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["deep"].clone()
}

fn signal(target: &Target, signal: Signal) {
    let pid = target.child.as_ref().unwrap().id();
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// Nothing of a probe is on the target, in its folder, or in the memory of the two processes.
async fn nothing_is_left(target: &Target, agent: &Agent) {
    assert_eq!(target.call("vhost_get_controllers", Value::Null), json!([]));
    assert_eq!(target.call("bdev_get_bdevs", Value::Null), json!([]));
    let mut files: Vec<_> = std::fs::read_dir(target.dir.path()).unwrap().collect();
    files.retain(|file| !file.as_ref().unwrap().file_name().to_str().unwrap().starts_with("rpc."));
    assert!(files.is_empty(), "{files:?}");
    for pid in [target.child.as_ref().unwrap().id(), agent.pid()] {
        until("no memory of the probe is mapped", async || {
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
            (!maps.contains("vhost-agent-probe")).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn io_is_proven_again_and_again_and_nothing_is_left() {
    let target = Target::new(&[]);
    let place = node_with(&target, "");
    let agent = place.ready().await;
    for _ in 0..3 {
        let deep = deep(&agent).await;
        assert_eq!((&deep["ok"], &deep["bytes"]), (&json!(true), &json!(1 << 20)), "{deep}");
        assert!(deep["writeMs"].is_f64() && deep["readMs"].is_f64(), "{deep}");
        nothing_is_left(&target, &agent).await;
    }
    let plain = agent.get(&HEALTH.replace("deep=true", "deep=false")).await.json();
    assert!(plain.get("deep").is_none(), "{plain}");
}

#[tokio::test]
async fn a_stopped_target_fails_the_probe_until_it_continues() {
    let target = Target::new(&[]);
    let place = node_with(&target, "[health]\ndeep_timeout = \"1s\"\n");
    let agent = place.ready().await;
    signal(&target, Signal::SIGSTOP);
    let stopped = deep(&agent).await;
    signal(&target, Signal::SIGCONT);
    assert_eq!(stopped["error"]["code"], "deep-not-answering", "{stopped}");
    nothing_is_left(&target, &agent).await;
    assert_eq!(deep(&agent).await["ok"], true);
    nothing_is_left(&target, &agent).await;
}

#[tokio::test]
async fn what_an_agent_left_that_died_is_taken_away_once_nobody_is_connected_to_it() {
    let target = Target::new(&[]);
    let place = node_with(&target, "");
    let agent = place.ready().await;
    let bdev = |name: &str| {
        let malloc = json!({"name": name, "num_blocks": 8, "block_size": 512});
        target.call("bdev_malloc_create", malloc);
    };
    bdev(ORPHAN);
    bdev("vhost-agent-probe-999999999-1-1");
    target.call("vhost_create_blk_controller", json!({"ctrlr": ORPHAN, "dev_name": ORPHAN}));
    let guest = UnixStream::connect(target.path(ORPHAN)).unwrap();
    let sessions = || {
        target.call("vhost_get_controllers", Value::Null)[0]["sessions"].as_array().map(Vec::len)
    };
    until("the session is there", async || (sessions() == Some(1)).then_some(())).await;
    assert_eq!(deep(&agent).await["ok"], true);
    let left = target.call("bdev_get_bdevs", Value::Null);
    assert_eq!((left.as_array().unwrap().len(), &left[0]["name"]), (1, &json!(ORPHAN)));
    drop(guest);
    until("the session has gone", async || (sessions() == Some(0)).then_some(())).await;
    assert_eq!(deep(&agent).await["ok"], true);
    nothing_is_left(&target, &agent).await;
}

#[tokio::test]
async fn a_dead_or_absent_target_is_reported() {
    let mut target = Target::new(&[]);
    let place = node_with(&target, "");
    let agent = place.ready().await;
    target.end(Signal::SIGKILL);
    let dead = deep(&agent).await;
    assert_eq!(dead["error"]["code"], "deep-not-answering", "{dead}");
    let gone = agent.get(&HEALTH.replace("/t/", "/nowhere/")).await.json();
    assert_eq!(gone["deep"]["error"]["code"], "deep-not-answering", "{gone}");
}

#[tokio::test]
async fn a_starting_target_cannot_be_probed_yet() {
    let target = Target::new(&["--wait-for-rpc"]);
    let place = node_with(&target, "");
    let agent = place.ready().await;
    let early = deep(&agent).await;
    assert_eq!(early["error"]["code"], "deep-impossible", "{early}");
    target.call("framework_start_init", Value::Null);
    assert_eq!(deep(&agent).await["ok"], true);
}

#[tokio::test]
async fn the_command_proves_io_with_an_agent_and_without_one() {
    let target = Target::new(&[]);
    let place = node_with(&target, "");
    let words = ["health", "--deep", "--control-sock", "/t/rpc.sock"];
    let alone = place.run(&words).await;
    assert!(alone.out.contains("I/O is proven: 1048576 bytes"), "{alone:?}");
    // No engine is there that could say whose target it is.
    assert_eq!(alone.code, Some(1), "{alone:?}");
    let agent = place.ready().await;
    let served = place.run(&[&words[..], &["--output", "json"]].concat()).await;
    assert_eq!(served.json()["deep"]["ok"], true, "{served:?}");
    nothing_is_left(&target, &agent).await;
    signal(&target, Signal::SIGSTOP);
    let stopped = place.run(&words).await;
    signal(&target, Signal::SIGCONT);
    assert!(stopped.out.contains("error (deep-not-answering)"), "{stopped:?}");
}
