//! The process: how it starts, and how it ends.

use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::process::{Target, ended};
use super::rpc::malloc;

#[test]
fn until_start_init_only_start_up_methods_are_served() {
    let target = Target::new(&["--wait-for-rpc"]);
    assert_eq!(target.fault("bdev_get_bdevs", Value::Null).0, -1);
    let methods = target.call("rpc_get_methods", json!({"current": true}));
    let expected =
        ["framework_start_init", "framework_wait_init", "rpc_get_methods", "spdk_get_version"];
    assert_eq!(methods, json!(expected));
    let mut waits = target.rpc();
    waits.send(r#"{"jsonrpc":"2.0","id":1,"method":"framework_wait_init"}"#);
    assert_eq!(target.fault("framework_start_init", json!({})).0, -32602);
    assert_eq!(target.call("framework_start_init", Value::Null), json!(true));
    assert_eq!(waits.answer().unwrap()["result"], json!(true));
    assert_eq!(target.call("bdev_get_bdevs", Value::Null), json!([]));
}

#[test]
fn a_signal_ends_it_and_nothing_is_left_behind() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut target = Target::new(&[]);
        malloc(&target, "m");
        target.call("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "m"}));
        let (status, said) = target.end(signal);
        assert!(status.success(), "{said}");
        assert_eq!(std::fs::read_dir(target.dir.path()).unwrap().count(), 0);
    }
    let mut target = Target::new(&[]);
    assert_eq!(target.call("spdk_kill_instance", json!({"sig_name": "SIGTERM"})), json!(true));
    let (status, said) = ended(target.child.as_mut().unwrap());
    assert!(status.success(), "{said}");
}

#[test]
fn a_socket_of_a_dead_target_is_replaced_and_of_a_live_one_is_not() {
    let mut target = Target::new(&[]);
    let mut second = target.command().spawn().unwrap();
    let (status, said) = ended(&mut second);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("in use by another process"), "{said}");
    assert!(target.call("spdk_get_version", Value::Null).is_object());
    use std::os::unix::fs::PermissionsExt;
    let lock = std::fs::metadata(target.path("rpc.sock.lock")).unwrap();
    assert_eq!(lock.permissions().mode() & 0o777, 0o600);
    target.end(Signal::SIGKILL);
    assert!(UnixStream::connect(target.path("rpc.sock")).is_err());
    target.start();
    assert!(target.call("spdk_get_version", Value::Null).is_object());
}

#[test]
fn a_core_that_does_not_exist_is_named() {
    let target = Target::unstarted(&["-m", "[0,1000]"]);
    let (status, said) = ended(&mut target.command().spawn().unwrap());
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("lcore 1000 unavailable"), "{said}");
}

#[test]
fn flags_of_spdk_that_mean_nothing_here_are_taken() {
    let flags = ["-s", "512", "--huge-dir", "/dev/hugepages", "--iova-mode", "va", "-z", "/etc/x"];
    let target = Target::new(&flags);
    assert!(target.call("spdk_get_version", Value::Null).is_object());
}
