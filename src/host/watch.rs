//! Wait for a change of a file, by inotify(7) instead of polling.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::HostError;

/// Watch on one path.
#[derive(Debug)]
pub struct PathWatch {
    path: PathBuf,
    inotify: AsyncFd<Queue>,
}

/// Queue of the kernel's events, as a type that tokio can register.
#[derive(Debug)]
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl PathWatch {
    /// Watches `path`: a file for writes, or a folder for entries that appear or disappear; also for changed
    /// attributes.
    ///
    /// # Errors
    /// When the kernel has no watch left or the path does not exist.
    pub fn new(path: &Path) -> Result<PathWatch, HostError> {
        let failed = |source: std::io::Error| HostError::Watch { path: path.to_owned(), source };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(|e| failed(e.into()))?;
        let events = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB;
        inotify.add_watch(path, events).map_err(|e| failed(e.into()))?;
        let inotify = register(Queue(inotify)).map_err(failed)?;
        Ok(PathWatch { path: path.to_owned(), inotify })
    }

    /// Returns when an event has occurred since the last call. Cancel-safe: an unread event stays in the kernel's
    /// queue.
    ///
    /// # Errors
    /// When the kernel's queue cannot be read.
    pub async fn changed(&self) -> Result<(), HostError> {
        let failed = |source: std::io::Error| HostError::Watch { path: self.path.clone(), source };
        loop {
            let mut ready = self.inotify.readable().await.map_err(failed)?;
            match self.inotify.get_ref().0.read_events() {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(e) => return Err(failed(e.into())),
            }
        }
    }
}

#[allow(unsafe_code)]
fn register(queue: Queue) -> std::io::Result<AsyncFd<Queue>> {
    // SAFETY: a queue owns its descriptor, always gives the same one, and neither closes nor
    // replaces it before it is dropped; the runtime has no safe way to take such a type.
    unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) }.map_err(Into::into)
}
