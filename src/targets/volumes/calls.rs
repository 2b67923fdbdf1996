//! Calls for the volumes of a target, as methods of its handle.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::super::{Targets, TaskRequest};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::target::{TargetName, TargetSpec};
use crate::model::volume::{VolumeKey, VolumeSpec, VolumeStatus, VolumeView, Volumes};

/// Longest wait for a busy target, by a caller that only wants to know the state of volumes.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two attempts to take away a volume that a virtual machine is about to leave.
const LEAVE_PAUSE: Duration = Duration::from_millis(200);

impl Targets {
    /// Makes volumes desired, on disk, and then makes them serve, all in one pass. With `undo`, if one of them cannot
    /// be made to serve, all that were not desired before are taken away and forgotten.
    ///
    /// Returns the status of each volume afterwards, with the reason for which a volume does not serve.
    ///
    /// # Errors
    /// When nothing could be accepted: for a conflict with the desired state, the state on disk, or the target. With
    /// `undo`, also when a volume could not be made to serve.
    pub async fn activate(
        &self,
        target: &TargetSpec,
        volumes: Vec<VolumeSpec>,
        undo: bool,
    ) -> Result<Vec<VolumeView>, Fault> {
        self.ask(&target.name, |reply| TaskRequest::Activate { volumes, undo, reply }).await?
    }

    /// Takes volumes away; those that do not exist count as gone. A volume with a connected virtual machine is refused,
    /// once `wait` has passed without the machine disconnecting.
    ///
    /// # Errors
    /// `volume-in-use`, and faults of the target or the state.
    pub async fn deactivate(
        &self,
        target: &TargetSpec,
        volumes: Vec<VolumeKey>,
        wait: Option<Duration>,
    ) -> Result<(), Fault> {
        let deadline = Instant::now() + wait.unwrap_or_default();
        loop {
            let (target, volumes) = (Box::new(target.clone()), volumes.clone());
            let name = target.name.clone();
            let done =
                self.ask(&name, |reply| TaskRequest::Deactivate { target, volumes, reply }).await?;
            match done {
                // The wait is here and not in the task, which has other things to do meanwhile.
                Err(fault) if fault.code == Code::VolumeInUse && Instant::now() < deadline => {
                    sleep(LEAVE_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Gives a volume a new size, which a connected guest sees.
    ///
    /// # Errors
    /// `volume-unknown`, `volume-not-resizable`, and faults of the target.
    pub async fn resize(
        &self,
        target: &TargetSpec,
        volume: VolumeKey,
        size_mib: u64,
    ) -> Result<VolumeView, Fault> {
        let (target, name) = (Box::new(target.clone()), target.name.clone());
        self.ask(&name, |reply| TaskRequest::Resize { target, volume, size_mib, reply }).await?
    }

    /// Desired volumes of a target, with their status: observed now, unless its task is busy for longer; then as they
    /// were known last.
    pub async fn volumes(&self, target: &TargetName) -> Vec<VolumeView> {
        let specs = self.desired.volumes(target);
        if specs.is_empty() {
            return Vec::new();
        }
        let looked = async {
            let _place = self.way(target).ok()?.looks.acquire_owned().await.ok()?;
            self.ask(target, |reply| TaskRequest::Look { reply, _place }).await.ok()
        };
        // A busy task knows what it did last, and that is reported then.
        let _ = timeout(LOOK_TIMEOUT, looked).await;
        let known = self.volume_statuses(target);
        let specs = self.desired.volumes(target);
        specs.values().map(|spec| view(target, spec, &known)).collect()
    }

    fn volume_statuses(&self, target: &TargetName) -> Arc<Volumes> {
        let all = self.statuses.watch();
        let known = all.borrow().get(target).map(|status| status.volume_statuses.clone());
        known.unwrap_or_default()
    }
}

/// Volume with its last status.
pub(super) fn view(target: &TargetName, spec: &VolumeSpec, known: &Volumes) -> VolumeView {
    let status = known.get(&spec.name).cloned().unwrap_or_else(VolumeStatus::unknown);
    VolumeView { target: target.clone(), spec: spec.clone(), status }
}
