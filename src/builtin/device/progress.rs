//! How far a session is, and the way to tell its guest something.

use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use super::notice;

/// How far a session is, for whoever asks.
#[derive(Debug, Default)]
pub(in crate::builtin) struct Progress {
    /// The number of the session within its process.
    pub(in crate::builtin) vid: usize,
    /// Rings that are being served.
    pub(in crate::builtin) running: AtomicUsize,
    /// Requests that are being served.
    pub(in crate::builtin) in_flight: Arc<AtomicUsize>,
    /// Where the guest is told that its disk has changed.
    notices: Mutex<Option<UnixStream>>,
}

impl Progress {
    pub(super) fn new(vid: usize) -> Self {
        Self { vid, ..Self::default() }
    }

    /// From now on the guest is told there.
    pub(super) fn notify_at(&self, notices: UnixStream) {
        *self.notices.lock().unwrap_or_else(PoisonError::into_inner) = Some(notices);
    }

    /// Tells the guest that its disk has another size.
    pub(super) fn config_changed(&self) {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = notices.as_ref().map(notice::config_changed) {
            tracing::warn!(%error, "a guest was not told of its disk's new size");
        }
    }
}
