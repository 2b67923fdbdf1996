//! What the agent does not serve goes to the legacy agent behind it: the built agent between a bare client
//! and a bare legacy agent, compared to the byte.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::absent::Absent;
use crate::support::controller::Controller;
use crate::support::http::{call, receive, request, send};
use crate::support::kernel::Kernel;
use crate::support::legacy::{Legacy, Line, value};
use crate::support::{Agent, Place, process, soon, task, until};

const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nDate: now\r\n\r\nfine";
const MIB: usize = 1 << 20;

async fn before(legacy: &Legacy, more: &str) -> (Place, Agent) {
    let place = Place::on("two-node").settings(&legacy.settings(more));
    let agent = place.ready().await;
    (place, agent)
}

/// Sends these bytes, and reads until the agent closes the connection: everything that came.
async fn exchange(agent: &Agent, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    soon("sent", stream.write_all(bytes.as_ref())).await.unwrap();
    let mut all = Vec::new();
    let _ = soon("the agent closes the connection", stream.read_to_end(&mut all)).await;
    String::from_utf8(all).unwrap()
}

/// What the agent's process has in memory, in bytes.
fn resident(agent: &Agent) -> usize {
    usize::try_from(process::resident_kib(agent.pid())).unwrap() * 1024
}

// As it came.

#[tokio::test]
async fn any_method_goes_through_with_its_target_and_its_headers_to_the_byte() {
    let answer = "HTTP/1.1 299 As You Wish\r\nX-MiXed: a\r\nSet-Cookie: one\r\nset-cookie: two\r\n\
        Date: now\r\nServer: CherryPy/3\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
        Content-Length: 0\r\n\r\n";
    let legacy = Legacy::answering(answer).await;
    let (_place, agent) = before(&legacy, "").await;
    let targets =
        ["//kvm/%7Evm/../x/?q=%20+&z=//&e=", "/", "/kvm/", "/kvm?", "*", "http://other:1/kvm"];
    let methods =
        ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "x-OWN"];
    for (method, target) in methods.iter().flat_map(|m| targets.map(|t| (m, t))) {
        let count = legacy.seen().len();
        let sent = format!(
            "{method} {target} HTTP/1.1\r\nHOST: node:7070\r\nX-MiXed: \u{e9} a\r\nx-more: b\r\nX-More: a\r\n\
             Connection: close, X-Own\r\nX-Own: 1\r\nTE: gzip\r\ntaskUuid: 1\r\nContent-Length: 4\r\n\r\nbody"
        );
        let came = exchange(&agent, &sent).await;
        let expected = format!(
            "{method} {target} HTTP/1.1\r\nHOST: node:7070\r\nX-MiXed: \u{e9} a\r\nx-more: b\r\nX-More: a\r\n\
             taskUuid: 1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"
        );
        assert_eq!(legacy.after(count).await, expected);
        let expected = "HTTP/1.1 299 As You Wish\r\nX-MiXed: a\r\nSet-Cookie: one\r\nset-cookie: two\r\n\
            Date: now\r\nServer: CherryPy/3\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert_eq!(came.to_lowercase(), expected.to_lowercase(), "{method} {target}");
        assert!(came.contains("X-MiXed: a\r\nSet-Cookie: one\r\nset-cookie: two\r\n"), "{came}");
    }
    // Without a body nothing is said of one.
    let count = legacy.seen().len();
    exchange(&agent, "GET /kvm HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").await;
    assert_eq!(
        legacy.after(count).await,
        "GET /kvm HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n"
    );
    let tunnel =
        exchange(&agent, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n").await;
    assert!(tunnel.starts_with("HTTP/1.1 501 ") && tunnel.contains("no-tunnels"), "{tunnel}");
}

#[tokio::test]
async fn a_head_alone_says_what_the_body_would_be() {
    let answer = "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 1000\r\n\r\n";
    let legacy = Legacy::answering(answer).await;
    let (_place, agent) = before(&legacy, "").await;
    let sent = "HEAD /kvm HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
    let came = exchange(&agent, sent).await;
    assert!(came.contains("Content-Length: 1000\r\n") && came.ends_with("\r\n\r\n"), "{came}");
    for (status, length) in
        [("304 Not Modified", "Content-Length: 1000\r\n"), ("204 No Content", "")]
    {
        let legacy =
            Legacy::answering(&format!("HTTP/1.1 {status}\r\nETag: a\r\n{length}\r\n")).await;
        let (_place, agent) = before(&legacy, "").await;
        let came =
            exchange(&agent, "GET /kvm HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").await;
        assert!(came.starts_with(&format!("HTTP/1.1 {status}\r\nETag: a\r\n{length}")), "{came}");
        assert!(came.ends_with("\r\n\r\n") && !came.contains("chunked"), "{came}");
    }
}

#[tokio::test]
async fn what_the_legacy_agent_says_is_said_whatever_it_is() {
    for (status, more, body) in [
        ("404 Nothing Here", "Content-Type: text/html", "<h1>no</h1>"),
        ("500 Internal Server Error", "Content-Type: text/plain", "Traceback"),
        ("302 Found", "Location: /elsewhere", ""),
        ("401 Who", "WWW-Authenticate: Basic", "x"),
    ] {
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\n{more}\r\nContent-Length: {length}\r\nDate: d\r\n\r\n{body}"
        );
        let legacy = Legacy::answering(&answer).await;
        let (_place, agent) = before(&legacy, "").await;
        let came =
            exchange(&agent, request("POST", "/kvm", &[("Connection", "close")], "{}")).await;
        let (head, got) = came.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n{more}\r\n")), "{head}");
        assert_eq!(got, body);
        assert_eq!(legacy.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_legacy_agent_that_stops_or_is_fenced_says_so_itself() {
    for (answer, words) in [
        (
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 20\r\n\r\nkvmagent is stopping",
            "kvmagent is stopping",
        ),
        ("HTTP/1.1 409 Conflict\r\nContent-Length: 15\r\n\r\nhost is fenced.", "host is fenced."),
    ] {
        let legacy = Legacy::answering(answer).await;
        let (_place, agent) = before(&legacy, "").await;
        let reply = agent.post_task("/kvm/vm/start", &task(1), "http://127.0.0.1:1/x", "{}").await;
        assert!(answer.contains(&reply.status.to_string()), "{}", reply.status);
        assert_eq!((reply.text(), reply.header("content-type")), (words, None));
    }
}

#[tokio::test]
async fn a_body_in_chunks_stays_one_and_keeps_its_trailers() {
    let answer = "HTTP/1.1 200 OK\r\nDate: now\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
        3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n";
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let legacy = Legacy::with(move |mut line: Line| {
        let sender = sender.clone();
        async move {
            let head = line.head().await;
            // The spelling of trailers is not kept.
            let body = line.until(b": 5\r\n\r\n").await;
            sender.send(head + std::str::from_utf8(&body).unwrap()).unwrap();
            line.send(answer).await;
        }
    })
    .await;
    let (_place, agent) = before(&legacy, "").await;
    for method in ["POST", "GET"] {
        let sent = format!(
            "{method} /kvm HTTP/1.1\r\nHost: n\r\nTE: trailers\r\nConnection: close, TE\r\nTrailer: X-Own\r\n\
             Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Own: 5\r\n\r\n"
        );
        let came = exchange(&agent, sent).await;
        assert!(came.contains("Transfer-Encoding: chunked\r\n"), "{came}");
        let body = came.split_once("\r\n\r\n").unwrap().1.to_lowercase();
        assert!(body.contains("abc") && body.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{came}");
        let got = soon("the request came", heard.recv()).await.unwrap();
        assert!(got.starts_with(&format!("{method} /kvm ")), "{got}");
        assert!(got.contains("\r\nTransfer-Encoding: chunked\r\n"), "{got}");
        assert!(got.contains("5\r\nhello\r\n0\r\n"), "{got}");
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_told_so() {
    let legacy = Legacy::answering(&format!("HTTP/1.1 100 Continue\r\n\r\n{FINE}")).await;
    let (_place, agent) = before(&legacy, "").await;
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let head = "POST /kvm HTTP/1.1\r\nHost: n\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    soon("it is told", stream.read_exact(&mut go_on)).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    assert_eq!(receive(&mut stream).await.text(), "fine");
    let seen = legacy.after(0).await;
    assert!(seen.contains("Expect: 100-continue\r\n") && seen.ends_with("\r\n\r\nbody"), "{seen}");
}

#[tokio::test]
async fn an_answer_of_the_older_version_ends_where_its_connection_does() {
    let legacy = Legacy::answering("HTTP/1.0 200 OK\r\nServer: old\r\n\r\nuntil the end").await;
    let (_place, agent) = before(&legacy, "").await;
    let reply = agent.get("/kvm").await;
    assert_eq!((reply.status, reply.text()), (200, "until the end"));
    assert_eq!(
        (reply.header("server"), reply.header("transfer-encoding")),
        (Some("old"), Some("chunked"))
    );
    // Who speaks the older version gets no chunks.
    let came = exchange(&agent, "GET /kvm HTTP/1.0\r\n\r\n").await;
    assert!(came.ends_with("\r\n\r\nuntil the end"), "{came}");
    assert!(legacy.after(1).await.starts_with("GET /kvm HTTP/1.0\r\n"));
}

#[tokio::test]
async fn one_connection_takes_many_calls_some_of_them_the_agents_own() {
    let legacy = Legacy::answering(FINE).await;
    let (_place, agent) = before(&legacy, "").await;
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    for (path, status) in [("/kvm/a", 200), ("/healthz", 200), ("/kvm/b", 200), ("/v1/node", 200)] {
        stream.write_all(request("GET", path, &[], "").as_bytes()).await.unwrap();
        let reply = receive(&mut stream).await;
        assert_eq!(reply.status, status, "{path}");
        assert_eq!(reply.text() == "fine", path.starts_with("/kvm"), "{path}");
    }
    assert_eq!(legacy.seen().len(), 2);
}

/// Python's own server, as somebody else's idea of HTTP.
struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_real_server_of_python_is_read_through_the_agent() {
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("file with blanks"), "what it says").unwrap();
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]);
    python.arg("--directory").arg(files.path()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut python = Python(python.spawn().expect("python3 is installed"));
    // It says first where it listens: "Serving HTTP on 127.0.0.1 port 40123 (…) ...".
    let mut said = String::new();
    BufReader::new(python.0.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    let (_, port) = said.split_once(" port ").unwrap();
    let port: u16 = port.split(' ').next().unwrap().parse().unwrap();
    let url = format!("fallback_url = \"http://127.0.0.1:{port}\"\n");
    let place = Place::on("two-node").settings(&url);
    let agent = place.ready().await;
    let reply = agent.get("/file%20with%20blanks").await;
    assert_eq!((reply.status, reply.text()), (200, "what it says"));
    assert!(reply.header("server").unwrap().starts_with("SimpleHTTP/"));
    assert_eq!(agent.get("/none").await.status, 404);
    assert_eq!(agent.post("/none", "{}").await.status, 501, "it takes no POST, and says so");
}

// Streams.

/// Takes note of the most memory that the agent has while something happens.
async fn most<T>(agent: &Agent, happens: impl Future<Output = T>) -> (usize, T) {
    let mut most = 0;
    tokio::pin!(happens);
    loop {
        tokio::select! {
            done = &mut happens => return (most, done),
            () = tokio::time::sleep(Duration::from_millis(5)) => most = most.max(resident(agent)),
        }
    }
}

/// Reads until it is enough, or nothing more comes; how many bytes there were, with what stands around a
/// body (for looking at each takes long), and the last ones.
async fn swallow(
    stream: &mut TcpStream,
    mut last: Vec<u8>,
    enough: impl Fn(usize, &[u8]) -> bool,
) -> (usize, Vec<u8>) {
    let (mut bytes, mut buffer) = (last.len(), vec![0; 256 * 1024]);
    while !enough(bytes, &last) {
        let read = stream.read(&mut buffer).await.unwrap();
        if read == 0 {
            break;
        }
        bytes += read;
        last.extend_from_slice(&buffer[read.saturating_sub(8)..read]);
        last.drain(..last.len().saturating_sub(8));
    }
    (bytes, last)
}

/// The head of 100 MiB, and what stands around each MiB of it.
const SHAPES: [(&str, &str, &str, &str); 2] = [
    ("Content-Length: 104857600\r\n", "", "", ""),
    ("Transfer-Encoding: chunked\r\n", "100000\r\n", "\r\n", "0\r\n\r\n"),
];

#[tokio::test]
async fn a_large_body_passes_in_either_direction_and_fills_no_memory() {
    for (length, before_each, after_each, end) in SHAPES {
        let whole = move |head: String| {
            let mib = [before_each.as_bytes(), &vec![b'x'; MIB], after_each.as_bytes()].concat();
            (head.into_bytes(), mib, end)
        };
        let legacy = Legacy::with(move |mut line: Line| async move {
            let head = line.head().await;
            if head.starts_with("GET") {
                let (head, mib, end) = whole(format!("HTTP/1.1 200 OK\r\n{length}\r\n"));
                line.send(head).await;
                for _ in 0..100 {
                    line.send(&mib).await;
                }
                return line.send(end).await;
            }
            let before = std::mem::take(&mut line.rest);
            let enough =
                |bytes: usize, last: &[u8]| bytes >= 100 * MIB && last.ends_with(end.as_bytes());
            swallow(&mut line.stream, before, enough).await;
            line.send(FINE).await;
        })
        .await;
        let (_place, agent) = before(&legacy, "http.body_limit_kib = 1\n").await;
        assert_eq!(agent.get("/healthz").await.status, 200);
        let calm = resident(&agent);
        let up = async {
            let mut stream = TcpStream::connect(agent.address).await.unwrap();
            let (head, mib, end) = whole(format!("POST /kvm HTTP/1.1\r\nHost: n\r\n{length}\r\n"));
            stream.write_all(&head).await.unwrap();
            for _ in 0..100 {
                stream.write_all(&mib).await.unwrap();
            }
            stream.write_all(end.as_bytes()).await.unwrap();
            receive(&mut stream).await.text().to_string()
        };
        let (up, text) = most(&agent, soon("it is up", up)).await;
        assert_eq!(text, "fine");
        let down = async {
            let mut stream = TcpStream::connect(agent.address).await.unwrap();
            stream
                .write_all(request("GET", "/kvm", &[("Connection", "close")], "").as_bytes())
                .await
                .unwrap();
            swallow(&mut stream, Vec::new(), |_, _| false).await
        };
        let (down, (bytes, last)) = most(&agent, soon("it is down", down)).await;
        assert!(
            (100 * MIB..101 * MIB).contains(&bytes) && last.ends_with(end.as_bytes()),
            "{bytes}"
        );
        let grown = up.max(down).saturating_sub(calm);
        assert!(grown < 4 * MIB, "{} KiB more than {} KiB", grown / 1024, calm / 1024);
    }
}

#[tokio::test]
async fn who_does_not_read_holds_back_who_sends_and_is_cut_off_in_the_end() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let (gone, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let legacy = Legacy::with(move |mut line: Line| {
        let (sent, gone) = (counted.clone(), gone.clone());
        async move {
            line.head().await;
            line.send("HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n").await;
            for _ in 0..1600 {
                if line.stream.write_all(&[b'x'; 64 * 1024]).await.is_err() {
                    break;
                }
                sent.fetch_add(64 * 1024, Ordering::Relaxed);
            }
            gone.send(()).unwrap();
        }
    })
    .await;
    let (_place, agent) = before(&legacy, "http.body_timeout = \"500ms\"\n").await;
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    stream.write_all(request("GET", "/kvm", &[], "").as_bytes()).await.unwrap();
    soon("the legacy agent is let go", heard.recv()).await.unwrap();
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 50 * MIB, "{sent} bytes went somewhere");
    let mut all = Vec::new();
    let _ = soon("it ends", stream.read_to_end(&mut all)).await;
    assert!(all.len() < 50 * MIB, "it is never whole");
}

#[tokio::test]
async fn a_legacy_agent_that_thinks_long_is_waited_for_and_one_that_stops_talking_is_not() {
    let legacy = Legacy::with(|mut line: Line| async move {
        let head = line.head().await;
        if head.contains("/long") {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            return line.send(FINE).await;
        }
        line.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        line.more().await;
    })
    .await;
    let settings = "http.body_timeout = \"300ms\"\nhttp.header_timeout = \"300ms\"\n";
    let (_place, agent) = before(&legacy, settings).await;
    assert_eq!(agent.get("/long").await.text(), "fine");
    let came = exchange(&agent, request("GET", "/stops", &[], "")).await;
    assert!(came.ends_with("\r\n\r\nhalf"), "{came}");
}

#[tokio::test]
async fn a_request_that_stands_still_half_way_is_given_up() {
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let legacy = Legacy::with(move |mut line: Line| {
        let sender = sender.clone();
        async move {
            let head = line.head().await;
            if head.contains("/deaf") {
                // It neither reads nor answers.
                return std::future::pending().await;
            }
            sender.send(line.bytes(10).await).unwrap();
        }
    })
    .await;
    let (_place, agent) = before(&legacy, "http.body_timeout = \"300ms\"\n").await;
    let half = "POST /kvm HTTP/1.1\r\nHost: n\r\nContent-Length: 10\r\n\r\nhalf";
    let reply = send(agent.address, half.as_bytes()).await;
    reply.must_be_problem(408, "body-timeout");
    assert_eq!(
        soon("it is told", heard.recv()).await.unwrap(),
        b"half",
        "never as if it were whole"
    );
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let sending = async {
        let head = "POST /deaf HTTP/1.1\r\nHost: n\r\nContent-Length: 104857600\r\n\r\n";
        let _ = write.write_all(head.as_bytes()).await;
        while write.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
        std::future::pending().await
    };
    tokio::select! {
        reply = receive(&mut read) => reply.must_be_problem(504, "fallback-stalled"),
        () = sending => {}
    }
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_is_whole() {
    let legacy = Legacy::with(|mut line: Line| async move {
        line.head().await;
        line.send("HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\n\r\nless").await;
        while line.more().await {
            line.rest.clear();
        }
    })
    .await;
    let (_place, agent) = before(&legacy, "").await;
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let half = "POST /kvm HTTP/1.1\r\nHost: n\r\nContent-Length: 104857600\r\n\r\nhalf";
    stream.write_all(half.as_bytes()).await.unwrap();
    let reply = receive(&mut stream).await;
    assert_eq!((reply.status, reply.text()), (413, "less"));
}

// What goes wrong.

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_taken_for_a_whole_one_and_nothing_is_asked_twice() {
    for (answer, expected) in [
        ("", None),
        ("HTTP/1.1 200 OK\r\nContent-Le", None),
        ("no HTTP at all\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", Some("half")),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            Some("4\r\nhalf\r\n"),
        ),
    ] {
        let legacy = Legacy::answering(answer).await;
        let (_place, agent) = before(&legacy, "").await;
        let sent = request("POST", "/kvm/vm/start", &[], "{}");
        match expected {
            None => {
                send(agent.address, sent.as_bytes()).await.must_be_problem(502, "fallback-broken")
            }
            Some(half) => {
                let came = exchange(&agent, sent).await;
                assert!(came.starts_with("HTTP/1.1 200 OK\r\n"), "{came}");
                assert!(came.ends_with(half), "{came}");
            }
        }
        assert_eq!(legacy.seen().len(), 1, "{answer:?}");
    }
}

#[tokio::test]
async fn a_legacy_agent_that_is_not_there_is_named_and_used_when_it_appears() {
    let absent = Absent::new();
    let address = absent.address();
    let place = Place::on("two-node").settings(&format!("fallback_url = \"http://{address}\"\n"));
    let agent = place.ready().await;
    for _ in 0..3 {
        let reply = agent.post("/kvm/vm/start", "{}").await;
        reply.must_be_problem(502, "fallback-unreachable");
        let detail = reply.json()["detail"].to_string();
        assert!(detail.contains(&format!("http://{address} (fallback_url)")), "{detail}");
        assert!(detail.contains("Connection refused"), "{detail}");
    }
    assert_eq!(agent.get("/readyz").await.status, 200, "the agent is ready without it");
    let legacy = Legacy::at(absent, FINE);
    for _ in 0..3 {
        assert_eq!(agent.post("/kvm/vm/start", "{}").await.text(), "fine");
    }
    drop(legacy);
    agent.logged("accepts connections again").await;
    let log = agent.log();
    assert!(log.contains(&format!("forwarded to http://{address} (fallback_url)")), "{log}");
    assert_eq!(log.matches("cannot be reached").count(), 1, "said once: {log}");
    assert_eq!(log.matches("accepts connections again").count(), 1, "said once: {log}");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let legacy = Legacy::with(move |mut line: Line| {
        let sender = sender.clone();
        async move {
            line.head().await;
            sender.send("asked").unwrap();
            while line.more().await {}
            sender.send("gone").unwrap();
        }
    })
    .await;
    let (_place, agent) = before(&legacy, "").await;
    for sent in [
        request("GET", "/kvm", &[], ""),
        "POST /kvm HTTP/1.1\r\nHost: n\r\nContent-Length: 10\r\n\r\nhalf".to_string(),
    ] {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        assert_eq!(soon("it is asked", heard.recv()).await, Some("asked"));
        drop(stream);
        assert_eq!(soon("it is let go", heard.recv()).await, Some("gone"));
    }
}

#[tokio::test]
async fn slow_calls_at_the_legacy_agent_delay_nobody_else() {
    let legacy = Legacy::with(|mut line: Line| async move {
        match line.head().await.contains("/slow") {
            true => std::future::pending().await,
            false => line.send(FINE).await,
        }
    })
    .await;
    let (_place, agent) = before(&legacy, "http.max_connections = 100\n").await;
    let mut slow = Vec::new();
    for _ in 0..37 {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        stream.write_all(request("POST", "/slow", &[], "{}").as_bytes()).await.unwrap();
        slow.push(stream);
    }
    assert_eq!(agent.post("/host/ping", "{}").await.text(), "fine");
    assert_eq!(agent.get("/healthz").await.status, 200);
    let mut last = TcpStream::connect(agent.address).await.unwrap();
    last.write_all(request("POST", "/slow", &[], "{}").as_bytes()).await.unwrap();
    // One more than one peer's share, three quarters of half of all connections.
    let busy = until("all places are taken", async || {
        Some(agent.post("/host/ping", "{}").await).filter(|reply| reply.status != 200)
    })
    .await;
    busy.must_be_problem(503, "fallback-busy");
    for path in ["/healthz", "/v1/node", "/v1/status"] {
        assert_eq!(agent.get(path).await.status, 200, "{path}");
    }
    drop(last);
    until("there is a place again", async || {
        (agent.post("/host/ping", "{}").await.status == 200).then_some(())
    })
    .await;
}

// Whose routes.

#[tokio::test]
async fn the_agents_own_routes_never_get_there() {
    let legacy = Legacy::answering(FINE).await;
    let (_place, agent) = before(&legacy, "").await;
    let health = "/zbs/primarystorage/vhost/target/health";
    assert_eq!(agent.post(health, "{}").await.json()["targetRunning"], false);
    assert_eq!(agent.post(&format!("{health}/"), "{}").await.status, 200);
    for path in ["/healthz", "/readyz", "/v1/status", "/v1/targets", "/v1/node/"] {
        assert_eq!(agent.get(path).await.status, 200, "{path}");
    }
    // A path of the agent's own with another method stays the agent's business.
    agent.get(health).await.must_be_problem(405, "method-not-allowed");
    agent.post("/v1/node", "{}").await.must_be_problem(405, "method-not-allowed");
    assert_eq!(legacy.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_controller_says_goes_through_as_it_came_and_is_learnt() {
    let legacy = Legacy::answering(FINE).await;
    let (place, agent) = before(&legacy, "").await;
    let controller = Controller::start().await;
    let body = json!({"hostUuid": "5f0c", "sendCommandUrl": controller.url, "iptablesRules": []});
    let body = format!("  {body}\n");
    let back = "http://127.0.0.1:9/zstack/asyncrest/callback";
    let reply = agent.post_task("/host/connect/", &task(1), back, &body).await;
    assert_eq!((reply.status, reply.text()), (200, "fine"));
    let seen = legacy.after(0).await;
    assert!(seen.starts_with("POST /host/connect/ HTTP/1.1\r\n"), "{seen}");
    assert_eq!(
        (value(&seen, "taskuuid"), value(&seen, "callbackurl")),
        (Some(&*task(1)), Some(back))
    );
    assert!(seen.ends_with(&format!("\r\n\r\n{body}")), "{seen}");
    let report = controller.wait(1).await.remove(0);
    assert_eq!(report.json()["hostUuid"], "5f0c");
    assert!(!place.state().join("outbox").join(format!("{}.json", task(1))).exists());
    // A ping says nothing that is not known, and changes nothing that is.
    let other = Absent::new();
    let ping = json!({"hostUuid": "other", "sendCommandUrl": other.url()}).to_string();
    assert_eq!(agent.post("/host/ping", &ping).await.text(), "fine");
    for (method, path) in [("POST", "/host/echo"), ("GET", "/host/echo"), ("GET", "/host/ping")] {
        assert_eq!(
            call(agent.address, method, path, &[], "").await.text(),
            "fine",
            "{method} {path}"
        );
    }
    assert_eq!(legacy.seen().len(), 5);
    assert_eq!(agent.get("/v1/status").await.json()["hostUuid"], "5f0c");
}

#[tokio::test]
async fn a_ping_teaches_an_agent_that_came_later_than_its_controller() {
    let legacy = Legacy::answering(FINE).await;
    let (_place, agent) = before(&legacy, "").await;
    let controller = Controller::start().await;
    assert_eq!(agent.post("/host/ping", "{\"hostUuid\": \"5f0c\"}").await.text(), "fine");
    until("its name is known", async || {
        (agent.get("/v1/status").await.json()["hostUuid"] == "5f0c").then_some(())
    })
    .await;
    let ping = json!({"hostUuid": "5f0c", "sendCommandUrl": controller.url}).to_string();
    assert_eq!(agent.post("/host/ping", &ping).await.text(), "fine");
    assert_eq!(controller.wait(1).await[0].json()["hostUuid"], "5f0c");
}

#[tokio::test]
async fn what_cannot_be_learnt_is_told_in_the_log_and_goes_through() {
    let legacy = Legacy::answering(FINE).await;
    let (_place, agent) = before(&legacy, "").await;
    for (body, why) in [
        ("", "hostUuid is missing"),
        ("not JSON", "the body is not JSON"),
        ("{\"hostUuid\": 7, \"sendCommandUrl\": \"http://c/\"}", "7 is not a text"),
        (
            "{\"hostUuid\": \"a\", \"sendCommandUrl\": \"ftp://c/\"}",
            "sendCommandUrl cannot be used",
        ),
    ] {
        assert_eq!(agent.post("/host/connect", body).await.text(), "fine", "{body}");
        agent.logged(why).await;
    }
    assert_eq!(agent.get("/v1/status").await.json()["hostUuid"], "");
    assert!(legacy.seen().iter().all(|request| request.starts_with("POST /host/connect ")));
}

#[tokio::test]
async fn without_it_all_is_as_before_and_what_was_learnt_stays() {
    let legacy = Legacy::answering(FINE).await;
    let (place, mut agent) = before(&legacy, "").await;
    let url = Absent::new().url();
    let body = json!({"hostUuid": "5f0c", "sendCommandUrl": url}).to_string();
    assert_eq!(agent.post("/host/connect", &body).await.text(), "fine");
    until("it is learnt", async || {
        (agent.get("/v1/status").await.json()["hostUuid"] == "5f0c").then_some(())
    })
    .await;
    assert_eq!(agent.stop().await.code(), Some(0));
    let place = place.settings("");
    let agent = place.ready().await;
    agent.get("/kvm").await.must_be_problem(404, "no-such-route");
    agent.get("/host/ping").await.must_be_problem(405, "method-not-allowed");
    assert_eq!(agent.post("/host/ping", "{}").await.json()["hostUuid"], "5f0c");
    assert_eq!(agent.post("/host/echo", "").await.text(), "");
    assert_eq!(legacy.seen().len(), 1);
}

// Calls that change the pools.

const ENABLE: &str = "/host/enable/hugepage";
const DISABLE: &str = "/host/disable/hugepage";
/// Pages that the agent has, in pools with 412 and 300 in use.
const TAKEN: [u64; 2] = [432, 240];

/// A node with 672 pages of the agent's, in front of a legacy agent that takes all pages away so long after its answer.
async fn node_of_reservations(after: Duration, more: &str) -> (Place, Kernel, Legacy, Agent) {
    let place = Place::on("two-node").mounted();
    let kernel = Kernel::serve(&place, &[(5000, 0), (5000, 0)]);
    let knob = |node| {
        format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
    };
    let knobs = [0, 1].map(|node| place.path(&knob(node)));
    let legacy = Legacy::with(move |mut line: Line| {
        let knobs = knobs.clone();
        async move {
            let head = line.head().await;
            let changes =
                [ENABLE, DISABLE].iter().any(|it| head.starts_with(&format!("POST {it} ")));
            if !after.is_zero() {
                line.send(FINE).await;
                tokio::time::sleep(after).await;
            }
            for path in knobs.iter().filter(|_| changes) {
                let mut knob = fs::File::options().write(true).open(path).unwrap();
                knob.write_all(b"0\n").unwrap();
                // The played kernel does it when somebody looks.
                drop(fs::File::open(path).unwrap());
            }
            line.send(FINE).await;
        }
    })
    .await;
    let place = place.settings(&legacy.settings(more));
    let agent = place.ready().await;
    let prepared = agent.post("/v1/prepare", r#"{"hugepages": [{"pages": 1024}]}"#).await;
    assert_eq!(prepared.json()["outcome"], "changed", "{}", prepared.text());
    assert_eq!(grown(&agent).await, TAKEN);
    (place, kernel, legacy, agent)
}

/// Reads until that comes: everything that came.
async fn heard(stream: &mut TcpStream, text: &str) -> String {
    let mut all = Vec::new();
    let hears = async {
        while !String::from_utf8_lossy(&all).contains(text) {
            assert!(stream.read_buf(&mut all).await.unwrap() > 0, "it ended before {text}");
        }
    };
    soon(text, hears).await;
    String::from_utf8(all).unwrap()
}

async fn grown(agent: &Agent) -> Vec<u64> {
    let status = agent.get("/v1/status").await.json();
    let pools = status["pools"].as_array().unwrap().iter();
    let pools = pools.filter(|pool| pool["sizeKib"] == 2048);
    pools.map(|pool| pool["grownPages"].as_u64().unwrap()).collect()
}

/// The codes of what an operator should know.
async fn findings(agent: &Agent, path: &str) -> Vec<String> {
    let reported = agent.get(path).await.json();
    let findings = reported["findings"].as_array().cloned().unwrap_or_default();
    findings.iter().map(|finding| finding["code"].as_str().unwrap().to_string()).collect()
}

#[tokio::test]
async fn pages_that_a_call_takes_away_are_an_event_and_a_finding() {
    let (place, kernel, _legacy, agent) = node_of_reservations(Duration::ZERO, "").await;
    let mut events = TcpStream::connect(agent.address).await.unwrap();
    events.write_all(request("GET", "/v1/events", &[], "").as_bytes()).await.unwrap();
    heard(&mut events, ": following").await;
    assert_eq!(agent.post(DISABLE, "{}").await.text(), "fine");
    let reported = heard(&mut events, "432 of node0/2M, 240 of node1/2M").await;
    assert!(
        reported.contains("event: finding\n") && reported.contains("\"code\":\"pages-lost\""),
        "{reported}"
    );
    for path in ["/v1/status", "/v1/node"] {
        assert_eq!(findings(&agent, path).await, ["pages-lost"], "{path}");
    }
    until("their pools are seen", async || (grown(&agent).await == [0, 0]).then_some(())).await;
    agent.logged("432 of node0/2M, 240 of node1/2M").await;
    let shown = place.run(&["status"]).await;
    assert!(shown.out.contains("note (pages-lost): "), "{}", shown.out);
    let writes = kernel.writes().len();
    // Nothing is taken again unasked, however often it is looked.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(kernel.writes().len(), writes);
    assert_eq!(agent.post("/v1/restore", "{}").await.json()["outcome"], "changed");
    until("all is there again", async || {
        (grown(&agent).await == TAKEN && findings(&agent, "/v1/status").await.is_empty())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn pages_that_go_while_others_are_enabled_are_missed_too() {
    let (_place, _kernel, _legacy, agent) = node_of_reservations(Duration::ZERO, "").await;
    assert_eq!(agent.post(ENABLE, "{}").await.text(), "fine");
    until("they are missed", async || findings(&agent, "/v1/status").await.pop()).await;
}

#[tokio::test]
async fn lost_pages_that_are_given_up_are_told_no_more() {
    let (place, _kernel, _legacy, mut agent) = node_of_reservations(Duration::ZERO, "").await;
    assert_eq!(agent.post(DISABLE, "{}").await.text(), "fine");
    until("they are missed", async || findings(&agent, "/v1/status").await.pop()).await;
    assert_eq!(agent.post("/v1/reclaim", "{}").await.status, 200);
    until("they are missed no more", async || {
        findings(&agent, "/v1/status").await.is_empty().then_some(())
    })
    .await;
    assert_eq!(agent.stop().await.code(), Some(0));
    let agent = place.ready().await;
    assert_eq!(findings(&agent, "/v1/node").await, Vec::<String>::new());
}

#[tokio::test]
async fn pages_stay_lost_when_a_prepare_is_undone() {
    let (_place, kernel, _legacy, agent) = node_of_reservations(Duration::ZERO, "").await;
    assert_eq!(agent.post(DISABLE, "{}").await.text(), "fine");
    until("they are missed", async || findings(&agent, "/v1/status").await.pop()).await;
    let writes = kernel.writes().len();
    let body = r#"{"hugepages": [{"pages": 12000}], "engine": false}"#;
    let answer = agent.post("/v1/prepare", body).await;
    let failed = answer.text();
    assert!(failed.contains("pages that this call took"), "{failed}");
    assert!(kernel.writes().len() > writes, "some were taken");
    let finding = agent.get("/v1/node").await.json()["findings"][0]["text"].to_string();
    // All but those in use, which the kernel made persistent again.
    assert!(finding.contains("(20 of node0/2M)"), "{finding}");
}

#[tokio::test]
async fn pages_that_go_after_the_answer_are_taken_again_where_that_is_set() {
    let (_place, kernel, _legacy, agent) =
        node_of_reservations(Duration::from_millis(300), "pools.retake = true\n").await;
    let back = "http://127.0.0.1:9/zstack/asyncrest/callback";
    assert_eq!(agent.post_task(DISABLE, &task(1), back, "{}").await.text(), "fine");
    agent.logged("432 of node0/2M, 240 of node1/2M").await;
    agent.logged("were allocated again: they were missing after a call to the legacy agent").await;
    until("all is there again", async || {
        (grown(&agent).await == TAKEN && findings(&agent, "/v1/status").await.is_empty())
            .then_some(())
    })
    .await;
    assert_eq!(kernel.writes()[2..], ["node0 nr 0", "node1 nr 0", "node0 nr 432", "node1 nr 240"]);
}

// With a guard in front.

#[tokio::test]
async fn a_token_is_wanted_first_and_is_not_handed_on() {
    let legacy = Legacy::answering(FINE).await;
    let token = "0123456789abcdef0123456789abcdef";
    let place = Place::on("two-node").settings(&legacy.settings(""));
    let file = place.folder().join("tokens");
    fs::write(&file, token).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let place = place
        .env("VHOST_AGENT_ACCESS__TOKENS_FILE", file.to_str().unwrap())
        .env("VHOST_AGENT_ADMIN_LISTEN", "127.0.0.1:0");
    let agent = place.ready().await;
    for path in ["/kvm/x", "/host/connect", "/host/echo"] {
        call(agent.address, "POST", path, &[], "{}").await.must_be_problem(401, "token-missing");
    }
    let shown = format!("Bearer {token}");
    let headers = [("Authorization", shown.as_str()), ("X-Own", "1")];
    let reply = call(agent.address, "POST", "/kvm/x", &headers, "{}").await;
    assert_eq!((reply.status, reply.text()), (200, "fine"));
    let node = place.at_socket("/v1/node").await.unwrap().json();
    let admin = node["access"]["adminListen"].as_str().unwrap().parse().unwrap();
    call(admin, "POST", "/kvm/x", &[], "{}").await.must_be_problem(404, "no-such-route");
    // What is elsewhere is nobody else's, and wants no token there only.
    for path in ["/healthz", "/readyz///", "/metrics"] {
        let reply = call(agent.address, "POST", path, &[], "{}").await;
        assert!([401, 404].contains(&reply.status), "{path}: {}", reply.text());
        call(agent.address, "POST", path, &headers, "{}")
            .await
            .must_be_problem(404, "no-such-route");
    }
    // Nor is what the agent serves itself, however it is written.
    for path in ["/%7Abs/primarystorage/vhost/destroy", "/zbs/./primarystorage/vhost/destroy"] {
        call(agent.address, "POST", path, &headers, "{}")
            .await
            .must_be_problem(404, "no-such-route");
    }
    let seen = legacy.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((value(&seen[0], "x-own"), value(&seen[0], "authorization")), (Some("1"), None));
}
