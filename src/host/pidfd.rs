//! Process exit reported by the kernel (pidfd_open(2)): no polling, and the process need not be a child. Kernels before
//! Linux 5.3 have no pidfds: there procfs is polled.

use std::os::fd::OwnedFd;
use std::time::Duration;

use procfs::{FromRead, Uptime};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
pub use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, kill_process, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::process::started;
use super::{HostError, Root};

/// Polling interval for the exit of a process where the kernel has no pidfds; a look takes some 10 µs.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Unambiguous reference to a process: another process may get the same pid, but never the same pid and start time.
#[derive(Debug)]
pub struct WatchedProcess {
    pub pid: u32,
    started: u64,
    root: Root,
    /// Descriptor that is readable once the process has exited; `None` if the kernel has no pidfds (before Linux 5.3).
    end: Option<AsyncFd<OwnedFd>>,
}

impl WatchedProcess {
    /// Watches the process that has `pid` now; `None` if there is none. Must be called within the tokio runtime.
    pub fn of(root: &Root, pid: u32) -> Option<WatchedProcess> {
        // The descriptor is opened before the start time is read, so that both belong to the same process.
        let end = open(pid).and_then(readable);
        let started = started(root, pid)?;
        Some(WatchedProcess { pid, started, root: root.clone(), end })
    }

    /// `true` if `other` is a reference to the same process.
    pub fn is(&self, other: &WatchedProcess) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }

    /// Returns when the process has exited. Cancel-safe.
    pub async fn ended(&self) {
        if let Some(end) = &self.end {
            return drop(end.ready(Interest::READABLE).await);
        }
        while self.lives() {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// `true` if the process is alive. The answer comes from the descriptor, which works even if the machine runs out
    /// of descriptors; without one, from procfs.
    pub fn lives(&self) -> bool {
        match &self.end {
            Some(end) => {
                let mut ready = [PollFd::new(end.get_ref(), PollFlags::IN)];
                poll(&mut ready, Some(&Timespec::default())) == Ok(0)
            }
            None => started(&self.root, self.pid) == Some(self.started),
        }
    }

    /// Sends `signal` to the process; does nothing if it has exited.
    ///
    /// # Errors
    /// [`HostError::Kill`] when the kernel refuses the signal.
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

    /// Age of the process; `None` if unknown.
    pub fn age(&self) -> Option<Duration> {
        let up = Uptime::from_file(self.root.path("/proc/uptime")).ok()?.uptime_duration();
        let ticks = procfs::ticks_per_second();
        let start = Duration::from_millis(self.started.saturating_mul(1000) / ticks.max(1));
        Some(up.saturating_sub(start))
    }
}

/// Registers `fd` with the tokio runtime.
#[allow(unsafe_code)] // the runtime requires a guarantee that the type system cannot express
fn readable(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the registered value, stays the same, and is closed only with it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.ok()
}

/// Descriptor of the process `pid`, readable once the process has exited. `None` if no process has that pid, or the
/// kernel has no pidfds.
pub(super) fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}

/// `true` if the kernel has pidfds, without which nothing that is read is kept.
#[cfg(test)]
pub fn is_there() -> bool {
    let is_there = open(std::process::id()).is_some();
    if !is_there {
        println!("SKIPPED: this kernel has no pidfds");
    }
    is_there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_exit_of_a_process_is_seen_before_it_is_reaped() {
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

    #[tokio::test]
    async fn exit_is_seen_and_a_signal_sent_where_the_kernel_has_no_pidfds() {
        let root = Root::new("/");
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let watched =
            WatchedProcess { end: None, ..WatchedProcess::of(&root, child.id()).unwrap() };
        assert!(watched.lives());
        watched.signal(Signal::TERM).unwrap();
        watched.ended().await;
        assert!(!watched.lives(), "a zombie has exited");
        child.wait().unwrap();
        watched.signal(Signal::KILL).unwrap();
    }
}
