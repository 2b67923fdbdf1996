//! The process of a target: from its options to its exit code.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Options;
use super::cores::CoreError;
use super::rpc::Server;
use super::socket::{Control, ControlError};
use super::target::Target;

/// How long requests that are being served may hold up a stop. What is not answered then is in the
/// in-flight record; a guest waits longer for a target that stops slowly than for one that is killed.
const GRACE: Duration = Duration::from_millis(400);

/// Why a target does not run.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It was told to use a core that it may not use.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The folder of the sockets cannot be made.
    #[error("the folder of the vhost sockets cannot be made")]
    Folder(#[source] Errno),
    /// The signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] Errno),
    /// The control socket broke.
    #[error("the control socket cannot be served any more")]
    Serve(#[source] io::Error),
}

/// Runs a target until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; what is wrong is named.
pub fn run(options: &Options) -> Result<(), TargetError> {
    if let Some(cores) = &options.cores {
        cores.check()?;
    }
    raise_descriptors();
    // Blocked before there is a second thread, so that they only come in here.
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

/// Each controller costs some: as many as there may be.
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
            // The threads are still at work on what would be dropped.
            std::mem::forget(target);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
