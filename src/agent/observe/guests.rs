//! Guests that are connected to volumes, as their QEMU's command line tells of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::blocking_within;
use crate::host::Root;
use crate::host::guests::{QemuVersions, guests};
use crate::model::guest::Guests;

/// How long a look may take: a command line is read from the memory of its process, which may hang with its disk.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Looks at the guests of one machine, once at a time.
#[derive(Debug)]
pub struct GuestObserver {
    root: Root,
    versions: Arc<Mutex<QemuVersions>>,
    place: Arc<Semaphore>,
}

impl GuestObserver {
    /// An observer of this node's guests.
    pub fn new(root: &Root) -> GuestObserver {
        let place = Arc::new(Semaphore::new(1));
        GuestObserver { root: root.clone(), versions: Arc::default(), place }
    }

    /// The guests that connect to these sockets; none where that takes too long, or an earlier look still hangs.
    pub async fn look(&self, sockets: BTreeSet<String>) -> Option<Guests> {
        let (root, versions) = (self.root.clone(), self.versions.clone());
        let look = move || {
            let mut versions = versions.lock().unwrap_or_else(PoisonError::into_inner);
            guests(&root, &sockets, &mut versions)
        };
        blocking_within(&self.place, LOOK_TIME, look).await?.ok()
    }
}
