//! Evidence that a target serves connections, before virtual machines may connect: a disk of the agent's own whose
//! socket is answered.
//!
//! ```text
//! serve ─▸ canary made ─▸ connected, asked for its features, answered ─▸ Served
//!                                   dropped ─▸ connected and closed: the target wakes ─▸ canary removed
//! ```
//! A virtual machine that connects to a controller which is not served yet is lost for good if the target dies then
//! (the lost reconnect: packaging/doc/facts.md, "Guests when a target dies"). SPDK v24.01 takes up to a second until it serves the first
//! controller of a process, and as long again for those made later, unless a connection to one that it serves wakes it.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::canary::{Canary, clear_leftovers};
use super::{CONNECT, DeepProbe, Inner, connect};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::{CleanPath, validate_length};
use crate::spdk::Spdk;

/// Time limit for the removal of the disk; nobody waits for it.
const REMOVAL: Duration = Duration::from_secs(5);
/// VHOST_USER_GET_FEATURES, version 1, without a payload (QEMU's documentation of the vhost-user protocol).
const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
/// Size of its reply in bytes: a header, and 64 bits.
const REPLY: usize = 20;

/// Target that has just served a connection. On drop, the target is woken for controllers created meanwhile.
#[derive(Debug)]
pub struct ServedTarget {
    _held: oneshot::Sender<()>,
}

impl DeepProbe {
    /// Creates a disk of the agent's own on a target, and waits until a connection to it is served.
    ///
    /// # Errors
    /// `sessions-not-served` when connections are accepted and not served within that time. Any other fault means only
    /// that the target cannot be checked in this way.
    pub async fn serve(
        &self,
        (control, sockets): (&CleanPath, &CleanPath),
        within: Duration,
    ) -> Result<ServedTarget, Fault> {
        let (ready, is_ready) = oneshot::channel();
        let (_held, held) = oneshot::channel();
        let (inner, place) = (self.0.clone(), (control.clone(), sockets.clone()));
        // A task of its own: a caller that goes away does not interrupt it.
        tokio::spawn(keep(inner, place, Instant::now() + within, ready, held));
        let given_up = |_| Fault::new(Code::Stopping, "the disk of the agent's own was given up");
        is_ready.await.map_err(given_up)??;
        Ok(ServedTarget { _held })
    }

    /// Removes disks that an earlier agent left on a target, unless that was done; nobody waits for it.
    pub fn clear_once(&self, control: &CleanPath) {
        if self.0.is_to_be_cleared(control.clone(), true) {
            let inner = self.0.clone();
            let spdk = inner.sockets.apart().at(&inner.root.path(control.as_str()));
            tokio::spawn(async move { inner.clear(&spdk).await });
        }
    }
}

async fn keep(
    inner: Arc<Inner>,
    (control, sockets): (CleanPath, CleanPath),
    by: Instant,
    ready: oneshot::Sender<Result<(), Fault>>,
    held: oneshot::Receiver<()>,
) {
    let spdk = inner.sockets.apart().at(&inner.root.path(control.as_str()));
    let number = inner.begin();
    let mut canary = Canary::new(&spdk, &inner.root, number);
    let made = async {
        // SPDK would truncate the name and take whatever socket is there.
        validate_length(&sockets.join(canary.name()).parse()?)?;
        let paths = canary.make(&inner.root, &control, by).await?;
        is_served(connect(&paths, by).await?, by).await.map(|()| paths)
    };
    match made.await {
        Ok(paths) => {
            let _ = ready.send(Ok(()));
            // Ends when the holder drops it.
            let _ = held.await;
            let by = Instant::now() + CONNECT;
            // Waits for the answer, so that the session is known before the disk is removed.
            if let Ok(stream) = connect(&paths, by).await {
                let _ = is_served(stream, by).await;
            }
        }
        Err(fault) => drop(ready.send(Err(fault))),
    }
    let removed = canary.remove(Instant::now() + REMOVAL).await;
    inner.end(number);
    if let Err(fault) = &removed {
        tracing::debug!(control = control.as_str(), error = %fault, "a disk of the agent's own stays");
    }
    // Leftovers of an earlier agent, and of a failed removal; otherwise nothing is asked.
    if inner.is_to_be_cleared(control, removed.is_ok()) {
        inner.clear(&spdk).await;
    }
}

impl Inner {
    async fn clear(&self, spdk: &Spdk) {
        let by = Instant::now() + REMOVAL;
        clear_leftovers(spdk, &self.root, || self.at_work().clone(), by).await;
    }
}

async fn is_served(mut stream: UnixStream, by: Instant) -> Result<(), Fault> {
    let asked = async {
        stream.write_all(&GET_FEATURES).await?;
        stream.read_exact(&mut [0; REPLY]).await
    };
    let why = match timeout_at(by, asked).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(e)) => format!("it was closed: {e}"),
        Err(_) => "it was not answered in time".to_string(),
    };
    let text = format!(
        "the target takes connections and serves none: the agent tried one, and {why}; it is tried again, and the target has to be restarted where it stays so"
    );
    Err(Fault::new(Code::SessionsNotServed, text))
}
