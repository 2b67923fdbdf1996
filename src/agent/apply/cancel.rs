//! Cancel handle of the work on the memory, for when the agent stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::host::pools::Cut;

/// Cancel handle of the work on the memory.
#[derive(Debug, Clone)]
pub struct CancelHandle {
    stopping: Arc<AtomicBool>,
    cut: Cut,
}

impl CancelHandle {
    /// Makes a handle that sets `stopping` and interrupts the current write.
    pub(super) fn new(stopping: Arc<AtomicBool>, cut: Cut) -> CancelHandle {
        CancelHandle { stopping, cut }
    }

    /// Makes writes to pools interruptible. Call on the runtime.
    ///
    /// # Errors
    /// When the signal for it cannot be caught.
    pub fn arm(&self) -> std::io::Result<()> {
        self.cut.arm()
    }

    /// Interrupts the current write to a pool, and has all further growth refused. Call it again until the growth has
    /// ended: one call interrupts one write only.
    pub fn cancel(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.cut.now();
    }
}
