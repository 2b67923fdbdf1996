//! `/host/connect` where no kvmagent is behind the agent: with the answer as the response, and with a callback. Its versions
//! are those that programs of the node print; the programs are played by scripts.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::controller::Controller;
use crate::support::{Place, task, until};
use serde_json::json;
use tokio::time::Instant;

const CONNECT: &str = r#"{"hostUuid":"9d3f6a","sendCommandUrl":"http://10.0.0.1:8080/zstack/asyncrest/sendcommand","version":"4.8.0","iptablesRules":["-A INPUT"],"tcpServerPort":8081,"ignoreMsrs":true}"#;

/// A node with these programs in `/usr/sbin`.
fn node(programs: &[(&str, &str)]) -> Place {
    let place = Place::on("two-node");
    fs::create_dir_all(place.path("usr/sbin")).unwrap();
    for (name, script) in programs {
        let program = place.path(&format!("usr/sbin/{name}"));
        let script = script.replace("FOLDER", &place.folder().display().to_string());
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    place
}

#[tokio::test]
async fn connect_is_answered_with_the_versions_or_called_back_with_them() {
    let place = node(&[
        ("libvirtd", "[ \"$*\" = --version ] && echo 'libvirtd (libvirt) 9.0.0'"),
        ("qemu-kvm", "[ \"$*\" = --version ] && echo 'QEMU emulator version 7.2.17 (x)'"),
    ]);
    let agent = place.ready().await;
    let versions = json!({
        "success": true, "error": "", "libvirtVersion": "9.0.0", "qemuVersion": "7.2.17",
    });
    let reply = agent.post("/host/connect", CONNECT).await;
    assert_eq!((reply.status, reply.json()), (200, versions.clone()));
    let controller = Controller::start().await;
    let other = CONNECT.replace("9d3f6a", "0123");
    let reply = agent.post_task("/host/connect", &task(1), &controller.url, &other).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    let seen = controller.wait(1).await;
    assert_eq!((seen[0].header("taskuuid"), seen[0].json()), (Some(task(1).as_str()), versions));
    assert_eq!(agent.post("/host/ping", "{}").await.json()["hostUuid"], "0123");
}

#[tokio::test]
async fn program_that_hangs_is_killed_and_its_version_unknown() {
    let place = node(&[("libvirtd", "echo $$ >FOLDER/pid; sleep 600")]);
    let agent = place.ready().await;
    let began = Instant::now();
    let reply = agent.post("/host/connect", CONNECT).await.json();
    assert_eq!((&reply["success"], &reply["libvirtVersion"]), (&json!(true), &json!("")));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let pid = fs::read_to_string(place.folder().join("pid")).unwrap();
    until("it is gone", async || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    })
    .await;
}
