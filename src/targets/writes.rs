//! Writes of state, one after the other, each with a deadline: a disk that hangs blocks nobody for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::agent::observe::blocking;
use crate::model::code::Code;
use crate::model::fault::Fault;

/// Longest wait of a caller for the disk. Nothing else is done to a target meanwhile.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes that come one after the other; clones share the order.
#[derive(Debug, Clone, Default)]
pub(super) struct Writes(Arc<Mutex<()>>);

/// Turn of one write: no other begins before it is dropped.
pub(super) struct Turn {
    _held: OwnedMutexGuard<()>,
    until: Instant,
}

impl Writes {
    /// Waits for the turn of a write.
    ///
    /// # Errors
    /// When the writes before it take too long.
    pub(super) async fn turn(&self) -> Result<Turn, Fault> {
        let until = Instant::now() + WRITE_TIMEOUT;
        let held =
            timeout_at(until, self.0.clone().lock_owned()).await.map_err(|_| late_fault())?;
        Ok(Turn { _held: held, until })
    }
}

impl Turn {
    /// Runs `write`, and returns the turn with the outcome. If `write` ends too late, its outcome is passed to `late`,
    /// before the next write begins.
    ///
    /// # Errors
    /// When the disk takes too long.
    pub(super) async fn write<T: Send + 'static>(
        self,
        write: impl FnOnce() -> T + Send + 'static,
        late: impl FnOnce(T) + Send + 'static,
    ) -> Result<(Turn, T), Fault> {
        let until = self.until;
        let (sender, mut written) = oneshot::channel();
        let work = blocking(move || {
            let done = write();
            if let Err((_turn, done)) = sender.send((self, done)) {
                late(done);
            }
        });
        match timeout_at(until, &mut written).await {
            Ok(Ok(ended)) => Ok(ended),
            // The work broke off, and reports that.
            Ok(Err(_)) => Err(work.await.err().unwrap_or_else(late_fault)),
            Err(_) => {
                // From here on it is late, unless it was written at this very moment.
                written.close();
                written.try_recv().map_err(|_| late_fault())
            }
        }
    }
}

fn late_fault() -> Fault {
    let text = format!(
        "the disk did not take it within {WRITE_TIMEOUT:?}, and it is given up: see what holds the disk up, then \
         call again"
    );
    Fault::new(Code::StateUnwritable, text)
}
