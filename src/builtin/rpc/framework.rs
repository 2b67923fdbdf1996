//! RPC methods about the process itself.

use std::str::FromStr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::super::cores::Cores;
use super::super::target::Target;
use super::fault::{INVALID_PARAMS, RpcError, decode_vhost, no_params};

/// Clock ticks per second, as reported in answers.
pub(super) const TICK_RATE: u64 = 1_000_000_000;

pub(super) fn ticks(target: &Target) -> u64 {
    u64::try_from(target.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn get_version(_: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    no_params("spdk_get_version method", params.as_ref())?;
    let part = |text: &str| text.parse::<u64>().unwrap_or_default();
    Ok(json!({
        "version": concat!("vhost-agent target v", env!("CARGO_PKG_VERSION")),
        "fields": {
            "major": part(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": part(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": part(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": "",
        },
    }))
}

pub(super) fn wait_init(_: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    no_params("framework_wait_init", params.as_ref())?;
    Ok(json!(true))
}

pub(super) fn start_init(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    no_params("framework_start_init", params.as_ref())?;
    target.serving = true;
    Ok(json!(true))
}

pub(super) fn get_reactors(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    no_params("framework_get_reactors", params.as_ref())?;
    let cores = target.cores.clone().unwrap_or_else(Cores::first);
    let reactor = |core: &usize| json!({ "lcore": core, "busy": 0, "idle": 0, "in_interrupt": true, "lw_threads": [] });
    let reactors: Vec<Value> = cores.numbers().iter().map(reactor).collect();
    let pid = std::process::id();
    Ok(json!({ "tick_rate": TICK_RATE, "pid": pid, "reactors": reactors }))
}

#[derive(serde::Deserialize)]
struct Kill {
    sig_name: String,
}

pub(super) fn kill_instance(_: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let invalid = || RpcError::new(INVALID_PARAMS, "Invalid parameters");
    let Kill { sig_name } = decode_vhost(params).map_err(|_| invalid())?;
    let name = sig_name.strip_prefix("SIG").unwrap_or(&sig_name);
    let known = matches!(name, "INT" | "TERM" | "QUIT" | "HUP" | "KILL" | "USR1");
    let signal = Signal::from_str(&format!("SIG{name}")).ok().filter(|_| known);
    let signal = signal.ok_or_else(invalid)?;
    kill(Pid::this(), signal).map_err(RpcError::bdev)?;
    Ok(json!(true))
}
