//! The client against sockets that behave as targets in the field do: real sockets, played targets.

use std::os::unix::net::UnixListener as Listener;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::model::buffers::{BufferAnswer, BufferWaits};

const SOON: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(10);

/// A folder with a socket in it that is played.
struct Played {
    _folder: tempfile::TempDir,
    path: PathBuf,
    listener: UnixListener,
}

impl Played {
    fn new() -> Played {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vhost.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Played { _folder: folder, path, listener }
    }

    async fn accept(&self) -> Peer {
        Peer { stream: self.listener.accept().await.unwrap().0, read: Vec::new() }
    }
}

struct Peer {
    stream: UnixStream,
    read: Vec<u8>,
}

impl Peer {
    /// The next request.
    async fn request(&mut self) -> Value {
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.read).into_iter::<Value>();
            if let Some(Ok(request)) = values.next() {
                let taken = values.byte_offset();
                self.read.drain(..taken);
                return request;
            }
            assert_ne!(self.stream.read_buf(&mut self.read).await.unwrap(), 0);
        }
    }

    async fn says(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
    }
}

fn answer(request: &Value, result: Value) -> String {
    format!("{}\n", json!({"jsonrpc": "2.0", "id": request["id"], "result": result}))
}

#[tokio::test]
async fn many_calls_share_one_connection_and_each_gets_its_own_answer() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    let calls = (0..300).map(|number| {
        let spdk = spdk.clone();
        tokio::spawn(async move {
            (number, spdk.call("echo", Some(json!([number])), LONG).await.unwrap())
        })
    });
    let calls: Vec<_> = calls.collect();
    let mut peer = played.accept().await;
    let mut requests = Vec::new();
    for _ in 0..300 {
        requests.push(peer.request().await);
    }
    // In another order, and in pieces.
    let text: String = requests
        .iter()
        .rev()
        .map(|request| answer(request, request["params"][0].clone()))
        .collect();
    for piece in text.as_bytes().chunks(1000) {
        peer.says(piece).await;
    }
    for call in calls {
        let (number, result) = call.await.unwrap();
        assert_eq!(result.get(), number.to_string());
    }
}

#[tokio::test]
async fn a_method_without_parameters_sends_none() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    let call = tokio::spawn(async move { spdk.version(LONG).await });
    let mut peer = played.accept().await;
    let request = peer.request().await;
    assert_eq!(request["method"], "spdk_get_version");
    assert!(request.get("params").is_none() && request["id"].is_u64(), "{request}");
    peer.says(answer(&request, json!({"version": "SPDK v24.01", "fields": {}}))).await;
    assert_eq!(call.await.unwrap().unwrap().version, "SPDK v24.01");
}

#[tokio::test]
async fn absent_and_silent_targets_are_distinguished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vhost.sock");
    let spdk = Spdk::new(&path);
    assert!(matches!(spdk.version(LONG).await, Err(SpdkError::Absent { .. })), "no file");
    drop(Listener::bind(&path).unwrap());
    assert!(matches!(spdk.version(LONG).await, Err(SpdkError::Absent { .. })), "a leftover socket");
    std::os::unix::fs::symlink("/dev/null", folder.path().join("file")).unwrap();
    let file = Spdk::new(folder.path().join("file"));
    assert!(matches!(file.version(LONG).await, Err(SpdkError::Absent { .. })), "no socket");
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    assert!(matches!(spdk.version(SOON).await, Err(SpdkError::Timeout { .. })), "not accepted");
    let mut peer = played.accept().await;
    let late = peer.request().await;
    let call = tokio::spawn(async move { spdk.version(LONG).await });
    let request = peer.request().await;
    peer.says(answer(&late, json!({"version": "late"}))).await;
    peer.says(answer(&request, json!({"version": "own"}))).await;
    assert_eq!(call.await.unwrap().unwrap().version, "own", "a late answer is nobody else's");
}

/// The other end of a connection on which two questions were asked, and not answered in time.
async fn asked_twice(spdk: &Spdk, played: &Played) -> Peer {
    for _ in 0..2 {
        spdk.takes_questions(2, SOON).await.unwrap();
    }
    let asks = async { tokio::join!(spdk.version(SOON), spdk.version(SOON)) };
    let (asked, peer) = tokio::join!(asks, played.accept());
    assert!(asked.0.is_err() && asked.1.is_err());
    peer
}

#[tokio::test]
async fn slow_target_is_not_asked_faster_than_it_answers() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    let mut peer = asked_twice(&spdk, &played).await;
    let takes = spdk.takes_questions(2, LONG);
    tokio::pin!(takes);
    let waits = tokio::time::timeout(SOON, &mut takes).await;
    assert!(waits.is_err(), "two are open");
    let late = peer.request().await;
    peer.says(answer(&late, json!({"version": "late"}))).await;
    takes.await.unwrap();
    assert!(spdk.late_reply().is_some());
}

#[tokio::test]
async fn target_that_lost_its_questions_is_asked_again() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    let mut peer = asked_twice(&spdk, &played).await;
    spdk.takes_questions(2, SOON).await.expect("after as much time as two of them had");
    let (first, second) = (peer.request().await, peer.request().await);
    let ask = tokio::spawn(async move { (spdk.version(LONG).await, spdk) });
    let third = peer.request().await;
    drop((first, second));
    peer.says(answer(&third, json!({"version": "own"}))).await;
    let (answered, spdk) = ask.await.unwrap();
    assert_eq!(answered.unwrap().version, "own");
    spdk.takes_questions(1, SOON).await.expect("what was sent before is lost");
}

#[tokio::test]
async fn an_answer_that_is_none_is_an_error_and_the_next_call_has_a_new_connection() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    for (says, garbage) in
        [("HTTP/1.1 400 Bad Request\n\n", true), ("", false), ("{\"id\":1", false)]
    {
        let caller = spdk.clone();
        let call = tokio::spawn(async move { caller.version(LONG).await });
        let mut peer = played.accept().await;
        peer.request().await;
        peer.says(says).await;
        drop(peer);
        match call.await.unwrap() {
            Err(SpdkError::Garbage { .. }) => assert!(garbage, "{says}"),
            Err(SpdkError::Broken { .. }) => assert!(!garbage, "{says}"),
            other => panic!("{other:?}"),
        }
    }
    let caller = spdk.clone();
    let call = tokio::spawn(async move { caller.version(LONG).await });
    let mut peer = played.accept().await;
    let request = peer.request().await;
    peer.says(answer(&request, json!({"other": 1}))).await;
    assert!(matches!(call.await.unwrap(), Err(SpdkError::Garbage { .. })), "a member is missing");
}

#[tokio::test]
async fn a_reply_that_stops_half_way_costs_no_more_than_its_own_call() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    let caller = spdk.clone();
    let call = tokio::spawn(async move { caller.version(SOON).await });
    let mut silent = played.accept().await;
    silent.request().await;
    silent.says("{\"id\": 1, \"result\": {\"version\": \"SP").await;
    assert!(matches!(call.await.unwrap(), Err(SpdkError::Timeout { .. })));
    let call = tokio::spawn(async move { spdk.version(LONG).await });
    let mut peer = played.accept().await;
    let request = peer.request().await;
    peer.says(answer(&request, json!({"version": "SPDK v24.01"}))).await;
    assert_eq!(call.await.unwrap().unwrap().version, "SPDK v24.01");
}

#[tokio::test]
async fn a_full_socket_queue_and_a_missing_listener_are_distinguished() {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vhost.sock");
    let listener =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let _queued = UnixStream::connect(&path).await.unwrap();
    let answer = Spdk::new(&path).version(LONG).await;
    assert!(matches!(answer, Err(SpdkError::QueueFull { .. })), "{answer:?}");
}

#[tokio::test]
async fn of_what_a_target_says_only_the_beginning_is_kept() {
    let played = Played::new();
    let long = "ä".repeat(100_000);
    for reply in [
        json!({"result": {"version": long}}),
        json!({"error": {"code": -1, "message": long}}),
        json!({"result": long}),
    ] {
        let spdk = Spdk::new(&played.path);
        let call = tokio::spawn(async move { spdk.version(LONG).await });
        let mut peer = played.accept().await;
        let mut reply = reply;
        reply["id"] = peer.request().await["id"].clone();
        peer.says(format!("{reply}\n")).await;
        let said = match call.await.unwrap() {
            Ok(version) => version.version,
            Err(error) => error.to_string(),
        };
        assert!(said.chars().count() < 600 && said.contains("ää"), "{said}");
    }
}

#[tokio::test]
async fn a_refusal_carries_the_targets_code_and_words() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    let call = tokio::spawn(async move { spdk.delete_controller("x", LONG).await });
    let mut peer = played.accept().await;
    let id = peer.request().await["id"].clone();
    let refusal = json!({"id": id, "error": {"code": -19, "message": "No such device"}});
    peer.says(format!("{refusal}\n")).await;
    let error = call.await.unwrap().unwrap_err();
    assert!(error.is_not_found() && !error.is_exists());
    assert!(error.to_string().contains("(-19)"), "{error}");
}

#[tokio::test]
async fn a_request_that_no_target_would_take_is_not_sent() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    let params = json!({"name": "x".repeat(300_000)});
    let error = spdk.call("bdev_get_bdevs", Some(params), LONG).await.unwrap_err();
    assert!(matches!(error, SpdkError::NotSent { .. }), "{error}");
}

// The reply's form is that of SPDK's module/event/subsystems/iobuf/iobuf_rpc.c; members are added and left out.
#[tokio::test]
async fn waits_for_buffers_are_read_by_module_and_a_target_that_counts_none_says_so() {
    let played = Played::new();
    let spdk = Spdk::new(&played.path);
    let call = || {
        let spdk = spdk.clone();
        tokio::spawn(async move { spdk.buffer_waits(LONG).await.unwrap() })
    };
    let counts = call();
    let mut peer = played.accept().await;
    let request = peer.request().await;
    assert!(request["method"] == "iobuf_get_stats" && request.get("params").is_none());
    let modules = json!([
        {"module": "accel", "small_pool": {"cache": 1, "main": 2, "retry": 0}},
        {"module": "bdev", "small_pool": {"cache": 9, "main": 9, "retry": 3, "cache_size": 128},
         "large_pool": {"cache": 7, "main": 8, "retry": 18_900_000_u64}},
    ]);
    peer.says(answer(&request, modules)).await;
    let waits = |small, large| BufferWaits { small, large };
    let expected = [("accel", waits(0, 0)), ("bdev", waits(3, 18_900_000))];
    let expected = expected.map(|(module, waits)| (module.to_string(), waits)).into();
    assert_eq!(counts.await.unwrap(), BufferAnswer::Counted(expected));
    let none = call();
    let id = peer.request().await["id"].clone();
    let unknown = json!({"id": id, "error": {"code": -32601, "message": "Method not found"}});
    peer.says(format!("{unknown}\n")).await;
    assert_eq!(none.await.unwrap(), BufferAnswer::NotCounted);
}
