//! Requests that nobody would send: whatever comes, the agent answers or closes, and lives.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::http::{call, request};
use crate::support::{Agent, Place, process, task};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

const ZBS: &str = "/zbs/primarystorage/vhost";
const PREPARE: &str = "/zbs/primarystorage/vhost/target/prepareenv";
const CASES: u32 = 100_000;
/// So many until whatever is opened once and then kept was opened.
const WARM_UP: u32 = 5000;
/// Threads for blocking calls that can be there or not, as work comes.
const POOL_BREATHES: usize = 4;
/// How long a thread for blocking calls waits for the next one (tokio's default is 10 s).
const IDLE_THREADS: Duration = Duration::from_secs(12);
/// How much larger the agent may be after them than after the first ones, in KiB.
const MOST_GROWTH_KIB: u64 = 8 * 1024;

/// Requests as they are sent. None has a callback's address: a mangled one would be called.
fn well_formed() -> Vec<Vec<u8>> {
    let connect =
        r#"{"hostUuid":"9d3f6a","sendCommandUrl":"http://127.0.0.1:1/x","version":"4.8"}"#;
    let context = r#"{"hugepageNr":360,"taskContext":{"__messagetimeout__":"1800000"}}"#;
    let prepare_body = r#"{"hugepages":[{"pages":300,"sizeMib":2,"nodes":[0,1],"moveShortfall":false}],"keepPartial":false,"engine":true}"#;
    let health =
        r#"{"containerName":"zbs-vhost","controlSock":"/var/tmp/vhost-sockets/vhost.sock"}"#;
    let ensure = r#"{"image":"a/zbs-vhost:1","cores":"[1-2]","coreCount":2,"socketDir":"/var/tmp/vhost-sockets/s","hugepageNr":"1"}"#;
    let activate = r#"{"installPath":"zbs://p/v","bdevName":"b","controllerName":"c","image":"a/zbs-vhost:1"}"#;
    let create =
        r#"{"hostIp":"127.0.0.1","sshPassword":"x","logicalPool":"p","volume":"v","bdevName":"b"}"#;
    let volume = r#"{"backing":{"kind":"malloc","sizeMib":16},"readOnly":false,"cpumask":"0x3"}"#;
    let json = ("Content-Type", "application/json");
    let mut all: Vec<Vec<u8>> = [
        request("POST", "/host/ping", &[json], "{}"),
        request("POST", "/host/echo/", &[], ""),
        request("POST", "/host/connect", &[json, ("X-Resource-UUID", "7")], connect),
        request("POST", PREPARE, &[json], context),
        request("POST", PREPARE, &[("taskuuid", &task(1))], context),
        request("POST", "/v1/prepare?dryRun=true", &[json], prepare_body),
        request("POST", "/v1/prepare", &[("Accept", "application/x-ndjson")], prepare_body),
        request("POST", "/v1/reclaim", &[json], r#"{"sizeMib":2,"node":0,"dryRun":true}"#),
        request("POST", "/v1/restore", &[], "{}"),
        request("GET", "/v1/node", &[("Accept", "*/*")], ""),
        request("POST", &format!("{ZBS}/target/health"), &[json], health),
        request("POST", &format!("{ZBS}/target/ensure"), &[json], ensure),
        request("POST", &format!("{ZBS}/activate"), &[json], activate),
        request("POST", &format!("{ZBS}/deactivate"), &[json], activate),
        request("POST", &format!("{ZBS}/resize"), &[json], r#"{"bdevName":"b","sizeMib":64}"#),
        request("POST", &format!("{ZBS}/bdev/create"), &[json], create),
        request("POST", &format!("{ZBS}/bdev/delete"), &[json], create),
        request("POST", &format!("{ZBS}/destroy"), &[json], create),
        request(
            "PUT",
            "/v1/targets/t-1?dryRun=true",
            &[json],
            r#"{"kind":"built-in","coreCount":1}"#,
        ),
        request("GET", "/v1/targets/t-1/health?deep=true", &[], ""),
        request("PUT", "/v1/targets/t-1/volumes/v", &[json], volume),
        request("DELETE", "/v1/targets/t-1/volumes/v?force=true&timeoutMs=1", &[], ""),
        request("GET", "/v1/status?after=1&timeoutMs=1", &[], ""),
        request("GET", "/readyz", &[("Expect", "100-continue")], ""),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    let chunked = format!(
        "POST {PREPARE} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n{{\"hugepageNr\": 360\r\n1\r\n}}\r\n0\r\n\r\n"
    );
    all.push(chunked.into_bytes());
    all
}

/// One change of a request; places are fractions of its length.
#[derive(Debug, Clone)]
enum Change {
    Flip(u16, u8),
    Insert(u16, Vec<u8>),
    Word(u16, &'static str),
    Remove(u16, u16),
    Repeat(u16, u16),
    CutAt(u16),
}

fn change() -> impl Strategy<Value = Change> {
    let words = prop::sample::select(vec![
        "\r\n",
        "\r\n\r\n",
        "\0",
        "{{",
        "}}",
        "[",
        "\"",
        "\\u0000",
        "-",
        "1e999",
        "null",
        "..",
        "%2e%2e/",
        "//",
        "18446744073709551616",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length: -1\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Expect: 100-continue\r\n",
        "HTTP/0.9",
        "HTTP/2.0",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "ffffffffffffffff\r\n",
        "\u{feff}",
        "é",
        "taskuuid: 0\r\n",
    ]);
    prop_oneof![
        (any::<u16>(), 1..=255_u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (any::<u16>(), prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, b)| Change::Insert(at, b)),
        (any::<u16>(), words).prop_map(|(at, word)| Change::Word(at, word)),
        (any::<u16>(), 1..200_u16).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<u16>(), 1..200_u16).prop_map(|(at, length)| Change::Repeat(at, length)),
        any::<u16>().prop_map(Change::CutAt),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let place = |at: u16| usize::from(at) * bytes.len() / 65_536;
    match change {
        Change::Flip(at, bits) => {
            let at = place(*at);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bits;
            }
        }
        Change::Insert(at, more) => {
            let at = place(*at);
            bytes.splice(at..at, more.iter().copied());
        }
        Change::Word(at, word) => {
            let at = place(*at);
            bytes.splice(at..at, word.bytes());
        }
        Change::Remove(at, length) => {
            let at = place(*at);
            bytes.drain(at..bytes.len().min(at + usize::from(*length)));
        }
        Change::Repeat(at, length) => {
            let at = place(*at);
            let part = bytes[at..bytes.len().min(at + usize::from(*length))].to_vec();
            bytes.splice(at..at, part);
        }
        Change::CutAt(at) => bytes.truncate(place(*at)),
    }
}

/// Sends the bytes and reads until the agent closes.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = TcpStream::connect(address).map_err(|e| format!("not accepted: {e}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // An agent that has seen enough closes while there is still something to send.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) =>
        {
            Err("neither answered nor closed".to_string())
        }
        _ => Ok(answer),
    }
}

/// Sends so many requests that nobody would send, and judges each answer.
fn send_random(cases: u32, agent: &Agent) {
    let case = (prop::sample::select(well_formed()), prop::collection::vec(change(), 1..6));
    let config =
        Config { cases, max_shrink_iters: 100, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&case, |(mut bytes, changes)| {
        for change in &changes {
            apply(&mut bytes, change);
        }
        let answer = exchange(agent.address, &bytes).map_err(TestCaseError::fail)?;
        let text = String::from_utf8_lossy(&answer);
        prop_assert!(text.is_empty() || text.starts_with("HTTP/1."), "{}", text);
        prop_assert!(!text.contains("\"code\":\"internal\""), "{}", text);
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
}

#[test]
fn whatever_comes_is_answered_or_closed_and_the_agent_lives() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = Place::on("two-node").mounted();
    let mut agent = runtime.block_on(place.ready());
    let pid = agent.pid();
    let before = place.snapshot();
    // Some of them are well-formed and leave a target that is looked after, which takes what it takes.
    send_random(WARM_UP, &agent);
    std::thread::sleep(IDLE_THREADS);
    let (files, threads) = (process::files(pid), process::threads(pid));
    let early = process::resident_kib(pid);
    send_random(CASES - WARM_UP, &agent);
    agent.must_live();
    let ping = runtime.block_on(call(agent.address, "POST", "/host/ping", &[], "{}"));
    assert_eq!(ping.status, 200);
    let late = process::resident_kib(pid);
    assert!(late < early + MOST_GROWTH_KIB, "{early} KiB, then {late} KiB");
    std::thread::sleep(IDLE_THREADS);
    let (files_after, threads_after) = (process::files(pid), process::threads(pid));
    let left: Vec<_> = files_after.difference(&files).collect();
    assert!(left.is_empty(), "left open: {left:?}");
    assert!(threads_after <= threads + POOL_BREATHES, "{threads} threads, then {threads_after}");
    // What well-formed calls change by design, and nothing else.
    before.must_only_differ_in(&place, |path| {
        let kept = ["state/", "run/"].iter().any(|folder| path.starts_with(folder));
        // Surplus pages of plain files stay surplus: a growth seems to come out short.
        let of_pools = path.ends_with("/nr_hugepages") || path.ends_with("/compact");
        kept || path.starts_with("root/sys/") && of_pools
    });
    assert_eq!(runtime.block_on(agent.stop()).code(), Some(0));
    // What is kept is what the agent can read, and nobody is owed anything.
    let exported = runtime.block_on(place.run(&["state", "export"]));
    assert_eq!(exported.code, Some(0), "{}", exported.err);
    let owed = std::fs::read_dir(place.state().join("outbox")).into_iter().flatten().count();
    assert_eq!(owed, 0, "tasks that nobody asked for");
    for line in agent.log().lines() {
        // A panic's own words are no JSON.
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
}
