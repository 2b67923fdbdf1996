//! Making the work on the memory end early, when the agent stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::apply::memory::Cut;

/// Makes the work on the memory end early.
#[derive(Debug, Clone)]
pub struct Brake {
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) cut: Cut,
}

impl Brake {
    /// Makes it possible to cut a write to a pool short. On the runtime.
    ///
    /// # Errors
    /// When the signal that does it cannot be caught.
    pub fn arm(&self) -> std::io::Result<()> {
        self.cut.arm()
    }

    /// Has the growth at hand end, and all further growth refused; again and again until it has ended,
    /// for each write is cut by itself.
    pub fn pull(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.cut.now();
    }
}
