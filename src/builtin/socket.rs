//! Sockets in the file system: their owner, and creation without taking another's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::os::fd::AsRawFd;

/// Limit of a socket address's path in bytes.
pub(super) const PATH_BYTES: usize = 107;

/// Kind of file at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occupant {
    Nothing,
    /// Socket of a process that is gone.
    Stale,
    /// Socket that some process serves.
    Live,
    /// Any other kind, such as a regular file.
    Other,
}

/// Determines the occupant of `path` without connecting to it: what accepts a connection on a volume's socket may take
/// it for a VM. A connection of another type is refused with one error if a process has the socket, with another if
/// none has.
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
    /// Socket locked or served by another process.
    #[error("RPC socket {0} is in use by another process; stop that one, or give another -r")]
    InUse(PathBuf),
    /// Other file at the socket's path.
    #[error("{0} is there and is no socket; move it away, or give another -r")]
    NoSocket(PathBuf),
    /// Refusal by the kernel.
    #[error("RPC socket {path} cannot be made")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Control socket and its lock; dropped, both files are removed.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl Control {
    /// Takes the lock beside `path`, removes the socket of a dead process, and listens.
    ///
    /// # Errors
    /// When a live process has it, or the kernel refuses it.
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
