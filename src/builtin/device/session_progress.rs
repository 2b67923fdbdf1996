//! Progress of a session, and the socket for notifications to its guest.

use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use super::notice;

/// Progress of a session, as `vhost_get_controllers` reports it.
#[derive(Debug, Default)]
pub(in crate::builtin) struct SessionProgress {
    /// Number of the session, unique in this process.
    pub(in crate::builtin) vid: usize,
    /// Number of running rings.
    pub(in crate::builtin) running: AtomicUsize,
    /// Number of requests being served.
    pub(in crate::builtin) in_flight: Arc<AtomicUsize>,
    /// Socket for notifications to the guest; `None` until the frontend hands it over.
    notices: Mutex<Option<UnixStream>>,
}

impl SessionProgress {
    pub(super) fn new(vid: usize) -> Self {
        Self { vid, ..Self::default() }
    }

    /// Sets the socket for notifications to the guest.
    pub(super) fn notify_at(&self, notices: UnixStream) {
        *self.notices.lock().unwrap_or_else(PoisonError::into_inner) = Some(notices);
    }

    /// Notifies the guest of its disk's new size.
    pub(super) fn config_changed(&self) {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = notices.as_ref().map(notice::config_changed) {
            tracing::warn!(
                session = self.vid, %error,
                "the guest of session {} was not notified of its disk's new size: {error}", self.vid
            );
        }
    }
}
