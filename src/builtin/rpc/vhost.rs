//! RPC methods for vhost controllers.

use std::sync::atomic::Ordering;

use nix::errno::Errno;
use serde_json::{Value, json};

use super::super::cores::Cores;
use super::super::device::BlkController;
use super::super::target::{ControllerParams, Target};
use super::fault::{RpcError, decode_vhost};

/// Parameters of a new controller; unknown members are ignored, as in SPDK.
#[derive(serde::Deserialize)]
struct Create {
    ctrlr: String,
    dev_name: String,
    #[serde(default)]
    readonly: bool,
    #[serde(default)]
    packed_ring: bool,
    cpumask: Option<String>,
    transport: Option<String>,
}

pub(super) fn create_blk_controller(
    target: &mut Target,
    params: Option<Value>,
) -> Result<Value, RpcError> {
    let create: Create = decode_vhost(params)?;
    if create.transport.is_some_and(|transport| transport != "vhost_user_blk") {
        return Err(RpcError::vhost(Errno::EINVAL));
    }
    let params = ControllerParams {
        name: create.ctrlr,
        bdev: create.dev_name,
        read_only: create.readonly,
        packed_ring: create.packed_ring,
        cores: create.cpumask,
    };
    target.create_controller(params).map_err(RpcError::vhost)?;
    Ok(json!(true))
}

#[derive(serde::Deserialize)]
struct Delete {
    ctrlr: String,
}

pub(super) fn delete_controller(
    target: &mut Target,
    params: Option<Value>,
) -> Result<Value, RpcError> {
    let Delete { ctrlr } = decode_vhost(params)?;
    target.delete_controller(&ctrlr).map_err(RpcError::vhost)?;
    Ok(json!(true))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct GetControllers {
    name: Option<String>,
}

pub(super) fn get_controllers(
    target: &mut Target,
    params: Option<Value>,
) -> Result<Value, RpcError> {
    let GetControllers { name } = decode_vhost(params)?;
    let all = target.cores.clone().unwrap_or_else(Cores::first);
    let described = |controller: &BlkController| describe(controller, &all);
    match name {
        Some(name) => {
            let controller = target.controllers.get(&name).ok_or_else(RpcError::no_controller)?;
            Ok(json!([described(controller)]))
        }
        None => Ok(target.controllers.values().map(described).collect()),
    }
}

fn describe(controller: &BlkController, all: &Cores) -> Value {
    let disk = &controller.disk;
    let cores = disk.cores.as_ref().unwrap_or(all);
    let sessions: Vec<Value> = controller
        .session()
        .iter()
        .map(|session| {
            let rings = session.running.load(Ordering::Relaxed);
            json!({
                "vid": session.vid,
                "id": 0,
                "name": format!("{}s{}", disk.name, session.vid),
                "started": rings > 0,
                "max_queues": rings,
                "inflight_task_cnt": session.in_flight.load(Ordering::Relaxed),
            })
        })
        .collect();
    // A bdev that was deleted while its controller exists is reported without a name.
    let bdev = (!disk.bdev.is_removed()).then_some(&disk.bdev.name);
    json!({
        "ctrlr": disk.name,
        "cpumask": cores.mask(),
        "delay_base_us": 0,
        "iops_threshold": 60000,
        "socket": controller.path(),
        "sessions": sessions,
        "backend_specific": {
            "block": {
                "readonly": disk.read_only,
                "bdev": bdev,
                "transport": "vhost_user_blk",
                "packed_ring": disk.packed_ring,
            },
        },
    })
}
