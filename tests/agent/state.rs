//! What a node keeps, shown and carried to another node by the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::support::{Ended, Place, soon};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

const HOLDS: Option<i32> = Some(0);
const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);

fn target() -> Value {
    json!({"version": 1, "spec": {
        "name": "zbs-vhost", "kind": "zbs", "image": "zbs:1", "imageTar": null,
        "imageUrl": "http://store.example/zbs.tar?signature=verysecret", "imageSha256": null,
        "cores": {"these": "6,7"}, "socketDir": "/var/tmp/vhost-sockets",
        "controlSock": "/var/tmp/vhost-sockets/vhost.sock", "clientConf": null, "memoryMib": 370,
    }})
}

fn volume() -> Value {
    json!({"version": 1, "target": "zbs-vhost", "spec": {
        "name": "disk-1", "bdev": "zbs-bdev-1", "readOnly": true,
        "backing": {"kind": "zbs", "path": "pool/volume"},
    }})
}

fn put(place: &Place, name: &str, value: &Value) {
    let path = place.state().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

/// A node that keeps one thing of each kind.
fn full() -> Place {
    let place = Place::on("two-node");
    put(&place, "targets/zbs-vhost.json", &target());
    put(&place, "volumes/zbs-vhost/disk-1.json", &volume());
    put(&place, "reservations.json", &json!([{"size": "2M", "node": 1, "pages": 360}]));
    let controller =
        json!({"hostUuid": "0123", "sendCommandUrl": "http://10.0.0.1:8080/", "version": "5"});
    put(&place, "controller.json", &controller);
    let waiting =
        json!({"version": 1, "callbackUrl": "http://10.0.0.1/back", "result": {"body": ""}});
    put(&place, "outbox/0a1b.json", &waiting);
    place
}

/// What a node keeps, by the names of files.
fn things(exported: &Ended) -> Value {
    exported.json()["things"].clone()
}

async fn import_from_input(place: &Place, text: &str) -> Ended {
    let mut command = tokio::process::Command::from(place.command(&["state", "import", "-"]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    // A command that refuses early reads no further.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes()).await;
    let output = soon("the import ends", child.wait_with_output()).await.unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn an_export_imported_on_another_node_is_the_same_there() {
    let (one, other) = (full(), Place::on("two-node"));
    let file = one.folder().join("state.json");
    let path = file.to_str().unwrap();
    let exported = one.run(&["state", "export", path]).await;
    assert_eq!(exported.code, HOLDS, "{exported:?}");
    assert!(exported.out.starts_with("4 things of "), "{exported:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let imported = other.run(&["state", "import", path, "--output", "json"]).await;
    assert_eq!(imported.code, HOLDS, "{imported:?}");
    assert_eq!(imported.json()["written"].as_array().unwrap().len(), 4);
    let printed = other.run(&["state", "export"]).await;
    assert_eq!(things(&printed), things(&one.run(&["state", "export", "-"]).await));
    assert_eq!(things(&printed)["targets/zbs-vhost.json"], target(), "nothing in it is hidden");
    assert_eq!(things(&printed)["volumes/zbs-vhost/disk-1.json"], volume());
    assert!(!other.state().join("outbox").exists(), "each agent tells its own results");

    let again = other.run(&["state", "import", path]).await;
    assert!(again.code == HOLDS && again.out.contains("was here already"), "{again:?}");
    let over = one.run(&["state", "export", path]).await;
    assert!(over.code == FAILED && over.err.contains("state.json is there already"), "{over:?}");
}

#[tokio::test]
async fn what_differs_is_written_over_only_with_replace() {
    let (one, other) = (full(), full());
    put(&other, "reservations.json", &json!([{"size": "2M", "node": 0, "pages": 1}]));
    let document = one.run(&["state", "export"]).await.out;
    let before = other.snapshot();
    let refused = import_from_input(&other, &document).await;
    assert_eq!(refused.code, FAILED);
    assert!(
        refused.err.contains("reservations.json: --replace") && refused.err.contains("nothing was"),
        "{refused:?}"
    );
    fs::remove_file(other.run_folder().join("lock")).unwrap();
    fs::remove_dir(other.run_folder()).unwrap();
    before.must_be_what_is(&other);
    let file = one.folder().join("state.json");
    fs::write(&file, document).unwrap();
    let replaced = other.run(&["state", "import", "--replace", file.to_str().unwrap()]).await;
    assert_eq!(replaced.code, HOLDS, "{replaced:?}");
    assert!(replaced.out.contains("reservations.json: replaced"), "{replaced:?}");
    assert!(replaced.out.contains("targets/zbs-vhost.json: the same already"), "{replaced:?}");
    let kept = fs::read_to_string(other.state().join("reservations.json")).unwrap();
    assert!(kept.contains("360"), "{kept}");
}

#[tokio::test]
async fn a_document_that_is_cut_off_foreign_or_newer_is_refused_and_touches_nothing() {
    let (one, other) = (full(), Place::on("two-node"));
    let document = one.run(&["state", "export"]).await;
    let before = other.snapshot();
    let mut newer = document.json();
    newer["version"] = 2.into();
    let mut foreign = document.json();
    foreign["things"]["ledger.json"] = json!({});
    let mut newer_thing = document.json();
    newer_thing["things"]["volumes/zbs-vhost/disk-1.json"]["version"] = 2.into();
    for (text, part) in [
        (document.out[..document.out.len() / 2].to_string(), "it is cut off: EOF while parsing"),
        ("# settings\n".to_string(), "no JSON: expected value at line 1 column 1"),
        ("{\"Version\": 1}".to_string(), "no exported state"),
        (newer.to_string(), "of version 2, and this agent knows 1"),
        (foreign.to_string(), "ledger.json is nothing that this agent keeps"),
        (newer_thing.to_string(), "volumes/zbs-vhost/disk-1.json is of version 2"),
    ] {
        let refused = import_from_input(&other, &text).await;
        assert_eq!(refused.code, FAILED, "{refused:?}");
        let named = refused.err.contains("standard input cannot be imported");
        assert!(named && refused.err.contains(part), "{part}: {refused:?}");
    }
    before.must_be_what_is(&other);
    let missing = other.run(&["state", "import", "/nowhere/state.json"]).await;
    assert!(
        missing.code == FAILED && missing.err.contains("cannot read /nowhere/state.json"),
        "{missing:?}"
    );
    assert_eq!(other.run(&["state", "import"]).await.code, USAGE);
}

#[tokio::test]
async fn an_agent_that_runs_lets_its_state_be_seen_and_not_be_imported_over() {
    let (one, other) = (full(), Place::on("two-node").mounted());
    put(
        &other,
        "controller.json",
        &json!({"hostUuid": "own", "sendCommandUrl": "", "version": ""}),
    );
    let document = one.run(&["state", "export"]).await.out;
    let mut agent = other.ready().await;
    let refused = import_from_input(&other, &document).await;
    assert_eq!(refused.code, FAILED, "{refused:?}");
    let pid = format!("an agent runs on this node (pid {}, http://", agent.pid());
    for part in [pid.as_str(), "systemctl stop vhost-agent", "nothing was written"] {
        assert!(refused.err.contains(part), "{part}: {refused:?}");
    }
    let shown = other.run(&["state", "show"]).await;
    assert!(shown.code == HOLDS && shown.out.contains("own"), "{shown:?}");
    let exported = other.run(&["state", "export"]).await;
    assert_eq!(things(&exported)["controller.json"]["hostUuid"], "own");
    agent.must_live();
}

#[tokio::test]
async fn what_is_kept_is_shown_without_secrets_and_looking_makes_no_file() {
    let place = full();
    let before = place.snapshot();
    let shown = place.run(&["state", "show"]).await;
    assert_eq!(shown.code, HOLDS, "{shown:?}");
    for part in [
        "zbs:1 from http://store.example/zbs.tar?…",
        "6,7",
        "370",
        "zbs pool/volume",
        "read-only",
        "360",
        "node1",
        "0123",
        "0a1b",
        "waits for the controller",
    ] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    let json = place.run(&["state", "show", "--output", "json"]).await;
    assert_eq!(json.json()["outbox"][0]["task"], "0a1b");
    assert_eq!(json.json()["things"]["reservations.json"][0]["pages"], 360);
    assert!(!shown.out.contains("verysecret") && !json.out.contains("verysecret"));
    before.must_be_what_is(&place);
    put(&place, "targets/zbs-vhost.json", &json!({"version": 99}));
    let before = place.snapshot();
    let broken = place.run(&["state", "show"]).await;
    assert_eq!(broken.code, FAILED, "{broken:?}");
    assert!(broken.out.contains("targets/zbs-vhost.json is of version 99"), "{broken:?}");
    assert!(broken.out.contains("pool/volume"), "the rest is shown all the same: {broken:?}");
    let exported = place.run(&["state", "export"]).await;
    assert!(exported.code == FAILED && exported.out.is_empty(), "{exported:?}");
    before.must_be_what_is(&place);
    let empty = Place::on("two-node").run(&["state", "show"]).await;
    assert!(empty.code == HOLDS && empty.out.contains("nothing is kept"), "{empty:?}");
}

#[tokio::test]
async fn an_agent_that_may_not_write_where_its_targets_sockets_are_says_so_at_its_start() {
    let place = Place::on("two-node");
    put(&place, "targets/zbs-vhost.json", &target());
    let sockets = place.path("/var/tmp/vhost-sockets");
    fs::create_dir_all(&sockets).unwrap();
    let place =
        place.prelude(&format!("mount -t tmpfs -o ro tmpfs {} || exit 99; ", sockets.display()));
    let agent = place.ready().await;
    agent
        .logged("a desired target could not be restarted if it exits: the folder /var/tmp/vhost-sockets")
        .await;
    agent.logged("ReadWritePaths=").await;
}

#[tokio::test]
async fn every_file_has_a_version_and_older_ones_are_read() {
    let place = full().mounted();
    let mut agent = place.ready().await;
    let connect =
        json!({"hostUuid": "4567", "sendCommandUrl": "http://10.0.0.1:8080/", "version": "6"});
    assert_eq!(agent.post("/host/connect", &connect.to_string()).await.json()["success"], true);
    let file = fs::read_to_string(place.state().join("controller.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    assert_eq!((&file["version"], &file["value"]["version"]), (&json!(1), &json!("6")), "{file}");
    agent.must_live();
    let shown = place.run(&["state", "show", "--output", "json"]).await.json();
    assert_eq!(shown["things"]["controller.json"]["hostUuid"], "4567");
    assert_eq!(shown["things"]["reservations.json"][0]["pages"], 360, "it had no version");
}

#[tokio::test]
async fn what_a_newer_agent_wrote_is_set_aside_and_taken_back_after_the_next_upgrade() {
    let place = Place::on("two-node").mounted();
    let mut newer = volume();
    newer["version"] = 2.into();
    put(&place, "volumes/zbs-vhost/disk-1.json", &newer);
    let aside = place.state().join("volumes/zbs-vhost/disk-1.json.version-2");
    let mut agent = place.ready().await;
    agent.logged("it is of version 2, and this agent knows 1").await;
    assert_eq!(agent.stop().await.code(), Some(0));
    let kept: Value = serde_json::from_str(&fs::read_to_string(&aside).unwrap()).unwrap();
    assert_eq!(kept, newer);
    // To this agent, version 1 is what the next one's version was to the one before.
    put(&place, "volumes/zbs-vhost/disk-1.json.version-1", &volume());
    put(&place, "controller.json.version-1", &json!({"version": 1, "value": {"hostUuid": "old"}}));
    put(&place, "controller.json", &json!({"hostUuid": "new"}));
    let agent = place.ready().await;
    agent.logged("set aside by an older agent, was restored").await;
    agent.logged("set aside by an older agent, is not restored, because").await;
    assert!(place.state().join("controller.json.version-1").exists() && aside.exists());
    let shown = place.run(&["state", "show"]).await;
    assert!(shown.out.contains("disk-1") && shown.out.contains("new"), "{shown:?}");
}
