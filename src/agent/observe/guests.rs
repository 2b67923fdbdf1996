//! Guests that are connected to volumes, as their QEMU's command line tells of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::blocking_within;
use crate::host::Root;
use crate::host::guests::{QemuVersions, guests};
use crate::model::guest::Guests;
use crate::model::policy::VolumePolicy;

/// How long a look may take: a command line is read from the memory of its process, which may hang with its disk.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Looks at the guests of one machine, once at a time.
#[derive(Debug)]
pub struct GuestObserver {
    root: Root,
    policy: VolumePolicy,
    versions: Arc<Mutex<QemuVersions>>,
    place: Arc<Semaphore>,
}

impl GuestObserver {
    /// An observer of this node's guests, whose sockets are given as `policy` says.
    pub fn new(root: &Root, policy: VolumePolicy) -> GuestObserver {
        let place = Arc::new(Semaphore::new(1));
        GuestObserver { root: root.clone(), policy, versions: Arc::default(), place }
    }

    /// The guests that connect to these sockets; none where that takes too long, or an earlier look still hangs.
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
