//! Verification that a peer which runs as root does so outside of containers.
//!
//! A connection is verified at its first request, because many connections never send one. The result is kept for the
//! connection.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::timeout;

use super::KnowsPeers;

/// Limit of the time for which a request waits for a search.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Inode numbers of sockets.
pub type Inodes = HashSet<u32>;

/// Searches the descriptors of all processes for the sockets of peers. One search runs at a time and covers all sockets
/// that are pending when it begins, so that many connections cost no more than one.
pub(super) struct RootLooks {
    node: Arc<dyn KnowsPeers>,
    turn: Arc<Semaphore>,
    pending: Mutex<Vec<(u32, oneshot::Sender<bool>)>>,
}

impl RootLooks {
    pub(super) fn new(node: Arc<dyn KnowsPeers>) -> RootLooks {
        RootLooks { node, turn: Arc::new(Semaphore::new(1)), pending: Mutex::default() }
    }

    /// Searches for the socket `inode`. `true` if root has it open, and only outside of containers; `None` if the
    /// search failed.
    async fn look_for(&self, inode: u32) -> Option<bool> {
        let (found, mut answer) = oneshot::channel();
        {
            let mut pending = self.pending();
            pending.retain(|(_, found)| !found.is_closed());
            pending.push((inode, found));
        }
        let turn = tokio::select! {
            // Both are cancel-safe. A search for another connection may have covered this socket; then the permit is
            // left to the next one.
            biased;
            found = &mut answer => return found.ok(),
            turn = self.turn.clone().acquire_owned() => turn.ok()?,
        };
        let (pending, node) = (std::mem::take(&mut *self.pending()), self.node.clone());
        let look = move || {
            // Held until the search ends, even if no connection waits for it any more.
            let _turn = turn;
            let held = node.are_held_here(&pending.iter().map(|(inode, _)| *inode).collect());
            for (inode, found) in pending {
                let _ = found.send(held.contains(&inode));
            }
        };
        tokio::task::spawn_blocking(look).await.ok()?;
        answer.await.ok()
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Vec<(u32, oneshot::Sender<bool>)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Verification of one connection; clones share the result.
#[derive(Clone)]
pub(super) struct RootVerification {
    looks: Arc<RootLooks>,
    inode: u32,
    found: Arc<OnceCell<bool>>,
}

impl RootVerification {
    /// Verification of the peer whose socket is `inode`.
    pub(super) fn new(looks: Arc<RootLooks>, inode: u32) -> RootVerification {
        RootVerification { looks, inode, found: Arc::default() }
    }

    /// Result of the search, once there is one.
    pub(super) fn found(&self) -> Option<bool> {
        self.found.get().copied()
    }

    /// Returns the result, after a search if there is none yet. A search that fails or takes longer than `LOOK_TIME`
    /// counts as `false`, and the next request repeats it.
    pub(super) async fn holds(&self) -> bool {
        let look = async || self.looks.look_for(self.inode).await.ok_or(());
        let found = timeout(LOOK_TIME, self.found.get_or_try_init(look)).await;
        matches!(found, Ok(Ok(true)))
    }
}
