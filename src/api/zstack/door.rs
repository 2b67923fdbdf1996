//! What the fuzz targets of tests/fuzz call: each request from its bytes to what is judged of it, with no
//! node behind.

use super::super::body;
use super::host::{ConnectRequest, judged};
use super::prepareenv::PrepareEnvRequest;
use super::target::{EnsureRequest, at, usual};
use super::volume::{ActivateRequest, CreateRequest, WhichRequest};
use crate::model::fault::Fault;
use crate::model::identity::Identity;
use crate::model::path::CleanPath;
use crate::model::policy::TargetSettings;
use crate::model::target::{Desired, TargetSpec};
use crate::model::volume::{VolumeKey, VolumeSpec};

/// What one body comes to as each of the requests that say something.
#[derive(Debug)]
pub struct Judged {
    /// `prepareenv`: pages.
    pub prepare: Result<Option<u64>, Fault>,
    /// `ensure`.
    pub ensure: Result<TargetSpec, Fault>,
    /// `activate`.
    pub activate: Result<(TargetSpec, VolumeSpec), Fault>,
    /// `bdev/create`.
    pub create: Result<VolumeSpec, Fault>,
    /// `deactivate` and `resize`: the volume, and its size in MiB.
    pub which: Result<(VolumeKey, Option<u64>), Fault>,
    /// The target that the same body means.
    pub target: Result<TargetSpec, Fault>,
    /// `/host/connect`.
    pub connect: Result<Identity, Fault>,
}

/// Judges a body.
pub fn judge(bytes: &[u8], desired: &Desired, defaults: &TargetSettings) -> Judged {
    let which = parse::<WhichRequest>(bytes);
    let control = |request: &WhichRequest| {
        let path = request.control_sock.as_deref().map(str::parse::<CleanPath>).transpose()?;
        at(path, desired, defaults)
    };
    Judged {
        prepare: parse::<PrepareEnvRequest>(bytes).map(|request| request.hugepage_nr),
        ensure: parse::<EnsureRequest>(bytes)
            .and_then(|request| request.into_spec(usual(defaults)?, defaults)),
        activate: parse::<ActivateRequest>(bytes)
            .and_then(|request| request.judged(desired, defaults)),
        create: parse::<CreateRequest>(bytes)
            .and_then(|request| request.into_volume(&defaults.socket_dir)),
        target: which.as_ref().map_err(Fault::clone).and_then(control),
        which: which.and_then(|request| Ok((request.key()?, request.size_mib))),
        connect: parse::<ConnectRequest>(bytes).and_then(judged),
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    body::parse(bytes).map_err(|problem| problem.fault)
}
