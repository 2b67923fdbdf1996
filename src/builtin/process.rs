//! Process of a target: from its options to its exit code.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::StartOptions;
use super::cores::CoreError;
use super::rpc::Server;
use super::socket::{Control, ControlError};
use super::target::Target;

/// Grace period for requests being served when the target stops. Those not answered by then are in the in-flight
/// record; a guest waits longer for a target that stops slowly than for one that is killed.
const GRACE: Duration = Duration::from_millis(400);

/// Failure of a target process.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Core that the process may not use.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// Failure to create the control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Failure to create the folder of the sockets.
    #[error("the folder of the vhost sockets cannot be made")]
    Folder(#[source] Errno),
    /// Failure to receive signals.
    #[error("signals cannot be received")]
    Signals(#[source] Errno),
    /// Failure of the control socket while serving.
    #[error("the control socket cannot be served any more")]
    Serve(#[source] io::Error),
}

/// Runs a target until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, with the cause.
pub fn run(options: &StartOptions) -> Result<(), TargetError> {
    if let Some(cores) = &options.cores {
        cores.check()?;
    }
    raise_descriptors();
    // Blocked before there is a second thread, so that signals arrive only here.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(TargetError::Signals)?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&signals, flags).map_err(TargetError::Signals)?;
    let mut target = Target::new(options);
    target.make_folder().map_err(TargetError::Folder)?;
    let control = Control::bind(&options.rpc_socket)?;
    tracing::info!(rpc = %options.rpc_socket.display(), "the target serves");
    let served = Server::new(&control.listener, &signals).run(&mut target);
    drop(control);
    stop(target);
    served.map_err(TargetError::Serve)
}

/// Raises the limit of descriptors to its maximum, as each controller needs some.
fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(soft, %errno, "no more descriptors than these");
    }
}

fn stop(target: Target) {
    target.begin_stop();
    let deadline = Instant::now() + GRACE;
    while !target.has_stopped() {
        if Instant::now() >= deadline {
            tracing::warn!("requests are left in flight");
            // The threads still use what would be dropped.
            std::mem::forget(target);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
