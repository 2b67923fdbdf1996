//! Every call that a controller or an operator can make, with every field that it can have.

use serde_json::{Value, json};

/// What the compatible routes begin with.
pub(crate) const ZBS: &str = "/zbs/primarystorage/vhost";

/// Every compatible route with a body that has every field it is known to get.
pub(crate) fn calls() -> Vec<(String, Value)> {
    let target = json!({
        "image": "zbs-vhost:1", "cores": "[1]", "coreCount": 2, "socketDir": "/var/tmp/vhost-sockets",
        "controlSock": "/var/tmp/vhost-sockets/vhost.sock", "clientConf": "/etc/zbs/client.conf",
        "hugepageNr": 1, "imageTar": "/opt/zbs/none.tar", "imageUrl": "http://127.0.0.1:1/none.tar",
    });
    let ssh = json!({
        "hostIp": "127.0.0.1", "sshPort": 22, "sshUsername": "root", "sshPassword": "x",
        "hugepageSize": 2, "hugepageDir": "/dev/hugepages2m",
    });
    let with = |base: &Value, more: Value| {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let volume =
        json!({"installPath": "zbs://pool/volume", "bdevName": "b", "controllerName": "c"});
    let zbs = |route: &str, body: Value| (format!("{ZBS}/{route}"), body);
    vec![
        zbs("target/prepareenv", json!({"hugepageNr": 1})),
        zbs(
            "target/health",
            json!({"containerName": "zbs-vhost", "controlSock": "/var/tmp/vhost-sockets/v.sock"}),
        ),
        zbs("target/ensure", target.clone()),
        zbs("target/ensure", with(&target, json!({"containerName": "good"}))),
        zbs("activate", with(&target, volume)),
        zbs(
            "deactivate",
            json!({"controlSock": "/var/tmp/vhost-sockets/v.sock", "bdevName": "b", "controllerName": "c"}),
        ),
        zbs(
            "resize",
            json!({"controlSock": "/var/tmp/vhost-sockets/v.sock", "bdevName": "b", "sizeMib": 1}),
        ),
        zbs("deploy", ssh.clone()),
        zbs("destroy", ssh.clone()),
        zbs("bdev/create", with(&ssh, json!({"logicalPool": "p", "volume": "v", "bdevName": "b"}))),
        zbs("bdev/delete", with(&ssh, json!({"bdevName": "b"}))),
        // `check` is not among them: it waits for a target, and none is here. It has tests of its own.
        (
            "/zbs/primarystorage/check/host/connection".to_string(),
            json!({"hostUuid": "5f0c", "path": "cbd:p/l/v", "uuid": "u", "addr": "127.0.0.1"}),
        ),
        (
            "/zbs/primarystorage/host/updatedependency".to_string(),
            json!({"updatePackages": "libcbd", "zstackRepo": "zstack-mn"}),
        ),
        (
            "/host/connect".to_string(),
            json!({
                "hostUuid": "5f0c", "sendCommandUrl": "http://127.0.0.1:1/x", "version": "5",
                "iptablesRules": "", "tcpServerPort": 1,
            }),
        ),
        ("/host/ping".to_string(), json!({"hostUuid": "5f0c"})),
    ]
}

/// The body with each of its fields, one after the other, being `text`.
pub(crate) fn in_each_field<'a>(
    body: &'a Value,
    text: &'a str,
) -> impl Iterator<Item = Value> + 'a {
    body.as_object().unwrap().keys().map(move |field| {
        let mut changed = body.clone();
        changed[field] = json!(text);
        changed
    })
}

/// Every native route that takes a body, with a body that has every field.
pub(crate) fn native_calls() -> Vec<(&'static str, String, Value)> {
    let target = json!({
        "kind": "zbs", "image": "zbs-vhost:1", "imageTar": "/var/lib/zstack/none.tar",
        "imageUrl": "http://127.0.0.1:1/none.tar", "imageSha256": "0".repeat(64), "cores": "[1]",
        "socketDir": "/var/tmp/vhost-sockets/good", "controlSock": "/var/tmp/vhost-sockets/good/vhost.sock",
        "clientConf": "/etc/zbs/client.conf", "memoryMib": 64, "cgroupParent": "zstone.vhost.slice",
    });
    let volume = |backing: Value| json!({"name": "v", "bdev": "b", "backing": backing, "cpumask": "0x2", "readOnly": true});
    let backings = [
        json!({"kind": "zbs", "path": "pool/volume"}),
        json!({"kind": "aio", "path": "/srv/disks/none", "blockSize": 512}),
        json!({"kind": "malloc", "sizeMib": 1}),
        json!({"kind": "raw", "method": "bdev_null_create", "params": {"filename": "x"}}),
        json!({
            "kind": "raw", "method": "bdev_null_create", "params": {}, "deleteMethod": "bdev_null_delete",
        }),
    ];
    let mut all = vec![
        ("PUT", "/v1/targets/good".to_string(), target.clone()),
        ("DELETE", "/v1/targets/good".to_string(), target),
        ("POST", "/v1/prepare".to_string(), json!({"hugepages": [{"pages": 1}], "engine": false})),
        (
            "POST",
            "/v1/prepare".to_string(),
            json!({
                "hugepages": [{"pages": 1, "sizeMib": 2, "nodes": [0], "moveShortfall": true}],
                "keepPartial": true, "engine": false,
            }),
        ),
        ("POST", "/v1/reclaim".to_string(), json!({"dryRun": true})),
        ("POST", "/v1/reclaim".to_string(), json!({"sizeKib": 2048, "node": 0, "dryRun": true})),
        ("PUT", "/v1/targets/good".to_string(), json!({"kind": "built-in", "coreCount": 1})),
        ("POST", "/v1/targets/good/volumes/v/resize".to_string(), json!({"sizeMib": 1})),
    ];
    for backing in backings {
        let one = volume(backing);
        all.push(("PUT", "/v1/targets/good/volumes".to_string(), json!({"volumes": [one]})));
        let mut alone = one;
        alone.as_object_mut().unwrap().remove("name");
        all.push(("PUT", "/v1/targets/good/volumes/v".to_string(), alone));
    }
    all
}

/// The document with each of its texts, at any depth, being `text`.
pub(crate) fn in_each_text(body: &Value, text: &str) -> Vec<Value> {
    let changed: Vec<(String, Value)> = match body {
        Value::Object(members) => {
            members.iter().flat_map(|(name, value)| within(name, value, text)).collect()
        }
        Value::Array(values) => {
            let each = values.iter().enumerate();
            each.flat_map(|(at, value)| within(&at.to_string(), value, text)).collect()
        }
        _ => return vec![json!(text)],
    };
    let put = |(name, value): (String, Value)| {
        let mut document = body.clone();
        match &mut document {
            Value::Array(values) => values[name.parse::<usize>().unwrap()] = value,
            document => document[name] = value,
        }
        document
    };
    changed.into_iter().map(put).collect()
}

fn within(name: &str, value: &Value, text: &str) -> Vec<(String, Value)> {
    in_each_text(value, text).into_iter().map(|changed| (name.to_string(), changed)).collect()
}
