//! The control socket as a stream of requests.

use std::io::{Read, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{TIMEOUT, Target};
use super::rpc::malloc;

#[test]
fn pipelined_requests_are_answered_in_order_and_with_their_ids() {
    let target = Target::new(&[]);
    let mut rpc = target.rpc();
    let ids = [json!(1), json!("two"), json!(null), json!(-4.5), json!(u64::MAX)];
    let request = |id: &Value| json!({"jsonrpc": "2.0", "method": "spdk_get_version", "id": id});
    rpc.send(&ids.iter().map(|id| request(id).to_string()).collect::<String>());
    for id in ids {
        assert_eq!(rpc.answer().unwrap()["id"], id);
    }
    // A notification is executed and not answered.
    rpc.send(r#"{"jsonrpc":"2.0","method":"bdev_null_create","params":{"name":"n","num_blocks":8,"block_size":512}}"#);
    assert_eq!(rpc.call("bdev_get_bdevs", json!({"name": "n"}))["result"][0]["name"], json!("n"));
}

#[test]
fn half_a_request_waits_for_the_rest() {
    let target = Target::new(&[]);
    let mut rpc = target.rpc();
    rpc.send(r#"{"jsonrpc":"2.0","id":1,"meth"#);
    assert!(target.call("spdk_get_version", Value::Null).is_object());
    rpc.send(r#"od":"spdk_get_version"}"#);
    assert_eq!(rpc.answer().unwrap()["id"], json!(1));
}

#[test]
fn what_is_no_json_or_too_much_closes_its_connection_only() {
    let target = Target::new(&[]);
    let mut other = target.rpc();
    let mut rpc = target.rpc();
    rpc.send("{]");
    assert_eq!(rpc.answer(), None);
    let mut rpc = target.rpc();
    // It may be closed before all is written.
    let _ = rpc.stream.get_mut().write_all(format!("\"{}", "x".repeat(300_000)).as_bytes());
    assert_eq!(rpc.answer(), None);
    assert!(other.call("spdk_get_version", Value::Null)["result"].is_object());
}

#[test]
fn an_invalid_request_gets_an_error() {
    let target = Target::new(&[]);
    let mut rpc = target.rpc();
    for text in [
        r#"{"jsonrpc":"1.0","id":1,"method":"spdk_get_version"}"#,
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"spdk_get_version","params":1}"#,
        r#"[{"jsonrpc":"2.0","id":1,"method":"spdk_get_version"}]"#,
        "7 ",
    ] {
        rpc.send(text);
        assert_eq!(rpc.answer().unwrap()["error"]["code"], json!(-32600), "{text}");
    }
}

#[test]
fn the_65th_connection_waits_until_one_of_64_is_gone() {
    let target = Target::new(&[]);
    let mut served: Vec<_> = (0..64).map(|_| target.rpc()).collect();
    for rpc in &mut served {
        rpc.call("spdk_get_version", Value::Null);
    }
    let mut waiting = target.rpc();
    waiting.send(r#"{"jsonrpc":"2.0","id":1,"method":"spdk_get_version"}"#);
    waiting.stream.get_ref().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let early = waiting.stream.get_mut().read(&mut [0; 1]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(served.pop());
    waiting.stream.get_ref().set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(waiting.answer().unwrap()["id"], json!(1));
}

#[test]
fn a_caller_can_wait_for_a_bdev() {
    let target = Target::new(&[]);
    let mut rpc = target.rpc();
    let ask = |timeout: u64| {
        json!({"jsonrpc": "2.0", "id": 1, "method": "bdev_get_bdevs",
            "params": {"name": "m", "timeout": timeout}})
    };
    rpc.send(&ask(20).to_string());
    assert_eq!(rpc.answer().unwrap()["error"]["code"], json!(-19));
    rpc.send(&ask(20_000).to_string());
    malloc(&target, "m");
    assert_eq!(rpc.answer().unwrap()["result"][0]["name"], json!("m"));
}
