//! Volumes, from the doors to the guest: a played engine with one container, the built-in target's process
//! in it, the built agent over HTTP and by command.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::device::guest::{Guest, OK};
use crate::device::process::Target;
use crate::support::http::{Reply, call};
use crate::support::{Agent, Place, played, soon, until};

const ZBS: &str = "/zbs/primarystorage/vhost";
const VOLUMES: &str = "/v1/targets/zbs-vhost/volumes";
const SETTINGS: &str = "[engine]\nmanage = false\nsocket = \"/run/docker.sock\"\n\
    [target]\nkind = \"built-in\"\ncore_count = 1\nsocket_dir = \"/t\"\ncontrol_sock = \"rpc.sock\"\n";

/// A node whose engine runs one container, with a real target in it whose folder is `/t` there.
struct Node {
    place: Place,
    target: Target,
    /// The files that stand for ZBS's volumes.
    zbs: tempfile::TempDir,
}

impl Node {
    fn new() -> Node {
        let zbs = tempfile::tempdir().unwrap();
        let target = Target::new(&["--zbs-dir", zbs.path().to_str().unwrap()]);
        let allowed = format!(
            "aio_roots = [{:?}]\nraw_methods = [\"bdev_null_create\"]\n",
            target.dir.path()
        );
        let place = Place::on("two-node").mounted().settings(&format!("{SETTINGS}{allowed}"));
        symlink(target.dir.path(), place.path("/t")).unwrap();
        let pid = target.child.as_ref().unwrap().id();
        fs::create_dir_all(place.path(&format!("proc/{pid}"))).unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        place.write(&format!("proc/{pid}/stat"), &stat);
        played::run_engine(&place, pid);
        Node { place, target, zbs }
    }

    /// The agent, with the target wanted.
    async fn agent(&self) -> Agent {
        let agent = self.place.ready().await;
        let put = put(&agent, "/v1/targets/zbs-vhost", &json!({})).await;
        assert_eq!(put.status, 200, "{}", put.text());
        agent
    }

    /// Names of what the target itself tells of, but for the agent's own disk, which comes and goes.
    fn names(&self, method: &str, member: &str) -> Vec<String> {
        let shown = self.target.call(method, Value::Null);
        let names = shown.as_array().unwrap().iter().map(|one| one[member].as_str().unwrap());
        let names = names.filter(|name| !name.starts_with("vhost-agent-probe-"));
        let mut names: Vec<String> = names.map(str::to_string).collect();
        names.sort();
        names
    }

    fn controllers(&self) -> Vec<String> {
        self.names("vhost_get_controllers", "ctrlr")
    }

    fn bdevs(&self) -> Vec<String> {
        self.names("bdev_get_bdevs", "name")
    }
}

async fn put(agent: &Agent, path: &str, body: &Value) -> Reply {
    call(agent.address, "PUT", path, &[], &body.to_string()).await
}

async fn delete(agent: &Agent, path: &str) -> Reply {
    call(agent.address, "DELETE", path, &[], "").await
}

fn malloc(mib: u64) -> Value {
    json!({"backing": {"kind": "malloc", "sizeMib": mib}})
}

fn of(name: &str) -> String {
    format!("{VOLUMES}/{name}")
}

async fn compatible(agent: &Agent, route: &str, body: &Value) -> Value {
    let reply = agent.post(&format!("{ZBS}/{route}"), &body.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[track_caller]
fn succeeds(result: &Value) {
    assert_eq!((&result["success"], &result["error"]), (&json!(true), &json!("")), "{result}");
}

// The native routes.

#[tokio::test]
async fn put_get_and_delete_of_a_volume_are_idempotent() {
    let node = Node::new();
    let agent = node.agent().await;
    for _ in 0..2 {
        let reply = put(&agent, &of("v"), &malloc(16)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let shown = reply.json();
        let status = (&shown["state"], &shown["socketPath"], &shown["sessions"]);
        assert_eq!(status, (&json!("serving"), &json!("/t/v"), &json!(0)), "{shown}");
        assert_eq!(shown["backing"], json!({"kind": "malloc", "sizeMib": 16, "blockSize": 512}));
        assert_eq!((node.controllers(), node.bdevs()), (vec!["v".into()], vec!["v".into()]));
    }
    let mut guest = Guest::new(1);
    guest.connect(&node.target.path("v"));
    assert_eq!(guest.write(0, 0, &[7; 4096]), OK);
    assert_eq!(agent.get(&of("v")).await.json()["sessions"], 1);
    drop(guest);
    agent.get(&of("w")).await.must_be_problem(404, "volume-unknown");
    assert_eq!(agent.get(VOLUMES).await.json()["volumes"].as_array().unwrap().len(), 1);
    until("the guest is gone", async || {
        (agent.get(&of("v")).await.json()["sessions"] == 0).then_some(())
    })
    .await;
    for _ in 0..2 {
        let reply = delete(&agent, &of("v")).await;
        assert_eq!((reply.status, &reply.json()["state"]), (200, &json!("absent")));
        assert_eq!((node.controllers().len(), node.bdevs().len()), (0, 0));
    }
    agent.get(&of("v")).await.must_be_problem(404, "volume-unknown");
}

#[tokio::test]
async fn many_are_put_at_once_and_one_that_cannot_be_made_does_not_harm_the_others() {
    let node = Node::new();
    let agent = node.agent().await;
    let mut volumes: Vec<Value> = (0..100)
        .map(|number| json!({"name": format!("v{number}"), "backing": {"kind": "malloc", "sizeMib": 1}}))
        .collect();
    let file = node.target.path("comes-later.img");
    let later = json!({"backing": {"kind": "aio", "path": file, "blockSize": 512}});
    volumes.push(json!({"name": "later", "backing": later["backing"]}));
    let reply = put(&agent, VOLUMES, &json!({"volumes": volumes})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let shown = reply.json()["volumes"].as_array().unwrap().clone();
    let (serving, not): (Vec<&Value>, Vec<&Value>) =
        shown.iter().partition(|volume| volume["state"] == "serving");
    assert_eq!((serving.len(), not.len()), (100, 1), "{not:?}");
    assert_eq!((&not[0]["name"], &not[0]["state"]), (&json!("later"), &json!("degraded")));
    assert!(!not[0]["reason"].as_str().unwrap().is_empty());
    put(&agent, &of("later"), &later).await.must_be_problem(503, "volume-not-serving");
    node.target.image("comes-later.img", 1 << 20);
    until("it is tried again", async || {
        (agent.get(&of("later")).await.json()["state"] == "serving").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_volume_with_another_backing_than_the_one_of_its_name_is_a_conflict() {
    let node = Node::new();
    let agent = node.agent().await;
    assert_eq!(put(&agent, &of("v"), &malloc(16)).await.status, 200);
    assert_eq!(put(&agent, &of("v"), &malloc(32)).await.status, 409);
    let bdev = json!({"bdev": "v", "backing": {"kind": "malloc", "sizeMib": 8}});
    assert_eq!(put(&agent, &of("w"), &bdev).await.status, 409);
    assert_eq!(agent.get(&of("v")).await.json()["backing"]["sizeMib"], 16);
}

#[tokio::test]
async fn under_a_guest_nothing_is_taken_away_and_a_forced_call_waits_for_it_to_go() {
    let node = Node::new();
    let agent = node.agent().await;
    assert_eq!(put(&agent, &of("v"), &malloc(16)).await.status, 200);
    let mut guest = Guest::new(1);
    guest.connect(&node.target.path("v"));
    assert_eq!(guest.write(0, 0, &[7; 4096]), OK);
    delete(&agent, &of("v")).await.must_be_problem(409, "volume-in-use");
    let path = of("v?wait=true&timeoutMs=50");
    delete(&agent, &path).await.must_be_problem(409, "volume-in-use");
    let body = json!({"controlSock": "/t/rpc.sock", "bdevName": "v", "controllerName": "v"});
    let refused = compatible(&agent, "deactivate", &body).await;
    assert_eq!((&refused["success"], &refused["code"]), (&json!(false), &json!("volume-in-use")));
    assert_eq!(guest.write(0, 8, &[8; 4096]), OK, "the guest goes on");
    let path = of("v?force=true&timeoutMs=20000");
    let forced = delete(&agent, &path);
    let leaves = async { drop(guest) };
    let (reply, ()) = soon("it is gone", async { tokio::join!(forced, leaves) }).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(node.controllers().is_empty());
}

#[tokio::test]
async fn guest_reconnection_is_shown_and_reported_to_the_controller() {
    let mut node = Node::new();
    let often = "[volume]\nlook_interval = \"300ms\"\n";
    node.place = node.place.settings(&format!("{SETTINGS}{often}"));
    let agent = node.agent().await;
    for name in ["v", "w"] {
        assert_eq!(put(&agent, &of(name), &malloc(16)).await.status, 200);
    }
    let mut guests = [Guest::new(1), Guest::new(1)];
    guests[0].connect(&node.target.path("v"));
    guests[1].connect(&node.target.path("w"));
    // One disk of it was plugged in later.
    fs::create_dir(node.place.path("proc/70")).unwrap();
    let cmdline = "qemu\0-name\0guest=web-1\0-object\0memory-backend-memfd,id=m,size=1G,share=on\0\
        -chardev\0socket,id=a,path=/t/v,reconnect=10\0";
    node.place.write("proc/70/cmdline", cmdline);
    node.place.write("proc/70/status", "Uid:\t0\t0\t0\t0\n");
    node.place.write("proc/70/comm", "qemu-system-x86\n");
    let shown = until("the guest is known", async || {
        let shown = agent.get(&of("v")).await.json();
        shown.get("reconnectSeconds").is_some().then_some(shown)
    })
    .await;
    assert_eq!(shown["reconnectSeconds"], 10);
    let findings = shown["findings"].as_array().unwrap();
    assert_eq!((findings.len(), &findings[0]["code"]), (1, &json!("guest-reconnects-slowly")));
    assert!(findings[0]["text"].as_str().unwrap().contains("web-1 (pid 70)"), "{shown}");
    let other = agent.get(&of("w")).await.json();
    assert_eq!((&other["sessions"], other.get("reconnectSeconds")), (&json!(1), None), "{other}");
    let report = agent.get("/v1/status").await.json()["targets"][0].clone();
    let pauses = (&report["expectedPauseSeconds"], &report["notReconnecting"]);
    assert_eq!(pauses, (&json!(10), &json!(0)), "{report}");
    node.place.write("proc/70/cmdline", &cmdline.replace(",reconnect=10", ""));
    until("it has another command line", async || {
        let report = agent.get("/v1/status").await.json()["targets"][0].clone();
        let pauses = (&report["notReconnecting"], report.get("expectedPauseSeconds"));
        (pauses == (&json!(1), None)).then_some(())
    })
    .await;
    let shown = node.place.run(&["volume", "show", "v"]).await;
    for part in [
        "(reconnects never)",
        "(guest-does-not-reconnect) web-1 (pid 70), as it was started, does not",
    ] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    drop(guests);
    until("it is gone", async || {
        let shown = agent.get(&of("v")).await.json();
        (shown.get("reconnectSeconds").is_none() && shown.get("findings").is_none()).then_some(())
    })
    .await;
    for code in ["guest-reconnects-slowly", "guest-does-not-reconnect"] {
        let lines = agent.log().lines().filter(|line| line.contains(code)).count();
        assert_eq!(lines, 1, "{code}: {}", agent.log());
    }
}

#[tokio::test]
async fn any_method_of_the_target_makes_a_volume_which_keeps_the_size_that_it_got() {
    let node = Node::new();
    let mut agent = node.agent().await;
    let params = json!({"num_blocks": 2048, "block_size": 512});
    let raw = json!({"kind": "raw", "method": "bdev_null_create", "params": params});
    let body = json!({"bdev": "n", "backing": raw});
    assert_eq!(put(&agent, &of("v"), &body).await.status, 200);
    let mut guest = Guest::new(1);
    guest.connect(&node.target.path("v"));
    assert_eq!(guest.capacity(), 2048);
    let size = json!({"sizeMib": 2}).to_string();
    let reply = agent.post(&of("v/resize"), &size).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(guest.capacity(), 4096);
    drop(guest);
    agent.stop().await;
    let agent = node.place.ready().await;
    let shown = agent.get(&of("v")).await.json()["backing"]["params"]["num_blocks"].clone();
    assert_eq!(shown, "(hidden)");
    let kept = node.place.run(&["state", "show", "--output", "json"]).await;
    let exported = node.place.folder().join("exported.json");
    let done = node.place.run(&["state", "export", exported.to_str().unwrap()]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let exported = std::fs::read_to_string(exported).unwrap();
    let sized =
        exported.contains("\"num_blocks\": 4096") || exported.contains("\"num_blocks\":4096");
    assert!(sized && !kept.out.contains("4096"), "it is not made smaller again: {exported}");
    let memory = put(&agent, &of("m"), &malloc(1)).await;
    assert_eq!(memory.status, 200, "{}", memory.text());
    agent.post(&of("m/resize"), &size).await.must_be_problem(422, "volume-not-resizable");
}

#[tokio::test]
async fn a_volume_is_read_only_on_its_cpus_and_of_its_files_size_as_that_is_wanted() {
    let node = Node::new();
    let agent = node.agent().await;
    let file = node.target.image("disk.img", 1 << 20);
    let backing = json!({"kind": "aio", "path": file, "blockSize": 4096});
    let body = json!({"backing": backing, "readOnly": true, "cpumask": "0x1"});
    let reply = put(&agent, &of("v"), &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let shown = node.target.call("vhost_get_controllers", Value::Null)[0].clone();
    assert_eq!(
        (&shown["cpumask"], &shown["backend_specific"]["block"]["readonly"]),
        (&json!("0x1"), &json!(true))
    );
    assert_eq!(node.target.call("bdev_get_bdevs", Value::Null)[0]["block_size"], 4096);
    let mut guest = Guest::new(1);
    guest.connect(&node.target.path("v"));
    assert_ne!(guest.write(0, 0, &[7; 4096]), OK);
    fs::File::options().write(true).open(&file).unwrap().set_len(2 << 20).unwrap();
    let size = json!({"sizeMib": 2}).to_string();
    assert_eq!(agent.post(&of("v/resize"), &size).await.status, 200);
    assert_eq!(guest.capacity(), 4096);
}

#[tokio::test]
async fn what_could_not_be_taken_away_stays_wanted() {
    let node = Node::new();
    let mut agent = node.agent().await;
    for name in ["used", "idle"] {
        assert_eq!(put(&agent, &of(name), &malloc(16)).await.status, 200);
    }
    let mut guest = Guest::new(1);
    guest.connect(&node.target.path("used"));
    assert_eq!(guest.write(0, 0, &[7; 4096]), OK);
    let body = json!({"controlSock": "/t/rpc.sock", "bdevName": "used", "controllerName": "used"});
    for _ in 0..2 {
        assert_eq!(compatible(&agent, "deactivate", &body).await["success"], false);
    }
    assert_eq!(delete(&agent, &of("idle")).await.status, 200);
    agent.stop().await;
    let agent = node.place.ready().await;
    until("it serves", async || {
        (agent.get(&of("used")).await.json()["state"] == "serving").then_some(())
    })
    .await;
    assert_eq!(agent.get(VOLUMES).await.json()["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(guest.write(0, 8, &[8; 4096]), OK, "the guest goes on");
}

#[tokio::test]
async fn what_others_made_is_not_taken_away_by_a_call_that_fails() {
    let node = Node::new();
    let agent = node.agent().await;
    // As kvmagent left them: the agent has nothing of it written down.
    let bdev = json!({"name": "zbs-bdev-1", "num_blocks": 2048, "block_size": 512});
    node.target.call("bdev_malloc_create", bdev);
    let controller = json!({"ctrlr": "zbs-vhost-1", "dev_name": "zbs-bdev-1"});
    node.target.call("vhost_create_blk_controller", controller);
    let as_before = || {
        assert_eq!(
            (node.controllers(), node.bdevs()),
            (vec!["zbs-vhost-1".into()], vec!["zbs-bdev-1".into()])
        );
    };
    let other = json!({"backing": {"kind": "malloc", "sizeMib": 7}, "bdev": "zbs-bdev-1"});
    put(&agent, &of("w"), &other).await.must_be_problem(503, "volume-not-serving");
    assert_eq!(delete(&agent, &of("w")).await.status, 200);
    as_before();
    let named = json!({"controlSock": "/t/rpc.sock", "bdevName": "zbs-bdev-1"});
    let refused = compatible(&agent, "bdev/delete", &named).await;
    assert_eq!((&refused["success"], &refused["code"]), (&json!(false), &json!("volume-in-use")));
    as_before();
    // Controller and bdev exist already, and the bdev is kept in something else than is asked for.
    let body = json!({"installPath": "p/other", "bdevName": "zbs-bdev-1", "controllerName": "c"});
    let refused = compatible(&agent, "activate", &body).await;
    assert_eq!(refused["success"], false, "{refused}");
    as_before();
    let both = json!({"controlSock": "/t/rpc.sock", "bdevName": "zbs-bdev-1", "controllerName": "zbs-vhost-1"});
    succeeds(&compatible(&agent, "deactivate", &both).await);
    assert!(node.controllers().is_empty(), "nobody is connected to it");
}

#[tokio::test]
async fn volumes_are_there_for_an_agent_that_starts_again() {
    let node = Node::new();
    let mut agent = node.agent().await;
    assert_eq!(put(&agent, &of("v"), &malloc(16)).await.status, 200);
    agent.stop().await;
    // One that died may have left a disk of its own.
    let left = "vhost-agent-probe-999999999-1-0";
    let malloc = json!({"name": left, "num_blocks": 8, "block_size": 512});
    node.target.call("bdev_malloc_create", malloc);
    let agent = node.place.ready().await;
    until("it serves", async || {
        (agent.get(&of("v")).await.json()["state"] == "serving").then_some(())
    })
    .await;
    assert_eq!(node.controllers(), ["v"]);
    until("nothing is left", async || {
        let bdevs = node.target.call("bdev_get_bdevs", Value::Null);
        (bdevs.as_array().unwrap().len() == 1).then_some(())
    })
    .await;
}

// The compatible routes.

#[tokio::test]
async fn the_controller_activates_resizes_and_deactivates_a_volume() {
    let node = Node::new();
    let agent = node.place.ready().await;
    fs::create_dir(node.zbs.path().join("p")).unwrap();
    let file = fs::File::create(node.zbs.path().join("p/v_zbs_")).unwrap();
    file.set_len(1 << 20).unwrap();
    let body = json!({"installPath": "zbs://p/v", "bdevName": "zbs-bdev-1",
                      "controllerName": "zbs-vhost-1", "controlSock": "/t/rpc.sock"});
    for _ in 0..2 {
        let result = compatible(&agent, "activate", &body).await;
        succeeds(&result);
        assert_eq!(result["socketPath"], "/t/zbs-vhost-1");
        assert_eq!((node.controllers(), node.bdevs().len()), (vec!["zbs-vhost-1".into()], 1));
    }
    let mut guest = Guest::new(1);
    guest.connect(&node.target.path("zbs-vhost-1"));
    assert_eq!(guest.capacity(), 2048);
    let size = json!({"controlSock": "/t/rpc.sock", "bdevName": "zbs-bdev-1", "sizeMib": 2});
    succeeds(&compatible(&agent, "resize", &size).await);
    assert_eq!(guest.capacity(), 4096);
    drop(guest);
    until("the guest is gone", async || {
        let shown = compatible(&agent, "deactivate", &body).await;
        (shown["success"] == true).then_some(())
    })
    .await;
    succeeds(&compatible(&agent, "deactivate", &body).await);
    assert_eq!((node.controllers().len(), node.bdevs().len()), (0, 0));
}

#[tokio::test]
async fn what_the_controller_could_not_activate_is_not_kept() {
    let node = Node::new();
    let agent = node.agent().await;
    // A folder is no volume.
    fs::create_dir_all(node.zbs.path().join("p/v_zbs_")).unwrap();
    let body = json!({"installPath": "p/v", "bdevName": "b", "controllerName": "c"});
    let result = compatible(&agent, "activate", &body).await;
    assert_eq!(result["success"], false, "{result}");
    assert!(result["error"].as_str().is_some_and(|error| !error.is_empty()), "{result}");
    assert_eq!(agent.get(VOLUMES).await.json(), json!({"volumes": []}));
    assert_eq!((node.controllers().len(), node.bdevs().len()), (0, 0));
}

#[tokio::test]
async fn a_bdev_is_created_by_pool_and_volume_and_deleted() {
    let node = Node::new();
    let agent = node.agent().await;
    let body = json!({"hostIp": "10.0.0.1", "sshPassword": "hunter2", "logicalPool": "p",
                      "volume": "v", "bdevName": "b"});
    let result = compatible(&agent, "bdev/create", &body).await;
    succeeds(&result);
    assert_eq!(result["socketPath"], "/t/b");
    assert_eq!((node.controllers(), node.bdevs()), (vec!["b".into()], vec!["b".into()]));
    for _ in 0..2 {
        succeeds(&compatible(&agent, "bdev/delete", &body).await);
        assert_eq!((node.controllers().len(), node.bdevs().len()), (0, 0));
    }
    assert!(!agent.log().contains("hunter2"));
}

#[tokio::test]
async fn a_hundred_activations_at_once_all_succeed() {
    let node = Node::new();
    let agent = node.agent().await;
    let bodies: Vec<Value> = (0..100)
        .map(|n| json!({"installPath": format!("p/v{n}"), "bdevName": format!("b{n}"), "controllerName": format!("c{n}")}))
        .collect();
    let calls = bodies.iter().map(|body| compatible(&agent, "activate", body));
    for result in futures_util::future::join_all(calls).await {
        succeeds(&result);
    }
    assert_eq!(node.controllers().len(), 100);
}

// The command.

#[tokio::test]
async fn the_command_activates_lists_shows_and_deactivates() {
    let node = Node::new();
    let _agent = node.agent().await;
    let run = async |words: &[&str]| {
        let words: Vec<&str> = ["volume"].iter().chain(words).copied().collect();
        node.place.run(&words).await
    };
    let none = run(&["list"]).await;
    assert!(none.code == Some(0) && none.out.contains("no volume is wanted"), "{none:?}");
    let made = run(&["activate", "v", "--malloc-mib", "16", "--bdev", "b", "--read-only"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    for part in ["v in zbs-vhost", "serving since", "/t/v", "b, read-only", "malloc 16 MiB"] {
        assert!(made.out.contains(part), "{part}: {}", made.out);
    }
    let list = run(&["list"]).await;
    assert!(list.out.contains("VOLUME") && list.out.contains("/t/v"), "{}", list.out);
    let shown = run(&["show", "v", "--output", "json"]).await.json();
    let settings = (&shown["state"], &shown["bdev"], &shown["readOnly"]);
    assert_eq!(settings, (&json!("serving"), &json!("b"), &json!(true)), "{shown}");
    assert_eq!(run(&["resize", "w", "--size-mib", "32"]).await.code, Some(1));
    for _ in 0..2 {
        let gone = run(&["deactivate", "v"]).await;
        assert!(gone.code == Some(0) && gone.out.contains("v is not in zbs-vhost"), "{gone:?}");
    }
    assert_eq!(run(&["show", "v"]).await.code, Some(1));
    assert!(node.bdevs().is_empty());
}
