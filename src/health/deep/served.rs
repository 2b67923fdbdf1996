//! Check that a target serves vhost connections, before virtual machines may connect. It is made with a disk of the
//! agent's own, on whose socket the target must answer.
//!
//! ```text
//! serve ─▸ canary made ─▸ connected, asked for its features, answered ─▸ Served
//!                                   dropped ─▸ connected and closed: the target wakes ─▸ canary removed
//! ```
//! A virtual machine that connects to a controller which is not served yet never reconnects if the target dies before
//! it serves (the lost reconnect: packaging/doc/facts.md, "Guests when a target dies"). SPDK v24.01 takes up to a
//! second until it serves the first controller of a process. Controllers created later take as long, unless a
//! connection to a controller that is served already wakes the target.

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

/// Time limit for the removal of the disk; no caller waits for it.
const REMOVAL: Duration = Duration::from_secs(5);
/// Message VHOST_USER_GET_FEATURES: version 1, no payload (QEMU's documentation of the vhost-user protocol).
const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
/// Size in bytes of the reply to [`GET_FEATURES`]: a header, and 64 bits.
const REPLY: usize = 20;

/// Target that has just served a connection. On drop, another connection wakes it, so that it serves the controllers
/// created meanwhile.
#[derive(Debug)]
pub struct ServedTarget {
    _held: oneshot::Sender<()>,
}

impl DeepProbe {
    /// Creates a disk of the agent's own on a target, and waits until a connection to it is served.
    ///
    /// # Errors
    /// `sessions-not-served` when the target accepts a connection but does not serve it within `within`. Any other
    /// fault means only that the target cannot be checked in this way.
    pub async fn serve(
        &self,
        (control, sockets): (&CleanPath, &CleanPath),
        within: Duration,
    ) -> Result<ServedTarget, Fault> {
        let (ready, is_ready) = oneshot::channel();
        let (_held, held) = oneshot::channel();
        let (inner, place) = (self.0.clone(), (control.clone(), sockets.clone()));
        // The task does not end with the caller: one that goes away does not interrupt it.
        tokio::spawn(keep(inner, place, Instant::now() + within, ready, held));
        let given_up = |_| Fault::new(Code::Stopping, "the disk of the agent's own was given up");
        is_ready.await.map_err(given_up)??;
        Ok(ServedTarget { _held })
    }

    /// Removes the canaries that an earlier agent left on the target at `control`, unless that was done already. Works
    /// in the background.
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
        // Checked first: SPDK would truncate a long name, and replace any socket at the resulting path.
        validate_length(&sockets.join(canary.name()).parse()?)?;
        let paths = canary.make(&inner.root, &control, by).await?;
        is_served(connect(&paths, by).await?, by).await.map(|()| paths)
    };
    match made.await {
        Ok(paths) => {
            let _ = ready.send(Ok(()));
            // Ends when the holder drops its `ServedTarget`.
            let _ = held.await;
            let by = Instant::now() + CONNECT;
            // Waits for the answer, so that the session is established before the disk is removed.
            if let Ok(stream) = connect(&paths, by).await {
                let _ = is_served(stream, by).await;
            }
        }
        Err(fault) => drop(ready.send(Err(fault))),
    }
    let removed = canary.remove(Instant::now() + REMOVAL).await;
    inner.end(number);
    if let Err(fault) = &removed {
        tracing::debug!(
            control = control.as_str(), error = %fault,
            "the disk of the deep probe on the target at {} could not be removed, which is tried again: {fault}", control.as_str()
        );
    }
    // Removes what an earlier agent or a failed removal left; without such leftovers the target is not queried.
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
