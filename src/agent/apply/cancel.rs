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
    /// A handle that sets `stopping`, and cuts the write at hand short.
    pub(super) fn new(stopping: Arc<AtomicBool>, cut: Cut) -> CancelHandle {
        CancelHandle { stopping, cut }
    }

    /// Makes it possible to cut a write to a pool short. On the runtime.
    ///
    /// # Errors
    /// When the signal that does it cannot be caught.
    pub fn arm(&self) -> std::io::Result<()> {
        self.cut.arm()
    }

    /// Has the growth at hand end, and all further growth refused; again and again until it has ended,
    /// for each write is cut by itself.
    pub fn cancel(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.cut.now();
    }
}
