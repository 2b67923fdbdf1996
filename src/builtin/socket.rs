//! Sockets in the file system: whether a process serves one, and creation of the control socket without taking that of
//! another process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::os::fd::AsRawFd;

/// Maximum length of a socket's path in bytes.
pub(super) const PATH_BYTES: usize = 107;

/// Kind of file at a path; a socket is stale or live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occupant {
    Nothing,
    /// Socket that no process serves any more.
    Stale,
    /// Socket that a process serves, or may serve.
    Live,
    /// Any other kind of file.
    Other,
}

/// Determines the occupant of `path` without connecting to it: the process that serves a volume's socket may take a
/// connection for a VM. A datagram connection is attempted, which a stream socket always refuses. The error is
/// `ECONNREFUSED` if no process serves the socket.
///
/// # Errors
/// When the path or its socket cannot be examined.
pub(super) fn occupant(path: &Path) -> io::Result<Occupant> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Ok(Occupant::Other);
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    let address = UnixAddr::new(path)?;
    match connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED) => Ok(Occupant::Stale),
        Err(Errno::ENOENT) => Ok(Occupant::Nothing),
        Ok(()) | Err(_) => Ok(Occupant::Live),
    }
}

/// Failure to create the control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process has the lock or serves the socket.
    #[error("RPC socket {0} is in use by another process; stop that one, or give another -r")]
    InUse(PathBuf),
    /// A file that is no socket is at the path.
    #[error("{0} is there and is no socket; move it away, or give another -r")]
    NoSocket(PathBuf),
    /// The kernel refused to create the socket or its lock.
    #[error("RPC socket {path} cannot be made")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Control socket and its lock; dropping this removes both files.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl Control {
    /// Takes the lock `<path>.lock`, removes the socket of a dead process, and listens at `path`.
    ///
    /// # Errors
    /// When another process has the lock or serves the socket, when another kind of file is at `path`, or when the
    /// kernel refuses.
    pub(super) fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Make { path: path.to_path_buf(), source };
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&lock_path).map_err(failed)?;
        let lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    Errno::EWOULDBLOCK => ControlError::InUse(path.to_path_buf()),
                    errno => failed(errno.into()),
                },
            )?;
        match occupant(path).map_err(failed)? {
            Occupant::Live => return Err(ControlError::InUse(path.to_path_buf())),
            Occupant::Other => return Err(ControlError::NoSocket(path.to_path_buf())),
            Occupant::Stale => std::fs::remove_file(path).map_err(failed)?,
            Occupant::Nothing => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, path: path.to_path_buf(), lock_path, _lock: lock })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_and_stale_sockets_are_distinguished_without_a_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(occupant(&path).unwrap(), Occupant::Nothing);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(occupant(&path).unwrap(), Occupant::Live);
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        assert_eq!(occupant(&path).unwrap(), Occupant::Stale);
        assert_eq!(occupant(dir.path()).unwrap(), Occupant::Other);
    }

    #[test]
    fn a_control_socket_is_held_once_and_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spdk.sock");
        drop(UnixListener::bind(&path).unwrap());
        let control = Control::bind(&path).unwrap();
        assert!(matches!(Control::bind(&path), Err(ControlError::InUse(_))));
        drop(control);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(&path, "").unwrap();
        assert!(matches!(Control::bind(&path), Err(ControlError::NoSocket(_))));
    }
}
