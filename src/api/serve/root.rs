//! Proof that a peer which is root is so outside of containers.
//!
//! Looked for at the first request of its connection, for many connections never make one, and kept with the connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

use super::KnowsPeers;

/// Only one request at a time has the machine's descriptors looked through: many would keep its CPUs busy.
static LOOKS: Semaphore = Semaphore::const_new(1);
/// Requests that wait for their look, with the one that has it. Of more nothing is proven: root has the Unix socket.
static WAIT: Semaphore = Semaphore::const_new(64);
/// Longest wait for a look.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Proof of one connection, wanted or found; clones are one.
#[derive(Clone)]
pub(super) struct RootProof {
    node: Arc<dyn KnowsPeers>,
    inode: u32,
    found: Arc<OnceCell<bool>>,
}

impl RootProof {
    /// Proof for the peer whose socket has that inode.
    pub(super) fn new(node: Arc<dyn KnowsPeers>, inode: u32) -> RootProof {
        RootProof { node, inode, found: Arc::default() }
    }

    /// Outcome of the look, where there was one.
    pub(super) fn found(&self) -> Option<bool> {
        self.found.get().copied()
    }

    /// Looks for it, unless that was done. A look that cannot be had in time proves nothing, and the next request asks again.
    pub(super) async fn holds(&self) -> bool {
        let look = async {
            let _waits = WAIT.try_acquire().map_err(|_| ())?;
            let alone = LOOKS.acquire().await.map_err(|_| ())?;
            let (node, inode) = (self.node.clone(), self.inode);
            let look = move || {
                // Until it ends, though nobody waits for it any more.
                let _alone = alone;
                node.is_held_here(inode)
            };
            tokio::task::spawn_blocking(look).await.map_err(|_| ())
        };
        let found = timeout(LOOK_TIME, self.found.get_or_try_init(|| look)).await;
        matches!(found, Ok(Ok(true)))
    }
}
