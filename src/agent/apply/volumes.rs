//! Steps on the volumes of a target. The steps of one volume run one after the other; those of different volumes run at
//! the same time, as the control socket answers together the requests that arrive together.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use futures_util::stream;

use super::super::observe::blocking;
use super::super::observe::volumes::{VolumesLocation, target_fault};
use super::refusal::advice;
use crate::host::{HostError, Root, socket_place};
use crate::model::code::Code;
use crate::model::fault::{Fault, chain};
use crate::model::policy::TargetPolicy;
use crate::model::volume::{VolumeName, VolumeSpec, VolumeStep};
use crate::spdk::{Sockets, Spdk, SpdkError};

/// Number of volumes in progress at the same time; each has one request in flight.
const WINDOW: usize = 256;

/// Number of sockets whose owner and mode are set in one batch.
const GIVEN_TOGETHER: usize = 64;

/// Volumes whose creation was sent and not answered; clones share the set.
#[derive(Debug, Clone, Default)]
pub struct Unanswered(Arc<Mutex<BTreeSet<VolumeName>>>);

impl Unanswered {
    /// Takes the names and clears the set.
    pub fn take(&self) -> BTreeSet<VolumeName> {
        std::mem::take(&mut *self.lock())
    }

    pub fn names(&self) -> BTreeSet<VolumeName> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<VolumeName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applier of steps on the volumes of one machine's targets.
#[derive(Debug)]
pub struct VolumeApplier {
    root: Root,
    sockets: Sockets,
    policy: TargetPolicy,
}

impl VolumeApplier {
    pub fn new(root: &Root, sockets: Sockets, policy: TargetPolicy) -> VolumeApplier {
        VolumeApplier { root: root.clone(), sockets, policy }
    }

    /// Applies the steps of all volumes; returns the fault of each that failed. The others go on after a failure,
    /// unless the target has stopped answering.
    pub async fn apply(
        &self,
        place: &VolumesLocation,
        plans: Vec<(VolumeSpec, Vec<VolumeStep>)>,
        unanswered: &Unanswered,
    ) -> BTreeMap<VolumeName, Fault> {
        let spdk = self.sockets.at(&self.root.path(place.control.as_str()));
        let silent = AtomicBool::new(false);
        let work = |(spec, steps): (VolumeSpec, Vec<VolumeStep>)| {
            let (spdk, silent) = (&spdk, &silent);
            async move {
                let done = self.apply_to((spdk, place), silent, &spec, &steps, unanswered).await;
                (spec.name, steps.contains(&VolumeStep::GiveSocket), done)
            }
        };
        let mut work = pin!(stream::iter(plans).map(work).buffer_unordered(WINDOW));
        let mut failed = BTreeMap::new();
        let (mut made, mut given) = (Vec::new(), Vec::new());
        while let Some((name, gives, done)) = work.next().await {
            match done {
                Err(fault) => drop(failed.insert(name, fault)),
                Ok(()) if gives => made.push(name),
                Ok(()) => {}
            }
            if made.len() >= GIVEN_TOGETHER {
                given.push(self.give_sockets(place, std::mem::take(&mut made)));
            }
        }
        if !made.is_empty() {
            given.push(self.give_sockets(place, made));
        }
        for given in given {
            failed.extend(given.await);
        }
        failed
    }

    async fn apply_to(
        &self,
        (spdk, place): (&Spdk, &VolumesLocation),
        silent: &AtomicBool,
        spec: &VolumeSpec,
        steps: &[VolumeStep],
        unanswered: &Unanswered,
    ) -> Result<(), Fault> {
        for step in steps {
            if silent.load(Ordering::Relaxed) {
                let text = "the target stopped answering before it was this volume's turn";
                return Err(Fault::new(Code::TargetNotAnswering, text));
            }
            let makes = matches!(step, VolumeStep::CreateBdev | VolumeStep::CreateController);
            if makes {
                unanswered.lock().insert(spec.name.clone());
            }
            let done = self.do_step(spdk, spec, *step).await;
            if makes && done.as_ref().err().is_none_or(SpdkError::is_refusal) {
                unanswered.lock().remove(&spec.name);
            }
            done.map_err(|error| {
                if !error.is_refusal() {
                    silent.store(true, Ordering::Relaxed);
                }

                let about = || advice(*step, spec, place, &self.policy.target, &error);
                refused(spec, *step, &error, about)
            })?;
        }
        Ok(())
    }

    async fn do_step(
        &self,
        spdk: &Spdk,
        spec: &VolumeSpec,
        step: VolumeStep,
    ) -> Result<(), SpdkError> {
        let within = self.policy.volumes.call_timeout;
        let (name, bdev) = (spec.name.as_str(), spec.bdev.as_str());
        let done = match step {
            VolumeStep::DeleteController => spdk.delete_controller(name, within).await,
            VolumeStep::DeleteBdev => spdk.delete_bdev(bdev, &spec.backing, within).await,
            VolumeStep::CreateBdev => spdk.create_bdev(bdev, &spec.backing, within).await,
            VolumeStep::CreateController => {
                let mask = spec.cpumask.as_deref();
                spdk.create_controller(name, bdev, spec.read_only, mask, within).await
            }
            // Done in batches by `give_sockets`, while the target makes the next sockets.
            VolumeStep::GiveSocket => Ok(()),
        };
        let deletes = matches!(step, VolumeStep::DeleteController | VolumeStep::DeleteBdev);
        match done {
            Err(error) if deletes && error.is_not_found() => Ok(()),
            done => done,
        }
    }

    /// Resizes the bdev of a volume.
    ///
    /// # Errors
    /// `volume-not-resizable`, and faults of the target.
    pub async fn resize(
        &self,
        place: &VolumesLocation,
        spec: &VolumeSpec,
        size_mib: u64,
    ) -> Result<(), Fault> {
        let spdk = self.sockets.at(&self.root.path(place.control.as_str()));
        let within = self.policy.volumes.call_timeout;
        let resized = spdk.resize_bdev(spec.bdev.as_str(), &spec.backing, size_mib, within).await;
        resized.map_err(|error| match error.is_unknown_method() {
            true => Fault::new(
                Code::VolumeNotResizable,
                format!(
                    "the target cannot resize what {} is kept in: {}",
                    spec.name,
                    chain(&error)
                ),
            ),
            false => target_fault(&error),
        })
    }

    /// Starts to set owner and mode of the sockets of the volumes `names`; returns the fault of each that failed.
    fn give_sockets(
        &self,
        place: &VolumesLocation,
        names: Vec<VolumeName>,
    ) -> impl Future<Output = BTreeMap<VolumeName, Fault>> + use<> {
        let (root, policy, folder) =
            (self.root.clone(), self.policy.volumes.clone(), place.sockets.clone());
        let owner = (policy.socket_uid, policy.socket_gid);
        let give = move || {
            let gives = |name: VolumeName| {
                let path = folder.join(name.as_str());
                let given = socket_place::give(&root, &path, owner, policy.socket_mode);
                given.err().map(|error: HostError| (name, error.into()))
            };
            names.into_iter().filter_map(gives).collect()
        };
        let given = blocking(give);
        async { given.await.unwrap_or_default() }
    }
}

fn refused(
    spec: &VolumeSpec,
    step: VolumeStep,
    error: &SpdkError,
    advice: impl FnOnce() -> String,
) -> Fault {
    let text = chain(error);
    match (step, error) {
        (_, SpdkError::NotSent { .. }) => Fault::new(Code::TargetBusy, text),
        (VolumeStep::CreateBdev, SpdkError::Refused { .. }) => {
            Fault::new(Code::VolumeBackingFailed, text + &advice())
        }
        (VolumeStep::CreateController, SpdkError::Refused { .. }) => {
            Fault::new(target_fault(error).code, text + &advice())
        }
        (VolumeStep::DeleteController, SpdkError::Timeout { .. }) => Fault::new(
            Code::VolumeInUse,
            format!(
                "{text}: a virtual machine connected to {} in that moment; it is taken away once the VM \
                 has gone",
                spec.name
            ),
        ),
        _ => target_fault(error),
    }
}
