//! A process whose end the kernel tells (pidfd_open(2)), without polling and without being its parent.

use std::os::fd::OwnedFd;
use std::time::Duration;

use procfs::{FromRead, Uptime};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
pub use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, kill_process, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::process::started;
use super::{HostError, Root};

/// One process for ever: its pid may be given to another, its start time with it not.
#[derive(Debug)]
pub struct WatchedProcess {
    /// Its pid.
    pub pid: u32,
    started: u64,
    root: Root,
    /// Readable when it has ended; none where the kernel cannot tell (before Linux 5.3).
    end: Option<AsyncFd<OwnedFd>>,
}

impl WatchedProcess {
    /// Watches the process that has that pid now; `None` when there is none. On the runtime.
    pub fn of(root: &Root, pid: u32) -> Option<WatchedProcess> {
        // Opened before it is looked at: what is seen then is what is watched.
        let end = open(pid).and_then(readable);
        let started = started(root, pid)?;
        Some(WatchedProcess { pid, started, root: root.clone(), end })
    }

    /// Whether the other is the same process.
    pub fn is(&self, other: &WatchedProcess) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }

    /// Returns when it has ended; never where the kernel cannot tell that. Cancel-safe.
    pub async fn ended(&self) {
        match &self.end {
            Some(end) => drop(end.ready(Interest::READABLE).await),
            None => std::future::pending().await,
        }
    }

    /// Whether it still lives: asked of the descriptor, which no shortage can make lie; where there is
    /// none, of procfs.
    pub fn lives(&self) -> bool {
        match &self.end {
            Some(end) => {
                let mut told = [PollFd::new(end.get_ref(), PollFlags::IN)];
                poll(&mut told, Some(&Timespec::default())) == Ok(0)
            }
            None => started(&self.root, self.pid) == Some(self.started),
        }
    }

    /// Sends it a signal; one that has ended needs none.
    ///
    /// # Errors
    /// [`HostError::Kill`].
    pub fn signal(&self, signal: Signal) -> Result<(), HostError> {
        let sent = match &self.end {
            Some(end) => pidfd_send_signal(end.get_ref(), signal),
            None if self.lives() => match Pid::from_raw(i32::try_from(self.pid).unwrap_or(0)) {
                Some(pid) => kill_process(pid, signal),
                None => Ok(()),
            },
            None => Ok(()),
        };
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(HostError::Kill { pid: self.pid, source: e.into() }),
        }
    }

    /// How long ago it was started; `None` when that cannot be told.
    pub fn age(&self) -> Option<Duration> {
        let up = Uptime::from_file(self.root.path("/proc/uptime")).ok()?.uptime_duration();
        let ticks = procfs::ticks_per_second();
        let start = Duration::from_millis(self.started.saturating_mul(1000) / ticks.max(1));
        Some(up.saturating_sub(start))
    }
}

/// The descriptor as the runtime asks for it.
#[allow(unsafe_code)] // the runtime wants a promise that the type system cannot give
fn readable(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is registered, stays the same, and is closed only with it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.ok()
}

/// The descriptor of a process, readable when it has ended; `None` when there is none of that pid, or the
/// kernel has no such descriptors.
pub(super) fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_told_though_it_was_not_waited_for() {
        let root = Root::new("/");
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let watched = WatchedProcess::of(&root, child.id()).unwrap();
        assert!(watched.lives() && watched.age().unwrap() < Duration::from_secs(60));
        watched.signal(Signal::TERM).unwrap();
        watched.ended().await;
        watched.signal(Signal::KILL).unwrap();
        assert!(!watched.lives());
        child.wait().unwrap();
        assert!(WatchedProcess::of(&root, child.id()).is_none());
    }
}
