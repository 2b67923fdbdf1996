//! Table of all RPC methods of a target, and their calls.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::target::Target;
use super::fault::{INVALID_STATE, METHOD_NOT_FOUND, RpcError};
use super::{bdev, framework, vhost};

type MethodFn = fn(&mut Target, Option<Value>) -> Result<Value, RpcError>;

/// State of the target in which a method may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    StartUp,
    Serving,
    /// While serving, and only with a folder of ZBS volumes.
    Zbs,
}

const METHODS: &[(&str, When, MethodFn)] = &[
    ("bdev_aio_create", When::Serving, bdev::aio_create),
    ("bdev_aio_delete", When::Serving, bdev::aio_delete),
    ("bdev_aio_rescan", When::Serving, bdev::aio_rescan),
    ("bdev_get_bdevs", When::Serving, bdev::get_bdevs),
    ("bdev_get_iostat", When::Serving, bdev::get_iostat),
    ("bdev_malloc_create", When::Serving, bdev::malloc_create),
    ("bdev_malloc_delete", When::Serving, bdev::malloc_delete),
    ("bdev_null_create", When::Serving, bdev::null_create),
    ("bdev_null_delete", When::Serving, bdev::null_delete),
    ("bdev_null_resize", When::Serving, bdev::null_resize),
    ("bdev_zbs_create", When::Zbs, bdev::zbs_create),
    ("bdev_zbs_delete", When::Zbs, bdev::zbs_delete),
    ("bdev_zbs_resize", When::Zbs, bdev::zbs_resize),
    ("framework_get_reactors", When::Serving, framework::get_reactors),
    ("framework_start_init", When::StartUp, framework::start_init),
    ("framework_wait_init", When::Always, framework::wait_init),
    ("rpc_get_methods", When::Always, get_methods),
    ("spdk_get_version", When::Always, framework::get_version),
    ("spdk_kill_instance", When::Serving, framework::kill_instance),
    ("vhost_create_blk_controller", When::Serving, vhost::create_blk_controller),
    ("vhost_delete_controller", When::Serving, vhost::delete_controller),
    ("vhost_get_controllers", When::Serving, vhost::get_controllers),
];

#[derive(Debug)]
pub(super) enum CallOutcome {
    Now(Result<Value, RpcError>),
    /// No answer yet: the call waits and is retried, for this time at most; `None` means no time limit.
    Later(Option<Duration>),
}

fn is_known(target: &Target, when: When) -> bool {
    when != When::Zbs || target.zbs.is_some()
}

fn is_current(target: &Target, when: When) -> bool {
    match when {
        When::Always => true,
        When::StartUp => !target.serving,
        When::Serving | When::Zbs => target.serving,
    }
}

pub(super) fn call(target: &mut Target, name: &str, params: Option<Value>) -> CallOutcome {
    let found = METHODS.iter().find(|(known, when, _)| *known == name && is_known(target, *when));
    let Some((_, when, method)) = found else {
        return CallOutcome::Now(Err(RpcError::new(METHOD_NOT_FOUND, "Method not found")));
    };
    if !is_current(target, *when) {
        return CallOutcome::Now(Err(RpcError::new(INVALID_STATE, wrong_state(*when))));
    }
    if let Some(faults) = &target.faults {
        faults.commit(name, params.as_ref());
    }
    let timeout = match name {
        "framework_wait_init" if !target.serving => return CallOutcome::Later(None),
        "bdev_get_bdevs" => bdev::timeout(target, params.as_ref()),
        _ => None,
    };
    match timeout {
        Some(timeout) => CallOutcome::Later(Some(timeout)),
        None => CallOutcome::Now(method(target, params)),
    }
}

/// Calls the method `name` for the last time, at the end of its timeout: its result is the answer.
pub(super) fn call_at_last(target: &mut Target, name: &str, params: Option<Value>) -> CallOutcome {
    let method = METHODS.iter().find(|(known, ..)| *known == name);
    method.map_or(CallOutcome::Later(None), |(.., method)| CallOutcome::Now(method(target, params)))
}

fn wrong_state(when: When) -> &'static str {
    if when == When::StartUp {
        "Method may only be called before framework is initialized. Use --wait-for-rpc command \
         line parameter and then issue this RPC before the framework is initialized."
    } else {
        "Method may only be called after framework is initialized using framework_start_init RPC."
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct GetMethods {
    #[serde(default)]
    current: bool,
    #[serde(default, rename = "include_aliases")]
    _aliases: bool,
}

fn get_methods(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let GetMethods { current, .. } = super::fault::decode(params)?;
    let wanted = |when| is_known(target, when) && (!current || is_current(target, when));
    let names = METHODS.iter().filter(|(_, when, _)| wanted(*when)).map(|(name, ..)| *name);
    Ok(json!(names.collect::<Vec<_>>()))
}
