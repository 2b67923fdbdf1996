//! Secrets come in by every way there is, and must not come out by any: a canary is looked for in the log
//! at its loudest, in answers, events, metrics, in what commands print, and in a core dump.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::absent::Absent;
use crate::support::controller::{Answer, Controller};
use crate::support::http::{call, request};
use crate::support::legacy::{Legacy, Line};
use crate::support::played::Played;
use crate::support::{Agent, DEADLINE, Place, task};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// No other word has it in it.
const CANARY: &str = "kanarienvogel";
const ZBS: &str = "/zbs/primarystorage/vhost";

struct Node {
    played: Played,
    folder: TempDir,
}

/// A node into which secrets were written wherever the settings take one; `first` is a setting more.
fn node(first: &str) -> Node {
    let folder = tempfile::tempdir().unwrap();
    let secret = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let tokens = secret("tokens", format!("{CANARY}-0123456789\n"));
    let password = secret("password", format!("{CANARY}\n"));
    let settings = format!(
        "{first}[log]\nlevel = \"trace\"\n[http]\ndrain_timeout = \"200ms\"\n[access]\ntokens_file = \"{tokens}\"\naudit_file = \"{}\"\n\
         [target]\nkind = \"built-in\"\ncore_count = 1\n\
         allowed_images = [\"*\"]\nimage_urls = [\"http://127.0.0.1:1\"]\nraw_methods = [\"bdev_rbd_create\"]\n\
         [registry.\"127.0.0.1:1\"]\nusername = \"node\"\npassword = \"{CANARY}\"\n\
         [registry.\"127.0.0.1:2\"]\nusername = \"node\"\npassword_file = \"{password}\"\n",
        folder.path().join(AUDIT).display()
    );
    Node { played: Played::with(&settings), folder }
}

/// The audit log, in the folder of the secrets.
const AUDIT: &str = "audit.log";

/// Every call with secrets in whatever field can have one, well-formed and not.
fn calls() -> Vec<(&'static str, String, String)> {
    let ssh = json!({
        "hostIp": "127.0.0.1", "sshUsername": "root", "sshPassword": CANARY, "password": CANARY,
        "logicalPool": "p", "volume": "v", "bdevName": "b",
    });
    let image = json!({
        "image": "127.0.0.1:1/zbs/vhost:1", "cores": "[1]",
        "imageUrl": format!("http://user:{CANARY}@127.0.0.1:1/image.tar?sign={CANARY}"),
    });
    let plain_image = json!({
        "image": "127.0.0.1:2/zbs/vhost:1", "cores": "[1]",
        "imageUrl": format!("http://127.0.0.1:1/image.tar?sign={CANARY}"),
    });
    let connect = json!({
        "hostUuid": "5f0c", "version": "5", "password": CANARY,
        "sendCommandUrl": format!("http://127.0.0.1:1/x?key={CANARY}"),
    });
    let context = json!({"hugepageNr": 1, "sshPassword": CANARY, "threadContext": {"api": CANARY}});
    let raw = json!({"backing": {
        "kind": "raw", "method": "bdev_rbd_create", "params": {"key": CANARY, "config": {"key": CANARY}, "pool": CANARY, "hosts": [CANARY]},
    }});
    let zbs = |route: &str, body: &Value| ("POST", format!("{ZBS}/{route}"), body.to_string());
    let broken = |route: &str| {
        let body = format!("{{\"sshPassword\": \"{CANARY}\", \"bdevName\": {CANARY}");
        ("POST", format!("{ZBS}/{route}"), body)
    };
    vec![
        zbs("deploy", &ssh),
        zbs("destroy", &ssh),
        zbs("bdev/create", &ssh),
        zbs("bdev/delete", &ssh),
        zbs("target/ensure", &image),
        zbs("target/ensure", &plain_image),
        zbs("target/prepareenv", &context),
        zbs("target/health", &json!({"sshPassword": CANARY})),
        broken("deploy"),
        broken("bdev/create"),
        broken("target/prepareenv"),
        ("POST", "/host/ping".to_string(), json!({"password": CANARY}).to_string()),
        ("PUT", "/v1/targets/t".to_string(), image.to_string()),
        (
            "PUT",
            "/v1/targets/u".to_string(),
            json!({"imageUrl": plain_image["imageUrl"]}).to_string(),
        ),
        ("PUT", "/v1/targets/zbs-vhost".to_string(), "{}".to_string()),
        ("PUT", "/v1/targets/zbs-vhost/volumes/r".to_string(), raw.to_string()),
        ("POST", format!("/v1/prepare?key={CANARY}"), "{}".to_string()),
        ("GET", format!("/no/such/route?key={CANARY}"), String::new()),
        // The last one: a ping gives back the address that a connect brought.
        ("POST", "/host/connect".to_string(), connect.to_string()),
    ]
}

#[track_caller]
fn silent(what: &str, text: &str) {
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(CANARY)).collect();
    assert!(lines.is_empty(), "{what}: {lines:#?}");
}

/// Everything that the agent tells of its work from now on.
async fn events(place: &Place) -> UnixStream {
    let mut stream = UnixStream::connect(place.socket()).await.unwrap();
    stream.write_all(request("GET", "/v1/events", &[], "").as_bytes()).await.unwrap();
    stream
}

async fn ask(
    agent: &Agent,
    headers: &[(&str, &str)],
    (method, path, body): &(&str, String, String),
) {
    let token = format!("Bearer {CANARY}-0123456789");
    let mut all = vec![("Authorization", token.as_str())];
    all.extend(headers);
    let reply = call(agent.address, method, path, &all, body).await;
    silent(&format!("the answer to {method} {path}"), reply.text());
}

#[tokio::test]
async fn no_secret_is_in_the_log_an_answer_an_event_or_what_a_command_prints() {
    no_secret_comes_out("").await;
}

#[tokio::test]
async fn nor_where_calls_are_handed_on_to_one_that_breaks_off_or_is_not_there() {
    let breaks_off = Legacy::with(async |mut line: Line| drop(line.head().await)).await;
    let absent = Absent::new();
    for address in [breaks_off.address, absent.address()] {
        no_secret_comes_out(&format!("fallback_url = \"http://{address}\"\n")).await;
    }
}

async fn no_secret_comes_out(first: &str) {
    let node = node(first);
    let place = &node.played.place;
    let mut agent = place.ready().await;
    let mut events = events(place).await;
    let answers = vec![Answer::Status(500), Answer::Reset, Answer::Status(404)];
    let (controller, absent) = (Controller::answering(answers).await, Absent::new());
    for (number, call) in (1..).zip(calls()) {
        ask(&agent, &[], &call).await;
        if call.0 == "POST" && call.1.starts_with(ZBS) {
            let there = format!("{}?key={CANARY}", controller.url);
            let nobody = format!("{}?key={CANARY}", absent.url());
            for (number, url) in [(2 * number, &there), (2 * number + 1, &nobody)] {
                let task = task(number);
                ask(&agent, &[("taskuuid", &task), ("callbackurl", url)], &call).await;
            }
        }
    }
    let wrong = [("Authorization", format!("Bearer {CANARY}-wrong-wrong-wrong"))];
    let wrong = wrong.each_ref().map(|(name, value)| (*name, value.as_str()));
    silent("a refused token", call(agent.address, "GET", "/v1/node", &wrong, "").await.text());
    agent.logged("could not be delivered to").await;
    let volumes = "/v1/targets/zbs-vhost/volumes";
    for path in ["/v1/node", "/v1/status", "/v1/targets", volumes, "/metrics"] {
        silent(path, place.at_socket(path).await.unwrap().text());
    }
    for command in [
        &["config", "show"][..],
        &["config", "show", "--output", "json"],
        &["state", "show"],
        &["state", "show", "--output", "json"],
        &["status"],
        &["volume", "list"],
    ] {
        let ended = place.run(command).await;
        silent(&format!("{command:?}"), &format!("{}{}", ended.out, ended.err));
    }
    let mut received = vec![0; 1 << 20];
    let read = timeout(Duration::from_secs(1), events.read(&mut received)).await;
    let received = String::from_utf8_lossy(&received[..read.unwrap().unwrap()]).into_owned();
    assert!(received.contains("data: "), "{received}");
    silent("the events", &received);
    agent.must_live();
    agent.stop().await;
    silent("the log", &agent.log());
    let audit = fs::read_to_string(node.folder.path().join(AUDIT)).unwrap();
    assert!(audit.contains("token-wrong") && audit.contains("zbs-vhost"), "{audit}");
    silent("the audit log", &audit);
    for entry in fs::read_dir(place.folder().join("log")).into_iter().flatten() {
        let path = entry.unwrap().path();
        silent(&path.display().to_string(), &fs::read_to_string(&path).unwrap());
    }
}

/// Whether a process that is ended by a signal that dumps core leaves one in `folder`.
fn dumps_allowed(command: &mut Command, folder: &std::path::Path) -> std::process::Child {
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: setrlimit(2) is async-signal-safe, and nothing else happens before exec.
    unsafe {
        let most = nix::libc::RLIM_INFINITY;
        command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_CORE, most, most)?));
    }
    command.spawn().unwrap()
}

#[tokio::test]
async fn no_core_dump_is_written_of_the_agents_memory() {
    let folder = tempfile::tempdir().unwrap();
    // That another process dumps here shows that the agent could.
    let mut other = dumps_allowed(Command::new("sleep").arg("60"), folder.path());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(other.id().cast_signed()), Signal::SIGABRT)
        .unwrap();
    let other_dumped = other.wait().unwrap().core_dumped();
    if !other_dumped {
        eprintln!(
            "SKIPPED in part: this machine writes no core dumps at all (kernel.core_pattern, ulimit -c)"
        );
    }
    let node = node("");
    let place = &node.played.place;
    let mut agent = dumps_allowed(&mut place.command(&["serve"]), folder.path());
    let serves = timeout(DEADLINE, async {
        while place.at_socket("/readyz").await.is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    if serves.await.is_err() {
        // Nobody else would end it.
        let _ = agent.kill();
        panic!("the agent does not serve");
    }
    let cores = || {
        let names = fs::read_dir(folder.path()).unwrap().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("core")).count()
    };
    let before = cores();
    // The kernel gives the files of a process that may not be dumped to root alone, and nobody may attach.
    let pid = nix::unistd::Pid::from_raw(agent.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGABRT).unwrap();
    let ended = agent.wait().unwrap();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false));
    assert_eq!(cores(), before);
}
