//! The probe against a device that is not of this house: QEMU's, behind a control socket that is played.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::Place;

const DAEMON: &str = "qemu-storage-daemon";
const METHODS: [&str; 5] = [
    "bdev_malloc_create",
    "bdev_malloc_delete",
    "vhost_create_blk_controller",
    "vhost_delete_controller",
    "vhost_get_controllers",
];

/// A control socket whose controllers are QEMU's, each a process that ends with it.
struct Played {
    folder: TempDir,
    backing: String,
    controllers: Mutex<BTreeMap<String, Child>>,
}

impl Drop for Played {
    fn drop(&mut self) {
        self.controllers.get_mut().unwrap().values_mut().for_each(end);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Played {
    /// Serves; `backing` is QEMU's word for what is behind the disks.
    fn serve(backing: impl Fn(&Path) -> String) -> Arc<Played> {
        let folder = tempfile::tempdir().unwrap();
        let backing = backing(folder.path());
        let listener = UnixListener::bind(folder.path().join("rpc.sock")).unwrap();
        let played = Arc::new(Played { folder, backing, controllers: Mutex::default() });
        let weak = Arc::downgrade(&played);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let weak = weak.clone();
                std::thread::spawn(move || {
                    answer(stream.unwrap(), |call| weak.upgrade()?.result(call))
                });
            }
        });
        played
    }

    fn result(&self, call: &Value) -> Option<Value> {
        let name = call["params"]["ctrlr"].as_str().unwrap_or_default().to_string();
        let mut controllers = self.controllers.lock().unwrap();
        Some(match call["method"].as_str().unwrap() {
            // Of that name any memory is good enough, so that no hugepage has to be free here.
            "spdk_get_version" => json!({"version": "vhost-agent target, played"}),
            "rpc_get_methods" => json!(METHODS),
            "bdev_get_bdevs" => json!([]),
            "vhost_get_controllers" => controllers.keys().map(|it| json!({"ctrlr": it})).collect(),
            "vhost_create_blk_controller" => {
                controllers.insert(name.clone(), self.start(&self.folder.path().join(name)));
                json!(true)
            }
            "vhost_delete_controller" => {
                controllers.remove(&name).iter_mut().for_each(end);
                std::fs::remove_file(self.folder.path().join(name)).unwrap();
                json!(true)
            }
            _ => json!(true),
        })
    }

    fn start(&self, socket: &Path) -> Child {
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        );
        let blockdev = format!("{},node-name=n", self.backing);
        let mut command = Command::new(DAEMON);
        let child = command.args(["--blockdev", &blockdev, "--export", &export]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "{DAEMON} does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }
}

/// Answers each call on a connection until there is no result any more.
fn answer(mut stream: UnixStream, result: impl Fn(&Value) -> Option<Value>) {
    let (mut bytes, mut more) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut more) {
        bytes.extend_from_slice(&more[..count]);
        let mut calls = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        while let Some(Ok(call)) = calls.next() {
            let Some(result) = result(&call) else { return };
            let reply = json!({"id": call["id"], "result": result});
            let _ = stream.write_all(format!("{reply}\n").as_bytes());
        }
        let taken = calls.byte_offset();
        bytes.drain(..taken);
    }
}

/// What the deep probe says of disks with that behind them; `None` where QEMU is not installed.
async fn deep(backing: impl Fn(&Path) -> String) -> Option<Value> {
    if Command::new(DAEMON).arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no {DAEMON} here (qemu-system-common)");
        return None;
    }
    let played = Played::serve(backing);
    let place = Place::on("two-node").settings(super::ROOTS);
    std::os::unix::fs::symlink(played.folder.path(), place.path("/t")).unwrap();
    let words = ["health", "--deep", "--control-sock", "/t/rpc.sock", "--output", "json"];
    let deep = place.run(&words).await.json()["deep"].clone();
    assert!(played.controllers.lock().unwrap().is_empty(), "a controller is left");
    Some(deep)
}

#[tokio::test]
async fn io_through_a_device_of_qemu_is_proven() {
    let file = |folder: &Path| {
        let path = folder.join("disk.img");
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        format!("driver=file,filename={}", path.display())
    };
    let Some(deep) = deep(file).await else { return };
    assert_eq!((&deep["ok"], &deep["bytes"]), (&json!(true), &json!(1 << 20)), "{deep}");
}

#[tokio::test]
async fn a_device_that_loses_what_it_is_given_is_found_out() {
    let loses = |_: &Path| "driver=null-co,size=1048576,read-zeroes=on".to_string();
    let Some(deep) = deep(loses).await else { return };
    assert_eq!((&deep["ok"], &deep["error"]["code"]), (&json!(false), &json!("deep-data-differs")));
}

#[tokio::test]
async fn a_device_error_is_reported_with_the_failed_request() {
    // Smaller than the disk that it stands for: what is beyond its end fails.
    let small = |_: &Path| "driver=null-co,size=524288".to_string();
    let Some(deep) = deep(small).await else { return };
    let error = &deep["error"];
    assert_eq!(error["code"], "deep-io-failed", "{deep}");
    let text = error["text"].as_str().unwrap();
    assert!(text.contains("a write request of 131072 bytes at byte 524288 failed"), "{text}");
}
