//! What callers may name, over real HTTP and by command: nothing that the settings do not list, however it is written, and
//! what was desired before stays.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::http::{Reply, call};
use crate::support::{Agent, Place};
use serde_json::{Value, json};

const ZBS: &str = "/zbs/primarystorage/vhost";
const TARGET: &str = "/v1/targets/a";
const HEALTH: &str = "/v1/targets/a/health?controlSock=";

/// Paths that nobody may name, as a folder and as a socket in one.
const HOSTILE: [&str; 8] = [
    "/etc",
    "/root/.ssh",
    "/run",
    "/dev",
    "/var/tmp",
    "/home/x",
    "/var/tmp/vhost-sockets-evil",
    "/var/lib/vhost-agent",
];

async fn put(agent: &Agent, path: &str, body: &Value) -> Reply {
    call(agent.address, "PUT", path, &[], &body.to_string()).await
}

/// Keeps what a node desired before its agent had bounds.
fn desires(place: &Place, folder: &str, name: &str, entry: &Value) {
    let folder = place.state().join(folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{name}.json")), entry.to_string()).unwrap();
}

fn old_target() -> Value {
    json!({
        "name": "a", "kind": "spdk", "image": "old:1", "imageTar": "/tmp/old.tar",
        "imageUrl": "http://127.0.0.1:1/old.tar", "cores": {"count": 1}, "memoryMib": 0,
        "socketDir": "/srv/old", "controlSock": "/srv/old/vhost.sock", "clientConf": "/root/old.conf",
    })
}

fn named(name: &str) -> Value {
    let mut target = old_target();
    target["name"] = json!(name);
    target
}

#[tokio::test]
async fn what_no_setting_lists_is_refused_by_every_route_before_anything_is_done() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let before = place.snapshot();
    let mut bodies = Vec::new();
    for path in HOSTILE {
        let socket = format!("{path}/x.sock");
        bodies.extend(["socketDir", "clientConf", "imageTar"].map(|field| (field, json!(path))));
        bodies.push(("controlSock", json!(socket)));
        let health = agent.get(&format!("{HEALTH}{socket}")).await;
        health.must_be_problem(403, "path-not-allowed");
        for route in ["target/health", "deactivate", "resize"] {
            let body = json!({"controlSock": socket, "bdevName": "b", "sizeMib": 1});
            let result = agent.post(&format!("{ZBS}/{route}"), &body.to_string()).await.json();
            assert_eq!(result["code"], "path-not-allowed", "{route} {result}");
        }
    }
    for image in ["evil:1", "evil/zbs-vhosts:1", "zbs-vhost:5000/evil", "evil@sha256:00"] {
        bodies.push(("image", json!(image)));
    }
    for url in
        ["http://127.0.0.1:1/x.tar", "http://2130706433/x.tar", "http://store/zbs-vhost-evil"]
    {
        bodies.push(("imageUrl", json!(url)));
    }
    for (field, value) in bodies {
        let body = json!({"kind": "spdk", "image": "zbs-vhost:1", (field): value});
        let code = match field {
            "image" => "image-not-allowed",
            "imageUrl" => "image-url-not-allowed",
            _ => "path-not-allowed",
        };
        put(&agent, TARGET, &body).await.must_be_problem(403, code);
        let dry_run = put(&agent, &format!("{TARGET}?dryRun=true"), &body).await;
        dry_run.must_be_problem(403, code);
        let compatible = json!({
            "image": "zbs-vhost:1", "installPath": "zbs://p/v", "bdevName": "b", "controllerName": "c", (field): value,
        });
        for route in ["target/ensure", "activate"] {
            let reply = agent.post(&format!("{ZBS}/{route}"), &compatible.to_string()).await.json();
            let outcome = (&reply["success"], &reply["code"]);
            assert_eq!(outcome, (&json!(false), &json!(code)), "{route} {compatible}");
        }
    }
    let ended = place.run(&["deploy", "a", "--kind", "built-in", "--socket-dir", "/etc/x"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("is closed to callers"), "{}", ended.err);
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn what_the_settings_list_and_name_is_taken() {
    let place = Place::on("two-node").mounted().settings(
        "[target]\nimage = \"own:1\"\nimage_url = \"http://127.0.0.1:1/own.tar\"\nsocket_dir = \"/srv/own\"\n\
         image_urls = [\"http://127.0.0.1:2/zbs\"]\n",
    );
    let agent = place.ready().await;
    for body in [
        json!({}),
        json!({"image": "own:1", "imageUrl": "http://127.0.0.1:1/own.tar", "socketDir": "/srv/own"}),
        json!({"socketDir": "/srv/own/b"}),
        json!({"socketDir": "/var/zbsvhost/sockets", "image": "zbs-vhost-x86_64:7"}),
        json!({"imageUrl": "http://127.0.0.1:2/zbs/a.tar", "imageTar": "/opt/zbs/a.tar"}),
        json!({"clientConf": "/etc/ceph/ceph.conf"}),
    ] {
        // As far as a node without an engine comes.
        put(&agent, TARGET, &body).await.must_be_problem(503, "engine-absent");
    }
}

#[tokio::test]
async fn folders_that_the_settings_list_replace_the_usual_ones() {
    let place = Place::on("two-node").mounted().settings(
        "[target]\nsocket_roots = [\"/srv/s\"]\nclient_conf_roots = [\"/etc/own\"]\nimage_tar_roots = [\"/srv/t\"]\n",
    );
    let agent = place.ready().await;
    for (field, listed, usual) in [
        ("socketDir", "/srv/s/a", "/var/zbsvhost/sockets"),
        ("clientConf", "/etc/own/a.conf", "/etc/ceph/ceph.conf"),
        ("imageTar", "/srv/t/a.tar", "/opt/zbs/a.tar"),
    ] {
        // As far as a node without an engine comes.
        let taken = put(&agent, TARGET, &json!({(field): listed})).await;
        taken.must_be_problem(503, "engine-absent");
        let refused = put(&agent, TARGET, &json!({(field): usual})).await;
        refused.must_be_problem(403, "path-not-allowed");
    }
}

#[tokio::test]
async fn a_call_takes_no_more_of_the_memory_and_no_more_targets_than_it_may() {
    let place = Place::on("two-node")
        .mounted()
        .settings("[pools]\nfloor_mib = 0\nfloor_percent = 0\n[target]\nmax_targets = 1\n");
    desires(&place, "targets", "b", &json!({"version": 1, "spec": named("b")}));
    let agent = place.ready().await;
    let before = place.snapshot();
    // There are 25,600 free ones; three quarters of the memory are 24,095.
    let body = json!({"hugepages": [{"pages": 25_000}], "engine": false}).to_string();
    let reply = call(agent.address, "POST", "/v1/prepare", &[], &body).await;
    assert!(reply.text().contains("pages-limit"), "{}", reply.text());
    put(&agent, TARGET, &json!({})).await.must_be_problem(503, "too-many-targets");
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn what_was_desired_before_is_not_refused_when_it_is_asked_for_again() {
    let place = Place::on("two-node").mounted();
    let target = old_target();
    desires(&place, "targets", "a", &json!({"version": 1, "spec": target}));
    let backing = json!({"kind": "aio", "path": "/root/disk", "blockSize": 512});
    let volume = json!({"name": "v", "bdev": "v", "backing": backing});
    desires(&place, "volumes/a", "v", &json!({"version": 1, "target": "a", "spec": volume}));
    let agent = place.ready().await;
    let again = json!({
        "kind": "spdk", "image": "old:1", "imageTar": "/tmp/old.tar", "socketDir": "/srv/old",
        "imageUrl": "http://127.0.0.1:1/old.tar", "clientConf": "/root/old.conf",
    });
    put(&agent, TARGET, &again).await.must_be_problem(503, "engine-absent");
    let health = agent.get(&format!("{HEALTH}/srv/old/vhost.sock")).await;
    assert_eq!(health.status, 200, "{}", health.text());
    let same = json!({"backing": backing, "readOnly": true});
    let kept = put(&agent, &format!("{TARGET}/volumes/v"), &same).await;
    kept.must_be_problem(503, "volume-not-serving");
    let log = agent.log();
    let outcome: Vec<&str> = log.lines().filter(|line| line.contains("not-allowed")).collect();
    let warned =
        outcome.iter().all(|line| line.contains("would refuse a new deploy or activation"));
    assert!(outcome.len() == 2 && warned, "it comes back as it was: {log}");
    for (field, value) in [("socketDir", "/srv/other"), ("image", "other:1")] {
        let mut other = again.clone();
        other[field] = json!(value);
        assert_eq!(put(&agent, TARGET, &other).await.status, 403, "{other}");
    }
}

#[tokio::test]
async fn volumes_lie_where_the_settings_say_and_no_link_leads_out() {
    let place = Place::on("two-node").mounted().settings(
        "[target]\nmax_volumes = 3\naio_roots = [\"/srv/disks\"]\naio_devices = [\"/dev/mapper/vg0-*\"]\n\
         raw_methods = [\"bdev_uring_create\"]\n",
    );
    desires(&place, "targets", "a", &json!({"version": 1, "spec": old_target()}));
    fs::create_dir_all(place.path("/srv/disks")).unwrap();
    symlink("../../root", place.path("/srv/disks/out")).unwrap();
    symlink("/etc/shadow", place.path("/srv/disks/absolute")).unwrap();
    let agent = place.ready().await;
    let volume = |backing: &Value| {
        let (agent, body) = (&agent, json!({"backing": backing}));
        async move { put(agent, &format!("{TARGET}/volumes/v"), &body).await }
    };
    let aio = |path: &str| json!({"kind": "aio", "path": path, "blockSize": 512});
    for path in [
        "/etc/shadow",
        "/dev/sda",
        "/dev/mapper/vg1-x",
        "/srv/disks-evil/x",
        "/srv/disks/out/x",
        "/srv/disks/out",
        "/srv/disks/absolute",
        "/dev/mapper/vg0-absent",
    ] {
        volume(&aio(path)).await.must_be_problem(403, "path-not-allowed");
        let raw =
            json!({"kind": "raw", "method": "bdev_uring_create", "params": {"filename": path}});
        volume(&raw).await.must_be_problem(403, "path-not-allowed");
        let list = json!({"volumes": [{"name": "v", "backing": aio(path)}]});
        let reply = put(&agent, &format!("{TARGET}/volumes"), &list).await;
        reply.must_be_problem(403, "path-not-allowed");
    }
    for method in ["bdev_aio_create", "bdev_nvme_attach_controller"] {
        let raw = json!({"kind": "raw", "method": method, "params": {"filename": "/srv/disks/x"}});
        volume(&raw).await.must_be_problem(403, "raw-method-not-allowed");
    }
    let none = agent.get(&format!("{TARGET}/volumes")).await;
    assert_eq!(none.json()["volumes"], json!([]), "{}", none.text());
    volume(&aio("/srv/disks/x")).await.must_be_problem(503, "volume-not-serving");
    let three = ["b", "c", "d"]
        .map(|name| json!({"name": name, "backing": {"kind": "malloc", "sizeMib": 1}}));
    let reply = put(&agent, &format!("{TARGET}/volumes"), &json!({"volumes": three})).await;
    reply.must_be_problem(400, "too-many-volumes");
    assert!(reply.text().contains("target.max_volumes"), "{}", reply.text());
}
