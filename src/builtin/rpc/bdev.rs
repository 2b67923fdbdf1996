//! RPC methods for bdevs.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::bdev::{BdevBacking, BuiltinBdev, DiskFile, MemoryDisk, is_block_size};
use super::super::target::Target;
use super::fault::{RpcError, decode};
use super::framework::{TICK_RATE, ticks};

const MIB: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetBdevs {
    name: Option<String>,
    /// Time to wait for the bdev, in milliseconds.
    #[serde(default)]
    timeout: u64,
}

/// Timeout in `params`, if they name a bdev that does not exist yet; `None` if the answer need not wait.
pub(super) fn timeout(target: &Target, params: Option<&Value>) -> Option<Duration> {
    let GetBdevs { name, timeout } = decode(params.cloned()).ok()?;
    let missing = target.bdevs.get(&name?).is_none();
    (missing && timeout > 0).then(|| Duration::from_millis(timeout))
}

pub(super) fn get_bdevs(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let GetBdevs { name, .. } = decode(params)?;
    match name {
        Some(name) => {
            let bdev = target.bdevs.get(&name).ok_or(RpcError::bdev(Errno::ENODEV))?;
            Ok(json!([describe(bdev)]))
        }
        None => Ok(target.bdevs.iter().map(|bdev| describe(bdev)).collect()),
    }
}

fn describe(bdev: &BuiltinBdev) -> Value {
    let (product, specific) = match &bdev.backing {
        BdevBacking::Malloc(_) => ("Malloc disk", json!({})),
        BdevBacking::Null => ("Null disk", json!({})),
        BdevBacking::Aio(file) => ("AIO disk", json!({ "aio": of_file(file, bdev) })),
        BdevBacking::Zbs(file) => ("ZBS disk", json!({ "zbs": of_file(file, bdev) })),
    };
    let writable = !bdev.file().is_some_and(DiskFile::is_read_only);
    let uuid = bdev.uuid.hyphenated().to_string();
    json!({
        "name": bdev.name,
        "aliases": [uuid],
        "product_name": product,
        "block_size": bdev.block_size,
        "num_blocks": bdev.blocks(),
        "uuid": uuid,
        "assigned_rate_limits": {
            "rw_ios_per_sec": 0, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 0,
        },
        "claimed": false,
        "zoned": false,
        "supported_io_types": {
            "read": true, "write": writable, "unmap": writable, "flush": true, "reset": false,
            "write_zeroes": writable,
        },
        "driver_specific": specific,
    })
}

fn of_file(file: &DiskFile, bdev: &BuiltinBdev) -> Value {
    json!({
        "filename": file.path(),
        "block_size_override": bdev.block_size,
        "readonly": file.is_read_only(),
        "fallocate": true,
        "direct": file.is_direct(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Iostat {
    name: Option<String>,
}

pub(super) fn get_iostat(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let Iostat { name } = decode(params)?;
    let bdevs: Vec<Value> = match name {
        Some(name) => {
            let bdev = target.bdevs.get(&name).ok_or(RpcError::bdev(Errno::ENODEV))?;
            vec![bdev.stats.report(&bdev.name)]
        }
        None => target.bdevs.iter().map(|bdev| bdev.stats.report(&bdev.name)).collect(),
    };
    Ok(json!({ "tick_rate": TICK_RATE, "ticks": ticks(target), "bdevs": bdevs }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateMemory {
    name: Option<String>,
    uuid: Option<Uuid>,
    num_blocks: u64,
    block_size: u64,
    #[serde(rename = "physical_block_size")]
    _physical_block_size: Option<u64>,
    #[serde(rename = "optimal_io_boundary")]
    _optimal_io_boundary: Option<u64>,
}

/// Block size and total size, both in bytes, of a bdev without a file.
fn sizes(request: &CreateMemory) -> Result<(u32, u64), RpcError> {
    if request.num_blocks == 0 || !is_block_size(request.block_size) {
        return Err(RpcError::bdev(Errno::EINVAL));
    }
    let bytes = request.num_blocks.checked_mul(request.block_size);
    Ok((request.block_size as u32, bytes.ok_or(RpcError::bdev(Errno::ENOMEM))?))
}

fn add(target: &mut Target, bdev: BuiltinBdev) -> Result<Value, RpcError> {
    let name = json!(bdev.name);
    target.bdevs.add(bdev).map_err(RpcError::bdev)?;
    Ok(name)
}

/// Fails with EEXIST if a bdev has the name `name`. Called before anything is created or opened.
fn must_be_free(target: &Target, name: &str) -> Result<(), RpcError> {
    match target.bdevs.get(name) {
        Some(_) => Err(RpcError::bdev(Errno::EEXIST)),
        None => Ok(()),
    }
}

pub(super) fn malloc_create(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let request: CreateMemory = decode(params)?;
    let (block_size, bytes) = sizes(&request)?;
    if let Some(name) = &request.name {
        must_be_free(target, name)?;
    }
    if !target.has_memory(bytes) {
        return Err(RpcError::bdev(Errno::ENOMEM));
    }
    let memory = BdevBacking::Malloc(MemoryDisk::new(bytes).map_err(RpcError::bdev)?);
    let name = request.name.unwrap_or_else(|| target.bdevs.free_name());
    add(target, BuiltinBdev::new(name, request.uuid, block_size, request.num_blocks, memory))
}

pub(super) fn null_create(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let mut request: CreateMemory = decode(params)?;
    let (block_size, _) = sizes(&request)?;
    let missing = || RpcError::new(super::fault::INTERNAL, "spdk_json_decode_object failed");
    let name = request.name.take().ok_or_else(missing)?;
    add(
        target,
        BuiltinBdev::new(name, request.uuid, block_size, request.num_blocks, BdevBacking::Null),
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateAio {
    name: String,
    filename: String,
    /// Block size in bytes; required for regular files, which have no block size of their own.
    #[serde(default)]
    block_size: u64,
    #[serde(default)]
    readonly: bool,
    #[serde(default, rename = "fallocate")]
    _fallocate: bool,
    uuid: Option<Uuid>,
}

pub(super) fn aio_create(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let request: CreateAio = decode(params)?;
    must_be_free(target, &request.name)?;
    let path = Path::new(&request.filename);
    let regular = DiskFile::is_regular(path).map_err(RpcError::bdev)?;
    let block_size = if request.block_size == 0 && !regular { 512 } else { request.block_size };
    // The file is opened even if the block size is invalid, so that a folder is reported as such.
    let probe = if is_block_size(block_size) { block_size as u32 } else { 512 };
    let file = DiskFile::open(path, probe, request.readonly).map_err(RpcError::bdev)?;
    if !is_block_size(block_size) {
        return Err(RpcError::bdev(Errno::EINVAL));
    }
    let blocks = file.bytes().map_err(RpcError::bdev)? / block_size;
    if blocks == 0 {
        return Err(RpcError::bdev(Errno::EINVAL));
    }
    let backing = BdevBacking::Aio(file);
    add(target, BuiltinBdev::new(request.name, request.uuid, block_size as u32, blocks, backing))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateZbs {
    file: String,
    name: String,
    #[serde(default)]
    block_size: Option<u32>,
}

pub(super) fn zbs_create(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let request: CreateZbs = decode(params)?;
    must_be_free(target, &request.name)?;
    let block_size = request.block_size.unwrap_or(512);
    let folder = target.zbs.clone().filter(|_| is_block_size(u64::from(block_size)));
    let folder = folder.ok_or(RpcError::bdev(Errno::EINVAL))?;
    let file = folder.open(&request.file, block_size).map_err(RpcError::bdev)?;
    let blocks = file.bytes().map_err(RpcError::bdev)? / u64::from(block_size);
    add(target, BuiltinBdev::new(request.name, None, block_size, blocks, BdevBacking::Zbs(file)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedBdev {
    name: String,
}

fn delete(
    target: &mut Target,
    params: Option<Value>,
    is_kind: fn(&BdevBacking) -> bool,
) -> Result<Value, RpcError> {
    let NamedBdev { name } = decode(params)?;
    let bdev = target.bdevs.get(&name).filter(|bdev| is_kind(&bdev.backing));
    let name = bdev.ok_or(RpcError::bdev(Errno::ENODEV))?.name.clone();
    target.bdevs.remove(&name).map_err(RpcError::bdev)?;
    Ok(json!(true))
}

pub(super) fn malloc_delete(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    delete(target, params, |backing| matches!(backing, BdevBacking::Malloc(_)))
}

pub(super) fn aio_delete(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    delete(target, params, |backing| matches!(backing, BdevBacking::Aio(_)))
}

pub(super) fn null_delete(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    delete(target, params, |backing| matches!(backing, BdevBacking::Null))
}

pub(super) fn zbs_delete(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    delete(target, params, |backing| matches!(backing, BdevBacking::Zbs(_)))
}

pub(super) fn aio_rescan(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let NamedBdev { name } = decode(params)?;
    let bdev = target.bdevs.get(&name).ok_or(RpcError::bdev(Errno::ENODEV))?;
    let BdevBacking::Aio(file) = &bdev.backing else { return Err(RpcError::bdev(Errno::ENODEV)) };
    let bytes = file.bytes().map_err(RpcError::bdev)?;
    target.resize(bdev, bytes, Errno::EBUSY).map_err(RpcError::bdev)?;
    Ok(json!(true))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    name: String,
    /// New size in MiB.
    new_size: u64,
}

fn new_bytes(size: u64) -> Result<u64, RpcError> {
    size.checked_mul(MIB).ok_or(RpcError::bdev(Errno::EINVAL))
}

pub(super) fn null_resize(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let Resize { name, new_size } = decode(params)?;
    let bdev = target.bdevs.get(&name).filter(|bdev| matches!(bdev.backing, BdevBacking::Null));
    let bdev = bdev.ok_or(RpcError::bdev(Errno::ENODEV))?;
    target.resize(bdev, new_bytes(new_size)?, Errno::EINVAL).map_err(RpcError::bdev)?;
    Ok(json!(true))
}

pub(super) fn zbs_resize(target: &mut Target, params: Option<Value>) -> Result<Value, RpcError> {
    let Resize { name, new_size } = decode(params)?;
    let bdev = target.bdevs.get(&name).ok_or(RpcError::bdev(Errno::ENODEV))?;
    let BdevBacking::Zbs(file) = &bdev.backing else { return Err(RpcError::bdev(Errno::ENODEV)) };
    let bytes = new_bytes(new_size)?;
    if file.can_grow() && bytes > bdev.bytes() {
        file.grow(bytes).map_err(RpcError::bdev)?;
    }
    target.resize(bdev, bytes, Errno::EINVAL).map_err(RpcError::bdev)?;
    Ok(json!(true))
}
