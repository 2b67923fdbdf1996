//! The control socket: every method and every error.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::guest::Guest;
use super::process::{TIMEOUT, Target};

const NO_DEVICE: &str = "No such device";
const DECODE: &str = "spdk_json_decode_object failed";

pub(crate) fn malloc(target: &Target, name: &str) {
    let params = json!({"name": name, "num_blocks": 2048, "block_size": 512});
    assert_eq!(target.call("bdev_malloc_create", params), json!(name));
}

/// Waits until a controller has no VM.
pub(crate) fn wait_for_no_session(target: &Target, name: &str) {
    let deadline = Instant::now() + TIMEOUT;
    let mut rpc = target.rpc();
    while rpc.call("vhost_get_controllers", json!({"name": name}))["result"][0]["sessions"]
        != json!([])
    {
        assert!(Instant::now() < deadline, "the session does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Calls that must fail: method, parameters, code, message.
fn faults(target: &Target, cases: &[(&str, Value, i64, &str)]) {
    for (method, params, code, message) in cases {
        let found = target.fault(method, params.clone());
        assert_eq!(found, (*code, message.to_string()), "{method} {params}");
    }
}

#[test]
fn the_process_reports_its_version() {
    let target = Target::new(&["-m", "0x1", "-s", "64"]);
    let version = target.call("spdk_get_version", Value::Null);
    assert_eq!(version["fields"]["minor"], json!(1));
    assert_eq!(target.call("framework_wait_init", Value::Null), json!(true));
    let reactors = target.call("framework_get_reactors", Value::Null);
    assert_eq!(reactors["reactors"][0]["lcore"], json!(0));
    assert_eq!(reactors["pid"], json!(target.child.as_ref().unwrap().id()));
    let methods = target.call("rpc_get_methods", json!({"current": true}));
    let methods: Vec<&str> =
        methods.as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert!(methods.contains(&"vhost_create_blk_controller"));
    assert!(!methods.contains(&"framework_start_init") && !methods.contains(&"bdev_zbs_create"));
    for method in ["spdk_get_version", "framework_get_reactors"] {
        assert_eq!(target.fault(method, json!({})).0, -32602);
    }
    assert_eq!(target.fault("framework_start_init", Value::Null).0, -1);
    // It has no pools of buffers: a request's data is in the guest's memory.
    for method in ["no_such_method", "iobuf_get_stats"] {
        assert_eq!(target.fault(method, Value::Null), (-32601, "Method not found".into()));
        assert!(!methods.contains(&method));
    }
}

#[test]
fn bdevs_are_made_listed_resized_and_deleted() {
    let target = Target::new(&["-s", "64"]);
    assert_eq!(target.call("bdev_get_bdevs", Value::Null), json!([]));
    malloc(&target, "m");
    let unnamed = json!({"num_blocks": 8, "block_size": 4096});
    assert_eq!(target.call("bdev_malloc_create", unnamed), json!("Malloc0"));
    let null = json!({"name": "n", "num_blocks": 2048, "block_size": 512});
    assert_eq!(target.call("bdev_null_create", null), json!("n"));
    let file = target.image("f.img", 1 << 20);
    let aio = json!({"name": "a", "filename": file, "block_size": 512});
    assert_eq!(target.call("bdev_aio_create", aio), json!("a"));
    let again = json!({"name": "a2", "filename": file, "block_size": 4096});
    assert_eq!(target.call("bdev_aio_create", again), json!("a2"));
    let list = target.call("bdev_get_bdevs", Value::Null);
    let names: Vec<&Value> = list.as_array().unwrap().iter().map(|bdev| &bdev["name"]).collect();
    assert_eq!(names, ["Malloc0", "a", "a2", "m", "n"]);
    let one = target.call("bdev_get_bdevs", json!({"name": "a2"}));
    assert_eq!((&one[0]["block_size"], &one[0]["num_blocks"]), (&json!(4096), &json!(256)));
    let by_alias = target.call("bdev_get_bdevs", json!({"name": one[0]["uuid"]}));
    assert_eq!(by_alias, one);
    assert_eq!(target.call("bdev_null_resize", json!({"name": "n", "new_size": 2})), json!(true));
    let one = target.call("bdev_get_bdevs", json!({"name": "n"}));
    assert_eq!(one[0]["num_blocks"], json!(4096));
    for (method, name) in [
        ("bdev_malloc_delete", "m"),
        ("bdev_malloc_delete", "Malloc0"),
        ("bdev_null_delete", "n"),
        ("bdev_aio_delete", "a"),
        ("bdev_aio_delete", "a2"),
    ] {
        assert_eq!(target.call(method, json!({"name": name})), json!(true));
    }
    assert_eq!(target.call("bdev_get_bdevs", Value::Null), json!([]));
}

#[test]
fn bdev_methods_fail_with_the_errors_of_spdk() {
    let target = Target::new(&["-s", "1"]);
    let file = target.image("f.img", 1 << 20);
    let file = file.to_str().unwrap();
    malloc(&target, "m");
    target.call("bdev_aio_create", json!({"name": "a", "filename": file, "block_size": 512}));
    target.call("bdev_null_create", json!({"name": "n", "num_blocks": 8192, "block_size": 512}));
    std::fs::File::options().write(true).open(file).unwrap().set_len(512 << 10).unwrap();
    let memory = |name: &str, blocks: u64, size: u64| json!({"name": name, "num_blocks": blocks, "block_size": size});
    let aio = |name: &str, file: &str, size: u64| json!({"name": name, "filename": file, "block_size": size});
    let folder = target.dir.path().to_str().unwrap();
    faults(
        &target,
        &[
            ("bdev_get_bdevs", json!({"name": "x"}), -19, NO_DEVICE),
            ("bdev_malloc_delete", json!({"name": "x"}), -19, NO_DEVICE),
            ("bdev_aio_delete", json!({"name": "m"}), -19, NO_DEVICE),
            ("bdev_aio_rescan", json!({"name": "x"}), -19, NO_DEVICE),
            ("bdev_null_resize", json!({"name": "x", "new_size": 1}), -19, NO_DEVICE),
            ("bdev_get_iostat", json!({"name": "x"}), -19, NO_DEVICE),
            ("bdev_malloc_create", memory("m", 1, 512), -17, "File exists"),
            ("bdev_aio_create", aio("m", file, 512), -17, "File exists"),
            ("bdev_aio_create", aio("b", "/no/such/file", 512), -2, "No such file or directory"),
            ("bdev_aio_create", aio("b", folder, 512), -21, "Is a directory"),
            ("bdev_aio_create", json!({"name": "b", "filename": file}), -22, "Invalid argument"),
            ("bdev_aio_create", aio("b", file, 1000), -22, "Invalid argument"),
            ("bdev_malloc_create", memory("b", 0, 512), -22, "Invalid argument"),
            ("bdev_malloc_create", memory("b", 8, 100), -22, "Invalid argument"),
            ("bdev_malloc_create", memory("b", 4096, 512), -12, "Cannot allocate memory"),
            ("bdev_malloc_create", memory("b", u64::MAX, 512), -12, "Cannot allocate memory"),
            ("bdev_aio_rescan", json!({"name": "a"}), -16, "Device or resource busy"),
            ("bdev_null_resize", json!({"name": "n", "new_size": 1}), -22, "Invalid argument"),
            ("bdev_malloc_create", json!({"name": "b"}), -32603, DECODE),
            (
                "bdev_malloc_create",
                json!({"num_blocks": 1, "block_size": 512, "x": 1}),
                -32603,
                DECODE,
            ),
            ("bdev_aio_create", Value::Null, -32603, DECODE),
            ("bdev_zbs_create", json!({"name": "z", "file": "x"}), -32601, "Method not found"),
        ],
    );
}

#[test]
fn zbs_names_stand_for_files_of_their_folder_only() {
    let volumes = tempfile::tempdir().unwrap();
    let target = Target::new(&["--zbs-dir", volumes.path().to_str().unwrap()]);
    let create = |name: &str, file: &str| json!({"name": name, "file": file});
    target.call("bdev_zbs_create", create("z", "zbs://pool/volume"));
    assert_eq!(std::fs::metadata(volumes.path().join("pool/volume")).unwrap().len(), 1 << 30);
    for file in ["../x", "zbs://a/../../x", "", "a//b"] {
        let fault = target.fault("bdev_zbs_create", create("y", file));
        assert_eq!(fault, (-22, "Invalid argument".into()), "{file}");
    }
    assert_eq!(target.fault("bdev_zbs_delete", json!({"name": "x"})).0, -19);
    target.call("bdev_zbs_delete", json!({"name": "z"}));
    assert!(volumes.path().join("pool/volume").exists());
}

#[test]
fn controllers_are_made_listed_and_deleted() {
    let target = Target::new(&["-m", "0x1"]);
    malloc(&target, "m");
    assert_eq!(target.call("vhost_get_controllers", Value::Null), json!([]));
    let create = json!({
        "ctrlr": "c", "dev_name": "m", "readonly": true, "cpumask": "0x1", "packed_ring": true,
        "unknown": 1,
    });
    assert_eq!(target.call("vhost_create_blk_controller", create), json!(true));
    target.call("vhost_create_blk_controller", json!({"ctrlr": "c2", "dev_name": "m"}));
    let one = target.call("vhost_get_controllers", json!({"name": "c"}));
    assert_eq!(
        one,
        json!([{
            "ctrlr": "c", "cpumask": "0x1", "delay_base_us": 0, "iops_threshold": 60000,
            "socket": target.path("c"), "sessions": [],
            "backend_specific": {"block": {
                "readonly": true, "bdev": "m", "transport": "vhost_user_blk", "packed_ring": true,
            }},
        }])
    );
    assert_eq!(target.call("vhost_get_controllers", Value::Null).as_array().unwrap().len(), 2);
    target.call("vhost_delete_controller", json!({"ctrlr": "c"}));
    assert!(!target.path("c").exists() && target.path("c2").exists());
}

#[test]
fn vhost_methods_fail_with_the_errors_of_spdk() {
    let target = Target::new(&["-m", "0x1"]);
    malloc(&target, "m");
    let create = |name: &str| json!({"ctrlr": name, "dev_name": "m"});
    target.call("vhost_create_blk_controller", create("c"));
    std::fs::write(target.path("file"), "mine").unwrap();
    let _other = UnixListener::bind(target.path("live")).unwrap();
    drop(UnixListener::bind(target.path("stale")).unwrap());
    let long = "x".repeat(107);
    let (invalid, io) = ("Invalid argument", "Input/output error");
    faults(
        &target,
        &[
            (
                "vhost_create_blk_controller",
                json!({"ctrlr": "d", "dev_name": "x"}),
                -32602,
                NO_DEVICE,
            ),
            ("vhost_delete_controller", json!({"ctrlr": "x"}), -32602, NO_DEVICE),
            ("vhost_get_controllers", json!({"name": "x"}), -32603, NO_DEVICE),
            ("vhost_create_blk_controller", create("c"), -32602, "File exists"),
            ("vhost_create_blk_controller", json!({"ctrlr": "d"}), -32602, invalid),
            ("vhost_delete_controller", Value::Null, -32602, invalid),
            ("vhost_create_blk_controller", create("../d"), -32602, invalid),
            ("vhost_create_blk_controller", create("a/d"), -32602, invalid),
            ("vhost_create_blk_controller", create(""), -32602, invalid),
            ("vhost_create_blk_controller", create(&long), -32602, invalid),
            ("vhost_create_blk_controller", create("file"), -32602, io),
            ("vhost_create_blk_controller", create("live"), -32602, io),
        ],
    );
    for (member, value) in [("cpumask", "0x80"), ("cpumask", "x"), ("transport", "x")] {
        let mut params = create("d");
        params[member] = json!(value);
        let fault = target.fault("vhost_create_blk_controller", params);
        assert_eq!(fault, (-32602, invalid.into()), "{member} {value}");
    }
    assert_eq!(std::fs::read(target.path("file")).unwrap(), b"mine");
    target.call("vhost_create_blk_controller", create("stale"));
}

#[test]
fn a_controller_with_a_vm_is_reported_and_not_deleted() {
    let target = Target::new(&[]);
    malloc(&target, "m");
    target.call("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "m"}));
    let mut guest = Guest::new(3);
    guest.connect(&target.path("c"));
    let session = &target.call("vhost_get_controllers", json!({"name": "c"}))[0]["sessions"][0];
    assert_eq!((&session["started"], &session["max_queues"]), (&json!(true), &json!(3)));
    let fault = target.fault("vhost_delete_controller", json!({"ctrlr": "c"}));
    assert_eq!(fault, (-32602, "Device or resource busy".into()));
    drop(guest);
    wait_for_no_session(&target, "c");
    target.call("vhost_delete_controller", json!({"ctrlr": "c"}));
}
