//! Proof that a peer which is root is so outside of containers.
//!
//! Looked for at the first request of its connection, for many connections never make one, and kept with the connection.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::timeout;

use super::KnowsPeers;

/// Deadline of a look.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Sockets of peers to look for. One look at a time goes through the machine's descriptors, for all that came meanwhile:
/// many connections cost no more than one.
pub(super) struct RootLooks {
    node: Arc<dyn KnowsPeers>,
    turn: Arc<Semaphore>,
    pending: Mutex<Vec<(u32, oneshot::Sender<bool>)>>,
}

impl RootLooks {
    pub(super) fn new(node: Arc<dyn KnowsPeers>) -> RootLooks {
        RootLooks { node, turn: Arc::new(Semaphore::new(1)), pending: Mutex::default() }
    }

    /// Looks for a socket; none where that failed.
    async fn look_for(&self, inode: u32) -> Option<bool> {
        let (found, mut answer) = oneshot::channel();
        {
            let mut pending = self.pending();
            pending.retain(|(_, found)| !found.is_closed());
            pending.push((inode, found));
        }
        let turn = tokio::select! {
            // Cancel-safe both. Another look may have had it; then its turn is left to the next one.
            biased;
            found = &mut answer => return found.ok(),
            turn = self.turn.clone().acquire_owned() => turn.ok()?,
        };
        let (pending, node) = (std::mem::take(&mut *self.pending()), self.node.clone());
        let look = move || {
            // Until it ends, though nobody waits for it any more.
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

/// Proof for one connection; clones share it.
#[derive(Clone)]
pub(super) struct RootVerification {
    looks: Arc<RootLooks>,
    inode: u32,
    found: Arc<OnceCell<bool>>,
}

impl RootVerification {
    /// Proof for the peer whose socket has that inode.
    pub(super) fn new(looks: Arc<RootLooks>, inode: u32) -> RootVerification {
        RootVerification { looks, inode, found: Arc::default() }
    }

    /// Outcome of the look, once there is one.
    pub(super) fn found(&self) -> Option<bool> {
        self.found.get().copied()
    }

    /// Looks for it, unless that was done. A look that fails, or takes too long, proves nothing; the next request repeats it.
    pub(super) async fn holds(&self) -> bool {
        let look = async || self.looks.look_for(self.inode).await.ok_or(());
        let found = timeout(LOOK_TIME, self.found.get_or_try_init(look)).await;
        matches!(found, Ok(Ok(true)))
    }
}

/// Sockets by their inodes.
pub type Inodes = HashSet<u32>;
