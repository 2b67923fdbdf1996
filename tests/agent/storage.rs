//! Calls about the storage that a controller makes before all others, where no kvmagent is behind the agent: qemu-io and rpm
//! are played by scripts on the node, and what dpkg has installed by its records.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::controller::Controller;
use crate::support::http::{Reply, call};
use crate::support::legacy::Legacy;
use crate::support::{Agent, Place, soon, task, until};
use futures_util::future::join_all;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const CHECK: &str = "/zbs/primarystorage/check/host/connection";
const UPDATE: &str = "/zbs/primarystorage/host/updatedependency";
/// Output of a read that succeeded, as QEMU's own tests have it (tests/qemu-iotests, `_filter_qemu_io`).
const READ: &str = "echo 'read 4096/4096 bytes at offset 0'; echo '4 KiB, X ops; XX:XX:XX.X'";

/// Body of a check of a volume in its logical pool, as a controller sends it.
fn body(volume: &str) -> String {
    let path = format!("cbd:lpool1_physical/lpool1/{volume}");
    json!({"hostUuid": "9d3f6a", "path": path, "uuid": "u", "addr": "10.0.0.1"}).to_string()
}

/// Puts a program into the node.
fn play(place: &Place, name: &str, script: &str) {
    fs::create_dir_all(place.path("usr/bin")).unwrap();
    let program = place.path(&format!("usr/bin/{name}"));
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
}

/// A node with the configuration of a client, and a qemu-io that does this.
fn node(settings: &str, script: &str) -> Place {
    let place = Place::on("two-node").settings(settings);
    fs::create_dir_all(place.path("etc/zbs")).unwrap();
    place.write("etc/zbs/client.conf", "");
    play(&place, "qemu-io", &script.replace("FOLDER", &place.folder().display().to_string()));
    place
}

/// Lines of a file beside the node; none if it is not there.
fn lines(place: &Place, name: &str) -> Vec<String> {
    let text = fs::read_to_string(place.folder().join(name)).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

/// A check that goes on while the test does something else.
fn begin(agent: &Agent, volume: &str) -> JoinHandle<Reply> {
    let (address, body) = (agent.address, body(volume));
    tokio::spawn(async move { call(address, "POST", CHECK, &[], &body).await })
}

#[track_caller]
fn must_fail(reply: &Reply, code: &str, words: &[&str]) {
    let result = reply.json();
    assert_eq!((reply.status, &result["success"]), (200, &json!(false)), "{result}");
    assert_eq!(result["code"], code, "{result}");
    let error = result["error"].as_str().unwrap();
    assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
}

// The heartbeat volume.

#[tokio::test]
async fn heartbeat_volume_is_read_by_qemus_driver_for_the_storage() {
    let script = format!("printf '%s\\n' \"$0\" \"$@\" >>FOLDER/asked; {READ}");
    let place = node("", &script);
    let agent = place.ready().await;
    let reply = agent.post(CHECK, &body("zbs_zstack_heartbeat")).await;
    assert_eq!((reply.status, reply.json()), (200, json!({"success": true, "error": ""})));
    let program = place.path("usr/bin/qemu-io").display().to_string();
    let file =
        "cbd:lpool1_physical/lpool1/zbs_zstack_heartbeat_zbs_:/etc/zbs/client.conf".to_string();
    let words = ["-c", "read 0G 4k", "-f", "cbd"].map(str::to_string);
    assert_eq!(lines(&place, "asked"), [vec![program], words.to_vec(), vec![file]].concat());
    let controller = Controller::start().await;
    let body = body("zbs_zstack_heartbeat");
    let reply = agent.post_task(CHECK, &task(1), &controller.url, &body).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    assert_eq!(controller.wait(1).await[0].json(), json!({"success": true, "error": ""}));
}

#[tokio::test]
async fn read_that_fails_is_told_with_what_qemu_said() {
    for script in [
        "echo 'qemu-io: can not open device: Connection timed out' >&2; exit 1",
        // Before QEMU 3.0 the exit code did not tell.
        "echo 'read failed: Connection timed out'; exit 0",
    ] {
        let place = node("", script);
        let agent = place.ready().await;
        let reply = agent.post(CHECK, &body("v")).await;
        let words =
            ["cbd:lpool1_physical/lpool1/v", "Connection timed out", "/etc/zbs/client.conf"];
        must_fail(&reply, "storage-unreachable", &words);
    }
}

#[tokio::test]
async fn parts_that_are_missing_are_named() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let missing = "storage-client-missing";
    must_fail(&agent.post(CHECK, &body("v")).await, missing, &["qemu-io", "/usr/bin", "cbd"]);
    play(&place, "qemu-io", "echo \"qemu-io: can not open device: Unknown driver 'cbd'\"; exit 1");
    let no_conf = ["/etc/zbs/client.conf", "target.client_conf"];
    must_fail(&agent.post(CHECK, &body("v")).await, missing, &no_conf);
    fs::create_dir_all(place.path("etc/zbs")).unwrap();
    place.write("etc/zbs/client.conf", "");
    must_fail(&agent.post(CHECK, &body("v")).await, missing, &["has no driver cbd", "Unknown"]);
}

/// A qemu-io that hangs, with a child, on volumes whose name says so.
const HANGS: &str = "echo \"$5\" >>FOLDER/runs
case \"$5\" in *slow*) sleep 600 & echo $$ $! >>FOLDER/pids; wait;; *) ";

fn hanging(limit: &str) -> Place {
    let settings = format!("[storage]\nheartbeat_timeout = \"{limit}\"\n");
    node(&settings, &format!("{HANGS}{READ};; esac"))
}

#[tokio::test]
async fn read_that_hangs_is_killed_and_delays_only_itself() {
    let place = hanging("2s");
    let agent = place.ready().await;
    let began = Instant::now();
    let slow: Vec<_> = (0..5).map(|_| begin(&agent, "slow")).collect();
    until("it hangs", async || (lines(&place, "pids").len() == 1).then_some(())).await;
    assert_eq!(agent.post(CHECK, &body("quick")).await.json()["success"], true);
    assert_eq!(agent.post("/host/ping", "{}").await.status, 200);
    assert!(slow.iter().all(|call| !call.is_finished()), "{:?}", began.elapsed());
    for reply in soon("the limit passes", join_all(slow)).await {
        let words = ["within 2s", "storage.heartbeat_timeout", "killed"];
        must_fail(&reply.unwrap(), "storage-unreachable", &words);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let runs = lines(&place, "runs");
    let of_slow = runs.iter().filter(|run| run.contains("slow")).count();
    assert_eq!(of_slow, 1, "those who ask for the same share one: {runs:?}");
    for pid in lines(&place, "pids")[0].split(' ') {
        until("it is gone", async || {
            // Whoever reaps it may take a while.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn reads_that_hang_do_not_pile_up_and_one_more_waits_for_its_turn() {
    let place = hanging("3s");
    let agent = place.ready().await;
    let slow: Vec<_> = (0..16).map(|number| begin(&agent, &format!("slow{number}"))).collect();
    until("sixteen hang", async || (lines(&place, "pids").len() == 16).then_some(())).await;
    assert_eq!(agent.post(CHECK, &body("quick")).await.json()["success"], true);
    for reply in soon("the limit passes", join_all(slow)).await {
        must_fail(&reply.unwrap(), "storage-unreachable", &["killed"]);
    }
}

#[tokio::test]
async fn paths_that_lead_elsewhere_start_no_program() {
    let place = node("", "echo \"$@\" >>FOLDER/runs");
    let agent = place.ready().await;
    for path in [
        "/etc/shadow",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
        "nbd:10.0.0.66:10809",
        "rbd:p/l/v",
        "cbd:p/l/v:/etc/shadow",
        "cbd:p/l/v,file.driver=nbd",
        "cbd:../../etc/shadow",
        "cbd:p/../v",
        "cbd:p/l/v w",
        "cbd:p/l/$(reboot)",
        "cbd:p/l/v;reboot",
        "cbd:p/l/v\nwrite 0 4k",
        "-c quit",
        "--help",
        "cbd:p/l",
        "cbd:p/l/-c",
    ] {
        let reply = agent.post(CHECK, &json!({"path": path}).to_string()).await;
        must_fail(&reply, "invalid-backing", &["no heartbeat volume"]);
    }
    for body in ["{}", r#"{"path":null}"#, r#"{"path":""}"#, r#"{"path":["cbd:p/l/v"]}"#] {
        let reply = agent.post(CHECK, body).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid-body"), "{body}");
    }
    assert_eq!(lines(&place, "runs"), [] as [&str; 0]);
}

#[tokio::test]
async fn calls_about_the_storage_are_kvmagents_where_there_is_one() {
    let legacy = Legacy::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let place = node(&legacy.settings(""), "echo \"$@\" >>FOLDER/runs");
    let agent = place.ready().await;
    for (number, path) in [CHECK, UPDATE].into_iter().enumerate() {
        let reply = agent.post(path, &body("v")).await;
        assert_eq!((reply.status, reply.text()), (200, ""));
        let passed = legacy.after(number).await;
        assert!(passed.starts_with(&format!("POST {path} HTTP/1.1")), "{passed}");
        assert!(passed.ends_with(&body("v")), "{passed}");
    }
    assert_eq!(lines(&place, "runs"), [] as [&str; 0]);
}

// The packages of its client.

const LIBCBD: &str = r#"{"updatePackages":"libcbd","zstackRepo":"zstack-mn,qemu-kvm-ev-mn"}"#;

#[tokio::test]
async fn packages_that_are_there_are_left_as_they_are() {
    let place = Place::on("two-node").settings("[storage]\npackages = []\n");
    fs::create_dir_all(place.path("var/lib/dpkg")).unwrap();
    place.write("var/lib/dpkg/status", "Package: libcbd\nStatus: install ok installed\n\n");
    let agent = place.ready().await;
    let before = place.snapshot();
    let holds = json!({"success": true, "error": "", "outcome": "holds"});
    assert_eq!(agent.post(UPDATE, LIBCBD).await.json(), holds);
    before.must_be_what_is(&place);
    let controller = Controller::start().await;
    let reply = agent.post_task(UPDATE, &task(1), &controller.url, LIBCBD).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    assert_eq!(controller.wait(1).await[0].json(), holds);
}

#[tokio::test]
async fn rpm_is_asked_where_it_knows_the_packages() {
    let place = Place::on("two-node").settings("[storage]\npackages = []\n");
    play(&place, "yum", "exit 1");
    let script = "[ \"$*\" = '-q libcbd' ] && echo libcbd-1.2-3 || { echo package qemu-kvm is not installed; exit 1; }";
    play(&place, "rpm", script);
    let agent = place.ready().await;
    assert_eq!(agent.post(UPDATE, LIBCBD).await.json()["outcome"], "holds");
    let other = agent.post(UPDATE, r#"{"updatePackages":"libcbd, qemu-kvm"}"#).await;
    must_fail(&other, "dependency-not-installed", &["libcbd qemu-kvm", "storage.packages"]);
}

// A database of rpm that cannot be read: rpm says of every package that it is not installed.
#[tokio::test]
async fn rpm_that_fails_starts_no_installation() {
    let place = Place::on("two-node");
    let script = format!("touch {}/installs", place.folder().display());
    play(&place, "yum", &script);
    let broken = "echo package libcbd is not installed
echo 'error: cannot open Packages database in /var/lib/rpm' >&2; exit 1";
    play(&place, "rpm", broken);
    let agent = place.ready().await;
    let words = ["libcbd", "cannot open Packages database", "rpm --rebuilddb"];
    must_fail(&agent.post(UPDATE, LIBCBD).await, "package-manager-failed", &words);
    assert!(!place.folder().join("installs").exists());
}

#[tokio::test]
async fn packages_that_are_missing_are_told_with_the_setting_that_installs_them() {
    for (settings, code, words) in [
        ("packages = []", "dependency-not-installed", ["libcbd", "storage.packages"]),
        ("repositories = []", "dependency-not-installed", ["zstack-mn", "storage.repositories"]),
        ("", "no-package-manager", ["libcbd", "apt-get"]),
    ] {
        let place = Place::on("two-node").settings(&format!("[storage]\n{settings}\n"));
        let agent = place.ready().await;
        must_fail(&agent.post(UPDATE, LIBCBD).await, code, &words);
    }
}

#[tokio::test]
async fn names_that_are_no_packages_are_refused() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let before = place.snapshot();
    for (packages, repositories) in [
        ("", ""),
        ("--reinstall", ""),
        ("libcbd;reboot", ""),
        ("libcbd $(reboot)", ""),
        ("http://10.0.0.66/evil.rpm", ""),
        ("/tmp/evil.rpm", ""),
        ("*", ""),
        ("libcbd", "*"),
        ("libcbd", "a --nogpgcheck"),
    ] {
        let body = json!({"updatePackages": packages, "zstackRepo": repositories}).to_string();
        let reply = agent.post(UPDATE, &body).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid-body"), "{body}");
    }
    before.must_be_what_is(&place);
}
