//! The deep probe against control sockets that are played, for what no real target does on demand.

use std::os::unix::net::UnixListener as Listener;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

/// A target that is played: what it calls itself, what it can, and what it was asked.
struct Played {
    folder: TempDir,
    version: &'static str,
    lacks: Option<&'static str>,
    /// Set if it starts no session.
    refuses: bool,
    /// Names of controllers to which somebody is connected for ever.
    connected: Vec<String>,
    calls: Mutex<Vec<String>>,
    controllers: Mutex<Vec<(String, Option<Listener>)>>,
}

impl Played {
    fn new(version: &'static str, lacks: Option<&'static str>) -> Played {
        let (calls, controllers) = (Mutex::default(), Mutex::default());
        let folder = tempfile::tempdir().unwrap();
        Played { folder, version, lacks, refuses: false, connected: Vec::new(), calls, controllers }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Whether something with that name was asked for.
    fn was_asked(&self, method: &str, name: &str) -> bool {
        self.calls().iter().any(|call| call.starts_with(method) && call.contains(name))
    }

    fn result(&self, method: &str, params: &Value) -> Value {
        let name = |member: &str| params[member].as_str().unwrap().to_string();
        self.calls.lock().unwrap().push(format!("{method} {params}"));
        match method {
            "spdk_get_version" => json!({"version": self.version}),
            "rpc_get_methods" => {
                json!(NEEDED.iter().filter(|it| Some(**it) != self.lacks).collect::<Vec<_>>())
            }
            "vhost_get_controllers" => {
                let described = |(name, listener): &(String, Option<Listener>)| {
                    let connected = listener.is_some() || self.connected.contains(name);
                    let session = json!({"started": !self.refuses, "max_queues": 1});
                    let sessions = if connected { json!([session]) } else { json!([]) };
                    json!({"ctrlr": name, "sessions": sessions})
                };
                self.controllers.lock().unwrap().iter().map(described).collect()
            }
            "bdev_get_bdevs" => json!([]),
            "vhost_create_blk_controller" => {
                // Accepts in its backlog, and never answers.
                let listener = Listener::bind(self.folder.path().join(name("ctrlr"))).unwrap();
                self.controllers.lock().unwrap().push((name("ctrlr"), Some(listener)));
                json!(true)
            }
            "vhost_delete_controller" => {
                self.controllers.lock().unwrap().retain(|(one, _)| *one != name("ctrlr"));
                json!(true)
            }
            _ => json!(true),
        }
    }

    /// Serves its control socket for as long as the runtime lives.
    fn serve(self) -> (Arc<Played>, CleanPath) {
        let path = self.folder.path().join("rpc.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let played = Arc::new(self);
        let serving = played.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = Vec::new();
                while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
                    let mut calls = serde_json::Deserializer::from_slice(&bytes).into_iter();
                    let mut replies = String::new();
                    while let Some(Ok::<Value, _>(call)) = calls.next() {
                        let method = call["method"].as_str().unwrap();
                        let result = serving.result(method, &call["params"]);
                        replies += &format!("{}\n", json!({"id": call["id"], "result": result}));
                    }
                    let taken = calls.byte_offset();
                    bytes.drain(..taken);
                    stream.write_all(replies.as_bytes()).await.unwrap();
                }
            }
        });
        (played, path.display().to_string().parse().unwrap())
    }
}

fn probe(within: Duration, take: TakesMemory) -> DeepProbe {
    DeepProbe::with_memory(&Root::new("/"), Sockets::default(), within, take)
}

/// A pool without a free page.
fn no_hugepage(pages: Pages) -> Result<SharedMemory, HostError> {
    match pages {
        Pages::Huge2M => SharedMemory::take(Pages::Huge2M, 1 << 40),
        Pages::Ordinary => SharedMemory::take(Pages::Ordinary, MEMORY),
    }
}

fn ordinary(_: Pages) -> Result<SharedMemory, HostError> {
    SharedMemory::take(Pages::Ordinary, MEMORY)
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_target_that_cannot_be_probed_is_reported_and_unchanged() {
    for lacks in ["bdev_malloc_create", "vhost_create_blk_controller"] {
        let (played, control) = Played::new("SPDK v24.01", Some(lacks)).serve();
        let fault = probe(SECOND, ordinary).prove(&control).await.error.unwrap();
        assert_eq!(fault.code, Code::DeepImpossible);
        assert!(fault.text.contains("SPDK v24.01") && fault.text.contains(lacks), "{fault}");
        assert_eq!(played.calls().len(), 2, "{:?}", played.calls());
    }
}

#[tokio::test]
async fn without_a_free_hugepage_it_is_said_and_nothing_is_made() {
    let (played, control) = Played::new("SPDK v24.01", None).serve();
    let deep = probe(SECOND, no_hugepage).prove(&control).await;
    let fault = deep.error.unwrap();
    assert_eq!((deep.ok, fault.code), (false, Code::NoFreeHugepage));
    assert!(fault.text.contains("vhost-agent prepare"), "{fault}");
    assert!(!played.was_asked("bdev_malloc_create", ""));
}

#[tokio::test]
async fn the_built_in_target_is_probed_without_a_free_hugepage_too() {
    let (played, control) = Played::new("vhost-agent target v0", None).serve();
    let deep = probe(SECOND / 2, no_hugepage).prove(&control).await;
    assert_ne!(deep.error.unwrap().code, Code::NoFreeHugepage);
    assert!(played.was_asked("bdev_malloc_create", "vhost-agent-probe-"));
}

#[tokio::test]
async fn a_controller_with_a_lasting_session_is_reported_and_kept() {
    let (played, control) = Played::new("SPDK v26.05", None).serve();
    let deep = probe(SECOND, ordinary).prove(&control).await;
    let fault = deep.error.unwrap();
    assert_eq!(fault.code, Code::DeepIoFailed);
    assert!(fault.text.contains("not done in time"), "{fault}");
    assert!(!fault.text.contains("want of I/O buffers"), "{fault}");
    assert!(fault.text.contains("stays on the target"), "{fault}");
    assert!(played.was_asked("vhost_create_blk_controller", "vhost-agent-probe-"));
    assert!(!played.was_asked("vhost_delete_controller", ""), "{:?}", played.calls());
    assert!(!played.was_asked("bdev_malloc_delete", ""), "{:?}", played.calls());
}

#[tokio::test]
async fn target_that_does_not_start_the_session_is_reported() {
    let (_played, control) = Played { refuses: true, ..Played::new("SPDK v26.05", None) }.serve();
    let fault = probe(5 * SECOND, ordinary).prove(&control).await.error.unwrap();
    assert_eq!(fault.code, Code::DeepIoFailed);
    assert!(fault.text.contains("want of I/O buffers"), "{fault}");
}

#[tokio::test]
async fn leftovers_go_and_those_with_a_session_or_of_somebody_else_stay() {
    let mut played = Played::new("SPDK v26.05", None);
    let names = ["vhost-agent-probe-0-1-0", "vhost-agent-probe-0-1-1", "disk"];
    played.connected.push(names[1].to_string());
    *played.controllers.get_mut().unwrap() =
        names.iter().map(|name| (name.to_string(), None)).collect();
    let (played, control) = played.serve();
    probe(SECOND, ordinary).prove(&control).await;
    let deleted = names.map(|name| played.was_asked("vhost_delete_controller", name));
    assert_eq!(deleted, [true, false, false], "{:?}", played.calls());
    assert!(played.was_asked("bdev_malloc_delete", names[0]));
    assert!(!played.was_asked("bdev_malloc_delete", names[1]));
}

#[tokio::test]
async fn who_asks_meanwhile_gets_the_same_result_and_who_asks_later_a_new_one() {
    let (played, control) = Played::new("SPDK v24.01", Some("bdev_malloc_create")).serve();
    let (probe, versions) = (probe(SECOND, ordinary), || {
        played.calls().iter().filter(|call| call.starts_with("spdk_get_version")).count()
    });
    let (one, other) = tokio::join!(probe.prove(&control), probe.prove(&control));
    assert_eq!((&one, versions()), (&other, 1));
    probe.prove(&control).await;
    assert_eq!(versions(), 2);
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_the_probe_to_its_end() {
    let (played, control) = Played::new("SPDK v24.01", Some("bdev_malloc_create")).serve();
    let probe = probe(SECOND, ordinary);
    drop(probe.running(&control));
    let deep = probe.prove(&control).await;
    assert_eq!(deep.error.unwrap().code, Code::DeepImpossible);
    assert_eq!(played.calls().len(), 2, "{:?}", played.calls());
}

#[tokio::test]
async fn absent_and_silent_targets_fail_the_deep_probe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rpc.sock");
    let control: CleanPath = path.display().to_string().parse().unwrap();
    let probe = probe(SECOND, ordinary);
    let absent = probe.prove(&control).await.error.unwrap();
    assert_eq!(absent.code, Code::DeepNotAnswering);
    let _listens = Listener::bind(&path).unwrap();
    let silent = probe.prove(&control).await.error.unwrap();
    assert!(silent.code == Code::DeepNotAnswering && silent.text.contains("did not answer"));
}

#[tokio::test]
async fn a_target_that_accepts_and_does_not_serve_is_reported() {
    let (_played, control) = Played::new("SPDK v24.01", None).serve();
    let probe = probe(SECOND, ordinary);
    let fault = probe.serve((&control, &control), SECOND / 5).await.unwrap_err();
    assert_eq!(fault.code, Code::SessionsNotServed, "{}", fault.text);
    let nowhere = "/nowhere/rpc.sock".parse().unwrap();
    let unknown = probe.serve((&nowhere, &nowhere), SECOND / 5).await.unwrap_err();
    assert_eq!(unknown.code, Code::DeepNotAnswering, "nothing is known of one that is not asked");
}
