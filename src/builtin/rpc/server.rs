//! Server of the control socket: all connections on one thread.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::super::target::Target;
use super::connection::Connection;

/// Maximum number of connections that are served; further clients wait in the listener's queue.
const CONNECTIONS: usize = 64;

/// Server of the control socket.
pub(in crate::builtin) struct Server<'a> {
    listener: &'a UnixListener,
    signals: &'a SignalFd,
    connections: Vec<Connection>,
}

impl<'a> Server<'a> {
    pub(in crate::builtin) fn new(listener: &'a UnixListener, signals: &'a SignalFd) -> Self {
        Self { listener, signals, connections: Vec::new() }
    }

    /// Serves until a signal arrives.
    ///
    /// # Errors
    /// When polling fails.
    pub(in crate::builtin) fn run(mut self, target: &mut Target) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.signal {
                return Ok(());
            }
            let mut index = 0;
            self.connections.retain_mut(|connection| {
                let (readable, writable) = ready.connections[index];
                index += 1;
                let written = if writable { connection.write() } else { Ok(()) };
                let read = if readable { connection.read(target) } else { Ok(()) };
                written.is_ok() && read.is_ok()
            });
            self.connections.retain_mut(|connection| connection.ask_again(target).is_ok());
            if ready.listener {
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < CONNECTIONS {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection::new(stream));
            }
        }
    }

    fn timeout(&self) -> PollTimeout {
        let deadline = self.connections.iter().filter_map(Connection::deadline).min();
        let Some(deadline) = deadline else { return PollTimeout::NONE };
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn wait(&self) -> io::Result<Polled> {
        let room = self.connections.len() < CONNECTIONS;
        let accept = if room { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), accept),
        ];
        fds.extend(self.connections.iter().map(|connection| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, connection.wants_to_read());
            events.set(PollFlags::POLLOUT, connection.wants_to_write());
            PollFd::new(connection.stream.as_fd(), events)
        }));
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let got = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let gone = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        let each =
            |fd: &PollFd<'_>| (got(fd).intersects(gone), got(fd).contains(PollFlags::POLLOUT));
        Ok(Polled {
            signal: !got(&fds[0]).is_empty(),
            listener: !got(&fds[1]).is_empty(),
            connections: fds[2..].iter().map(each).collect(),
        })
    }
}

/// Descriptors that a poll found ready.
struct Polled {
    signal: bool,
    listener: bool,
    /// For each connection, in order: readable, writable.
    connections: Vec<(bool, bool)>,
}
