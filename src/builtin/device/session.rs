//! Session of a VM that is connected to a controller.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::{BackendReqHandler, Error};
use vmm_sys_util::eventfd::EventFd;

use super::disk::ControllerDisk;
use super::negotiation::Negotiation;
use super::notice;
use super::session_progress::SessionProgress;
use super::worker::WorkerHandle;

/// Reason for the end of a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The VM has disconnected, or sent an invalid message.
    Frontend,
    /// The controller is being deleted, or the target stops.
    Stopped,
}

/// Starts one worker for each core, so that the rings of a VM are spread over the cores.
fn workers(disk: &Arc<ControllerDisk>, vid: usize) -> std::io::Result<Vec<WorkerHandle>> {
    let count = disk.cores.as_ref().map_or(1, |cores| cores.numbers().len());
    (0..count.min(usize::from(super::config::QUEUES)))
        .map(|nth| {
            let pin = disk.cores.clone().map(|cores| (cores, vid + nth));
            WorkerHandle::start(Arc::clone(disk), format!("vhost-io-{vid}-{nth}"), pin)
        })
        .collect()
}

/// Serves the VM at the other end of `stream` until it disconnects or `stop` is signalled. Further connections to
/// `listener` are accepted and closed meanwhile: two VMs on one disk destroy its data.
///
/// # Errors
/// When no threads or descriptors are left.
pub(super) fn serve(
    stream: UnixStream,
    listener: &UnixListener,
    stop: &EventFd,
    disk: &Arc<ControllerDisk>,
    progress: &Arc<SessionProgress>,
) -> std::io::Result<End> {
    let workers = workers(disk, progress.vid)?;
    let negotiation = Negotiation::new(Arc::clone(disk), workers, Arc::clone(progress));
    let device = Arc::new(Mutex::new(negotiation));
    let mut frontend = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&device));
    let end = loop {
        let ready = wait(&stream, Some(listener), stop)?;
        if ready.stop {
            break End::Stopped;
        }
        if ready.stream {
            if let Some(socket) = notice::peek(stream.as_fd()) {
                progress.notify_at(socket);
            }
            match frontend.handle_request() {
                Ok(()) | Err(Error::SocketRetry(_)) => {}
                Err(error) => {
                    if !matches!(error, Error::Disconnected | Error::SocketBroken(_)) {
                        tracing::warn!(
                            controller = disk.name, %error,
                            "session {} of controller {} is closed: {error}", progress.vid, disk.name
                        );
                    }
                    break End::Frontend;
                }
            }
        } else if ready.listener && listener.accept().is_ok() {
            tracing::warn!(
                controller = disk.name,
                "a further connection to controller {} was closed: it has a client already",
                disk.name
            );
        }
    };
    device.lock().unwrap_or_else(PoisonError::into_inner).stop_all();
    Ok(end)
}

struct ReadyFds {
    stream: bool,
    listener: bool,
    stop: bool,
}

fn wait(
    stream: &UnixStream,
    listener: Option<&UnixListener>,
    stop: &EventFd,
) -> std::io::Result<ReadyFds> {
    // SAFETY: the eventfd is borrowed for longer than this call lasts.
    #[allow(unsafe_code)]
    let stop = unsafe { BorrowedFd::borrow_raw(stop.as_raw_fd()) };
    let mut fds =
        vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
    fds.extend(listener.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let ready = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(false));
    Ok(ReadyFds { stream: ready(0), stop: ready(1), listener: ready(2) })
}
