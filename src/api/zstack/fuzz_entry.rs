//! Entry points for the fuzz targets of tests/fuzz: each request from its bytes to its validation, with no node behind.

use super::super::body;
use super::host::{ConnectRequest, validated};
use super::prepareenv::PrepareEnvRequest;
use super::storage::{ConnectionRequest, DependencyRequest};
use super::target::{EnsureRequest, at, usual};
use super::volume::{ActivateRequest, CreateRequest, WhichRequest};
use crate::model::fault::Fault;
use crate::model::identity::HostIdentity;
use crate::model::path::CleanPath;
use crate::model::policy::TargetSettings;
use crate::model::storage::{Dependencies, HeartbeatVolume};
use crate::model::target::{Desired, TargetSpec};
use crate::model::volume::{VolumeKey, VolumeSpec};

/// Validation of one body, read as each of the requests that carry data.
#[derive(Debug)]
pub struct ValidatedBody {
    /// `prepareenv`: number of pages.
    pub prepare: Result<Option<u64>, Fault>,
    pub ensure: Result<TargetSpec, Fault>,
    pub activate: Result<(TargetSpec, VolumeSpec), Fault>,
    pub create: Result<VolumeSpec, Fault>,
    /// `deactivate` and `resize`: the volume, and its size in MiB.
    pub which: Result<(VolumeKey, Option<u64>), Fault>,
    /// Target with the control socket that the body names.
    pub target: Result<TargetSpec, Fault>,
    pub connect: Result<HostIdentity, Fault>,
    /// `check/host/connection`: the heartbeat volume.
    pub connection: Result<HeartbeatVolume, Fault>,
    /// `updatedependency`: the packages.
    pub dependencies: Result<Dependencies, Fault>,
}

/// Validates a body as each of the requests.
pub fn validate(bytes: &[u8], desired: &Desired, defaults: &TargetSettings) -> ValidatedBody {
    let which = parse::<WhichRequest>(bytes);
    let control = |request: &WhichRequest| {
        let path = request.control_sock.as_deref().map(str::parse::<CleanPath>).transpose()?;
        at(path, desired, defaults)
    };
    ValidatedBody {
        prepare: parse::<PrepareEnvRequest>(bytes).map(|request| request.hugepage_nr),
        ensure: parse::<EnsureRequest>(bytes)
            .and_then(|request| request.into_spec(usual(defaults)?, defaults)),
        activate: parse::<ActivateRequest>(bytes)
            .and_then(|request| request.validated(desired, defaults)),
        create: parse::<CreateRequest>(bytes)
            .and_then(|request| request.into_volume(&defaults.socket_dir)),
        target: which.as_ref().map_err(Fault::clone).and_then(control),
        which: which.and_then(|request| Ok((request.key()?, request.size_mib))),
        connect: parse::<ConnectRequest>(bytes).and_then(validated),
        connection: parse::<ConnectionRequest>(bytes).and_then(ConnectionRequest::volume),
        dependencies: parse::<DependencyRequest>(bytes).and_then(DependencyRequest::wanted),
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    body::parse(bytes).map_err(|problem| problem.fault)
}
