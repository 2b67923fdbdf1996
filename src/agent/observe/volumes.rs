//! Observation of a running target's volumes: bdevs, controllers with their sessions, sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Semaphore;

use super::{blocking, blocking_within};
use crate::host::files::{FileIdentity, identity};
use crate::host::{Root, links, socket_place};
use crate::model::bounds::Links;
use crate::model::code::Code;
use crate::model::fault::{Fault, chain};
use crate::model::path::CleanPath;
use crate::model::policy::VolumePolicy;
use crate::model::target::TargetKind;
use crate::model::volume::{
    BdevSeen, ControllerSeen, SessionSeen, VolumeName, VolumeSeen, VolumeSpec,
};
use crate::spdk::disks::{Bdev, Controller};
use crate::spdk::{Sockets, Spdk, SpdkError};

/// Maximum of volumes that are queried one by one. For more, the target is asked for all that it has.
const FEW: usize = 16;
/// Timeout of following links.
const LOOK_TIME: Duration = Duration::from_secs(2);
/// Maximum of lookups of files and links that may hang at one time.
const MOST_LOOKUPS: usize = 4;

/// Place of a target's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumesLocation {
    /// Target's control socket.
    pub control: CleanPath,
    /// Folder of the volumes' sockets.
    pub sockets: CleanPath,
    pub kind: TargetKind,
    /// MiB of hugepages that the target takes.
    pub memory_mib: u64,
}

/// Observer of the volumes of one machine's targets.
#[derive(Debug)]
pub struct VolumeObserver {
    root: Root,
    sockets: Sockets,
    policy: VolumePolicy,
    lookups: Arc<Semaphore>,
}

impl VolumeObserver {
    pub fn new(root: &Root, sockets: Sockets, policy: VolumePolicy) -> VolumeObserver {
        let lookups = Arc::new(Semaphore::new(MOST_LOOKUPS));
        VolumeObserver { root: root.clone(), sockets, policy, lookups }
    }

    /// Observes each of these volumes.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn look(
        &self,
        place: &VolumesLocation,
        specs: &[VolumeSpec],
    ) -> Result<BTreeMap<VolumeName, VolumeSeen>, Fault> {
        let all = specs.len() > FEW;
        self.look_at(place, specs, all, self.bdevs_at(place, specs), async { Ok(Vec::new()) }).await
    }

    /// Observes volumes after a change. Only controllers are queried, as they show its outcome; bdevs are not.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn look_again(
        &self,
        place: &VolumesLocation,
        specs: &[VolumeSpec],
    ) -> Result<BTreeMap<VolumeName, VolumeSeen>, Fault> {
        let (all, none) = (specs.len() > FEW, async { Ok(BTreeMap::new()) });
        self.look_at(place, specs, all, none, async { Ok(Vec::new()) }).await
    }

    /// Observes volumes, also by controllers of other names that serve the volumes' bdevs.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn look_beside(
        &self,
        place: &VolumesLocation,
        specs: &[VolumeSpec],
    ) -> Result<BTreeMap<VolumeName, VolumeSeen>, Fault> {
        self.look_at(place, specs, true, self.bdevs_at(place, specs), async { Ok(Vec::new()) })
            .await
    }

    /// Observes volumes that are to be removed, and searches all that the target has for other users of their bdevs.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn look_around(
        &self,
        place: &VolumesLocation,
        specs: &[VolumeSpec],
    ) -> Result<BTreeMap<VolumeName, VolumeSeen>, Fault> {
        let spdk = self.sockets.at(&self.root.path(place.control.as_str()));
        let elsewhere = spdk.served_elsewhere(self.policy.call_timeout);
        self.look_at(place, specs, true, self.bdevs_at(place, specs), elsewhere).await
    }

    /// Identifies the file of each of these paths, as far as the machine answers in time: a file server may hang.
    pub async fn identities(&self, paths: BTreeSet<String>) -> BTreeMap<String, FileIdentity> {
        let root = self.root.clone();
        let look = move || {
            let found = paths.into_iter().filter_map(|path| {
                let identity = identity(&root.path(&path))?;
                Some((path, identity))
            });
            found.collect()
        };
        let found = blocking_within(&self.lookups, LOOK_TIME, look).await;
        found.and_then(Result::ok).unwrap_or_default()
    }

    /// Follows links in these paths, as far as the machine answers in time.
    pub async fn links(&self, paths: Vec<CleanPath>) -> Links {
        if paths.is_empty() {
            return Links::new();
        }
        let root = self.root.clone();
        let look = move || links::follow(&root, paths);
        let led = blocking_within(&self.lookups, LOOK_TIME, look).await;
        led.and_then(Result::ok).unwrap_or_default()
    }

    async fn look_at(
        &self,
        place: &VolumesLocation,
        specs: &[VolumeSpec],
        all: bool,
        bdevs: impl Future<Output = Result<BTreeMap<String, BdevSeen>, SpdkError>>,
        elsewhere: impl Future<Output = Result<Vec<(String, String)>, SpdkError>>,
    ) -> Result<BTreeMap<VolumeName, VolumeSeen>, Fault> {
        let spdk = self.sockets.at(&self.root.path(place.control.as_str()));
        // The sockets are checked while the target answers.
        let given = self.sockets_given(place, specs);
        let controllers = self.controllers(&spdk, specs, all);
        let (bdevs, (controllers, scsi), elsewhere) =
            tokio::try_join!(bdevs, controllers, elsewhere).map_err(|e| target_fault(&e))?;
        let given = given.await?;
        let mut servers: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        for (name, controller) in &controllers {
            if let Some(bdev) = &controller.bdev {
                servers.entry(bdev).or_default().push(name);
            }
        }
        for (bdev, by) in scsi.iter().chain(&elsewhere) {
            servers.entry(bdev).or_default().push(by);
        }
        let seen = specs.iter().zip(given).map(|(spec, given)| {
            let others = servers.get(spec.bdev.as_str()).into_iter().flatten();
            let other = others.into_iter().find(|name| name.as_str() != spec.name.as_str());
            let seen = VolumeSeen {
                served_by_another: other.map(|name| (*name).clone()),
                bdev: bdevs.get(spec.bdev.as_str()).cloned(),
                controller: controllers.get(spec.name.as_str()).cloned(),
                socket_is_given: given,
            };
            (spec.name.clone(), seen)
        });
        Ok(seen.collect())
    }

    async fn bdevs_at(
        &self,
        place: &VolumesLocation,
        specs: &[VolumeSpec],
    ) -> Result<BTreeMap<String, BdevSeen>, SpdkError> {
        let spdk = self.sockets.at(&self.root.path(place.control.as_str()));
        let within = self.policy.call_timeout;
        let all = match specs.len() {
            0..=FEW => {
                let asks = specs.iter().map(|spec| spdk.bdev(spec.bdev.as_str(), within));
                try_join_all(asks).await?.into_iter().flatten().collect()
            }
            _ => spdk.bdevs(within).await?,
        };
        let seen = |bdev: Bdev| {
            let bytes = bdev.block_size.saturating_mul(bdev.num_blocks);
            (bdev.name, BdevSeen { file: bdev.file, bytes, claimed: bdev.claimed })
        };
        Ok(all.into_iter().map(seen).collect())
    }

    /// Lists the controllers for vhost-blk, and the bdevs of vhost-scsi with their controllers.
    async fn controllers(
        &self,
        spdk: &Spdk,
        specs: &[VolumeSpec],
        all: bool,
    ) -> Result<(BTreeMap<String, ControllerSeen>, Vec<(String, String)>), SpdkError> {
        let within = self.policy.call_timeout;
        let all = match all {
            false => {
                let asks = specs.iter().map(|spec| spdk.controller(spec.name.as_str(), within));
                try_join_all(asks).await?.into_iter().flatten().collect()
            }
            true => spdk.controllers(within).await?,
        };
        let mut scsi = Vec::new();
        for controller in &all {
            let luns = controller.backend_specific.scsi.iter().flat_map(|device| &device.luns);
            let by = || format!("{} (vhost-scsi)", controller.ctrlr);
            scsi.extend(luns.map(|lun| (lun.bdev_name.clone(), by())));
        }
        Ok((all.into_iter().map(seen).collect(), scsi))
    }

    /// Starts to check whether each volume's socket has its owner and mode.
    fn sockets_given(
        &self,
        place: &VolumesLocation,
        specs: &[VolumeSpec],
    ) -> impl Future<Output = Result<Vec<bool>, Fault>> + use<> {
        let (root, policy) = (self.root.clone(), self.policy.clone());
        let paths: Vec<String> =
            specs.iter().map(|spec| place.sockets.join(spec.name.as_str())).collect();
        let owner = (policy.socket_uid, policy.socket_gid);
        let is_given =
            move |path: &String| socket_place::is_given(&root, path, owner, policy.socket_mode);
        blocking(move || paths.iter().map(is_given).collect())
    }
}

fn seen(controller: Controller) -> (String, ControllerSeen) {
    let block = controller.backend_specific.block.unwrap_or_default();
    let session = |session: &crate::spdk::disks::Session| SessionSeen {
        id: (session.vid, session.id),
        started: session.started,
        queues: session.max_queues,
    };
    let sessions = controller.sessions.iter().map(session).collect();
    let seen = ControllerSeen { bdev: block.bdev, read_only: block.readonly, sessions };
    (controller.ctrlr, seen)
}

/// Maps silence or refusal of a target, on behalf of a volume, to a fault.
pub fn target_fault(error: &SpdkError) -> Fault {
    let code = match error {
        SpdkError::Refused { .. } => Code::TargetRefused,
        SpdkError::Absent { .. } => Code::TargetAbsent,
        _ => Code::TargetNotAnswering,
    };
    Fault::new(code, chain(error))
}
