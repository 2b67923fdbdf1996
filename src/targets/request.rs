//! Requests of callers to the task of a target.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::agent::memory::Published;
use crate::model::fault::Fault;
use crate::model::policy::TargetPolicy;
use crate::model::prepare::PrepareReport;
use crate::model::target::{EnsureOptions, TargetSeen, TargetSpec};
use crate::model::units::{NumaNode, PageSize};
use crate::model::volume::{VolumeKey, VolumeSpec, VolumeView};
use crate::model::work::WorkId;
use crate::plan::target::{self, TargetPlan};

/// Desired change of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetChange {
    /// Target that is to run with this spec.
    Ensure(TargetSpec, EnsureOptions),
    /// Target that is not to run any more.
    Destroy {
        /// Target that is meant, with its control socket.
        spec: TargetSpec,
        /// Set if connected virtual machines are ignored.
        force: bool,
    },
}

impl TargetChange {
    pub(super) fn spec(&self) -> &TargetSpec {
        match self {
            TargetChange::Ensure(spec, _) | TargetChange::Destroy { spec, .. } => spec,
        }
    }

    /// `true` if the change also concerns the containers that stand beside the target's own during a replacement.
    pub(super) fn moves_names(&self) -> bool {
        !matches!(self, TargetChange::Ensure(_, EnsureOptions { recreate: false, .. }))
    }

    /// Free 2 MiB pages that this change leaves to guests, by NUMA node. A recovered target was there before them.
    pub(super) fn promised(&self, pages: &Published) -> BTreeMap<NumaNode, u64> {
        if matches!(self, TargetChange::Ensure(_, EnsureOptions { recovers: true, .. })) {
            return BTreeMap::new();
        }
        let kept = pages.kept_free().into_iter();
        let small = kept.filter(|(key, _)| key.size == PageSize::MIB_2);
        small.map(|(key, pages)| (key.node, pages)).collect()
    }

    pub(super) fn plan(
        &self,
        seen: &TargetSeen,
        policy: &TargetPolicy,
    ) -> Result<TargetPlan, Fault> {
        match self {
            TargetChange::Ensure(spec, options) => target::ensure(spec, *options, seen, policy),
            TargetChange::Destroy { spec, force } => target::destroy(spec, *force, seen, policy),
        }
    }
}

/// Request to a target's task, with the channel of the reply.
pub(super) enum TaskRequest {
    /// Change of the target itself.
    Target {
        work: WorkId,
        change: Box<TargetChange>,
        dry_run: bool,
        reply: oneshot::Sender<PrepareReport>,
    },
    /// Volumes that are to serve; with `undo`, new ones are taken away again if one fails.
    Activate {
        volumes: Vec<VolumeSpec>,
        undo: bool,
        reply: oneshot::Sender<Result<Vec<VolumeView>, Fault>>,
    },
    /// Volumes that are to go, of a target that need not be desired.
    Deactivate {
        target: Box<TargetSpec>,
        volumes: Vec<VolumeKey>,
        reply: oneshot::Sender<Result<(), Fault>>,
    },
    /// New size of a volume.
    Resize {
        target: Box<TargetSpec>,
        volume: VolumeKey,
        size_mib: u64,
        reply: oneshot::Sender<Result<VolumeView, Fault>>,
    },
    /// Observation of the volumes.
    Look { reply: oneshot::Sender<()>, _place: OwnedSemaphorePermit },
    /// Start of the agent: the target is brought up if it is down.
    Start,
}

impl TaskRequest {
    /// Replies with `fault`, because the request is not carried out. A deploy has a report instead of such a reply, and
    /// is ended by [`refuse`](super::deploy::refuse).
    pub(super) fn refuse(self, fault: Fault) {
        match self {
            TaskRequest::Activate { reply, .. } => drop(reply.send(Err(fault))),
            TaskRequest::Deactivate { reply, .. } => drop(reply.send(Err(fault))),
            TaskRequest::Resize { reply, .. } => drop(reply.send(Err(fault))),
            TaskRequest::Target { .. } | TaskRequest::Look { .. } | TaskRequest::Start => {}
        }
    }

    /// `true` if the request changes nothing.
    pub(super) fn only_looks(&self) -> bool {
        matches!(self, TaskRequest::Target { dry_run: true, .. } | TaskRequest::Look { .. })
    }

    /// `true` if the request takes the target away.
    pub(super) fn is_destroy(&self) -> bool {
        matches!(self, TaskRequest::Target { change, dry_run: false, .. } if matches!(**change, TargetChange::Destroy { .. }))
    }

    /// `true` if the request makes the target run.
    pub(super) fn is_deploy(&self) -> bool {
        matches!(self, TaskRequest::Target { change, dry_run: false, .. } if matches!(**change, TargetChange::Ensure(..)))
    }
}

/// Request in the queue of a task.
pub(super) struct Requested {
    pub(super) request: TaskRequest,
    /// Token that keeps the task running until the request is done.
    pub(super) _work: Arc<()>,
}
