//! Vhost controller: a socket that a VM connects to, and the disk behind it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use super::disk::ControllerDisk;
use super::session::{End, serve};
use super::session_progress::SessionProgress;

/// Next session number of this process.
static SESSIONS: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug, Default)]
struct ControllerState {
    session: Option<Arc<SessionProgress>>,
    closed: bool,
}

/// Vhost-blk controller; dropping it stops its thread and removes its socket.
#[derive(Debug)]
pub(in crate::builtin) struct BlkController {
    pub(in crate::builtin) disk: Arc<ControllerDisk>,
    path: PathBuf,
    state: Arc<Mutex<ControllerState>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<ControllerState>) -> MutexGuard<'_, ControllerState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlkController {
    /// Creates a controller that listens at `path`, where no file may exist.
    ///
    /// # Errors
    /// When the socket cannot be created, or no threads or descriptors are left.
    pub(in crate::builtin) fn new(disk: ControllerDisk, path: PathBuf) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let (disk, state) = (Arc::new(disk), Arc::new(Mutex::new(ControllerState::default())));
        let mut controller = Self { disk, path, state, stop, thread: None };
        let (disk, state) = (Arc::clone(&controller.disk), Arc::clone(&controller.state));
        let stop = Arc::clone(&controller.stop);
        let run = move || listen(&listener, &stop, &disk, &state);
        let name = "vhost-listen".to_string();
        let thread = std::thread::Builder::new().name(name).stack_size(512 << 10).spawn(run)?;
        controller.thread = Some(thread);
        Ok(controller)
    }

    pub(in crate::builtin) fn path(&self) -> &Path {
        &self.path
    }

    /// Session of the connected VM; `None` if no VM is connected.
    pub(in crate::builtin) fn session(&self) -> Option<Arc<SessionProgress>> {
        lock(&self.state).session.clone()
    }

    /// Refuses VMs from now on; `false` without effect if a VM is connected.
    pub(in crate::builtin) fn close(&self) -> bool {
        let mut state = lock(&self.state);
        state.closed |= state.session.is_none();
        state.closed
    }

    /// Notifies the connected guest, if there is one, of its disk's new size.
    pub(in crate::builtin) fn announce_resize(&self) {
        if let Some(session) = self.session() {
            session.config_changed();
        }
    }

    /// Removes the socket and requests the end of the session, without waiting for it.
    pub(in crate::builtin) fn begin_stop(&self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = self.stop.write(1);
    }

    /// `true` if the controller's thread has ended.
    pub(in crate::builtin) fn has_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for BlkController {
    fn drop(&mut self) {
        self.begin_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts and serves one VM after the other, until `stop` is signalled.
fn listen(
    listener: &UnixListener,
    stop: &EventFd,
    disk: &Arc<ControllerDisk>,
    state: &Mutex<ControllerState>,
) {
    while wait(listener, stop) {
        let Ok((stream, _)) = listener.accept() else { continue };
        if !disk.bdev.take() {
            tracing::warn!(
                controller = disk.name,
                bdev = disk.bdev.name,
                "a VM's connection to controller {} was closed: another VM uses the disk {}",
                disk.name,
                disk.bdev.name
            );
            continue;
        }
        let end = attend(stream, listener, stop, disk, state);
        disk.bdev.give_back();
        if end == End::Stopped {
            return;
        }
    }
}

fn attend(
    stream: UnixStream,
    listener: &UnixListener,
    stop: &EventFd,
    disk: &Arc<ControllerDisk>,
    state: &Mutex<ControllerState>,
) -> End {
    let progress = Arc::new(SessionProgress::new(SESSIONS.fetch_add(1, Ordering::Relaxed)));
    {
        let mut state = lock(state);
        if state.closed {
            return End::Stopped;
        }
        state.session = Some(Arc::clone(&progress));
    }
    tracing::info!(
        controller = disk.name,
        session = progress.vid,
        "a client has connected to controller {} (session {})",
        disk.name,
        progress.vid
    );
    let early = disk.served_from.saturating_duration_since(Instant::now());
    if !early.is_zero() && stops_within(stop, early) {
        return End::Stopped;
    }
    let end = serve(stream, listener, stop, disk, &progress);
    lock(state).session = None;
    tracing::info!(
        controller = disk.name,
        session = progress.vid,
        "session {} of controller {} has ended",
        progress.vid,
        disk.name
    );
    end.unwrap_or_else(|error| {
        tracing::error!(
            controller = disk.name, %error,
            "session {} of controller {} failed: {error}", progress.vid, disk.name
        );
        End::Frontend
    })
}

/// `true` if `stop` is signalled within `time`.
fn stops_within(stop: &EventFd, time: Duration) -> bool {
    let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(as_fd(stop), PollFlags::POLLIN)];
    poll(&mut fds, time).is_ok_and(|ready| ready > 0)
}

#[allow(unsafe_code)]
fn as_fd(stop: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is borrowed for no longer than what owns it.
    unsafe { BorrowedFd::borrow_raw(stop.as_raw_fd()) }
}

/// Waits for a connection to `listener`; `false` if `stop` is signalled.
fn wait(listener: &UnixListener, stop: &EventFd) -> bool {
    let mut fds = [
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        PollFd::new(as_fd(stop), PollFlags::POLLIN),
    ];
    let _ = poll(&mut fds, PollTimeout::NONE);
    !fds[1].any().unwrap_or(true)
}
