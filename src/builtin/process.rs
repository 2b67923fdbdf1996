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

/// Grace period for requests in progress when the target stops. Requests not answered by its end stay in the in-flight
/// record for the next target. It is short, because the guest waits for that target meanwhile.
const GRACE: Duration = Duration::from_millis(400);

/// Failure of a target process.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A requested core is not available to the process.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The control socket could not be created.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The folder of the vhost sockets could not be created.
    #[error("the folder of the vhost sockets cannot be made")]
    Folder(#[source] Errno),
    /// Signals could not be redirected to a descriptor.
    #[error("signals cannot be received")]
    Signals(#[source] Errno),
    /// Serving the control socket failed.
    #[error("the control socket cannot be served any more")]
    Serve(#[source] io::Error),
}

/// Runs a target until SIGTERM or SIGINT.
///
/// # Errors
/// When the target cannot start, or its control socket cannot be served any more.
pub fn run(options: &StartOptions) -> Result<(), TargetError> {
    if let Some(cores) = &options.cores {
        cores.check()?;
    }
    raise_descriptors();
    // Signals are blocked before there is a second thread, so that they arrive only here.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(TargetError::Signals)?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&signals, flags).map_err(TargetError::Signals)?;
    let mut target = Target::new(options);
    target.make_folder().map_err(TargetError::Folder)?;
    let control = Control::bind(&options.rpc_socket)?;
    tracing::info!(
        rpc = %options.rpc_socket.display(),
        "the target serves its control socket {}", options.rpc_socket.display()
    );
    let served = Server::new(&control.listener, &signals).run(&mut target);
    drop(control);
    stop(target);
    served.map_err(TargetError::Serve)
}

/// Raises the limit of open descriptors to its maximum, because each controller needs some.
fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(
            soft, %errno,
            "the target's limit of open descriptors stays {soft}, raising it to {hard} failed: {errno}"
        );
    }
}

fn stop(target: Target) {
    target.begin_stop();
    let deadline = Instant::now() + GRACE;
    while !target.has_stopped() {
        if Instant::now() >= deadline {
            tracing::warn!(
                "requests of guests are not answered {GRACE:?} after the stop: they stay in the in-flight record for \
                 the next target"
            );
            // Not dropped, because the threads still use its parts.
            std::mem::forget(target);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
