//! Observation of guests that are connected to volumes, from their QEMU's command line.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::blocking_within;
use crate::host::Root;
use crate::host::guests::{QemuVersions, guests};
use crate::model::guest::Guests;
use crate::model::policy::VolumePolicy;

/// Timeout of an observation: reading a process's command line hangs if the process hangs with its disk.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Observer of the guests of one machine; one observation runs at a time.
#[derive(Debug)]
pub struct GuestObserver {
    root: Root,
    policy: VolumePolicy,
    versions: Arc<Mutex<QemuVersions>>,
    place: Arc<Semaphore>,
}

impl GuestObserver {
    /// Makes an observer of this node's guests; `policy` has the owner and mode of their sockets.
    pub fn new(root: &Root, policy: VolumePolicy) -> GuestObserver {
        let place = Arc::new(Semaphore::new(1));
        GuestObserver { root: root.clone(), policy, versions: Arc::default(), place }
    }

    /// Finds the guests that connect to these sockets; `None` if that takes too long or an earlier call still hangs.
    pub async fn look(&self, sockets: BTreeSet<String>) -> Option<Guests> {
        let (root, policy) = (self.root.clone(), self.policy.clone());
        let versions = self.versions.clone();
        let look = move || {
            let mut versions = versions.lock().unwrap_or_else(PoisonError::into_inner);
            guests(&root, &sockets, &policy, &mut versions)
        };
        blocking_within(&self.place, LOOK_TIME, look).await?.ok()
    }
}
