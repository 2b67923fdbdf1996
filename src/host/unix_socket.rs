//! The agent's own Unix socket, and the files with certificates and secrets that decide who may connect.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::HostError;

/// Length of the kernel's queue of connections that are not accepted yet.
const BACKLOG: i32 = 1024;

/// Mode bits for users other than the owner and the group. A file with a secret that has any of them is refused.
const OTHERS: u32 = 0o007;

/// Failure to create a listening socket.
#[derive(Debug, thiserror::Error)]
pub enum UnixListenerError {
    /// Another process listens at the path.
    #[error("{0} is served by another process: is another agent there? (access.socket)")]
    InUse(PathBuf),
    /// A file that is no socket is at the path.
    #[error("{0} is no socket: move it away, or choose another path (access.socket)")]
    Other(PathBuf),
    /// The kernel refused to create or configure the socket.
    #[error("cannot make the socket {path} (access.socket)")]
    Make { path: PathBuf, source: io::Error },
}

/// Path of a listening socket; dropping this removes the file.
#[derive(Debug)]
pub struct UnixListenerSocket {
    path: PathBuf,
}

impl Drop for UnixListenerSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at `path`, with the group `gid` and the given `mode`. The socket of an agent that died is removed first; the
/// caller must hold the node's lock, so that no other agent runs.
///
/// # Errors
/// When another process listens at `path`, or the path cannot be used.
pub fn listen_at(
    path: &Path,
    gid: u32,
    mode: u32,
) -> Result<(UnixListener, UnixListenerSocket), UnixListenerError> {
    let failed = |source| UnixListenerError::Make { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        // Permitted clients must be able to traverse the folders, whatever the umask (the agent's unit has 0077).
        let made: Vec<&Path> = folder.ancestors().take_while(|above| !above.exists()).collect();
        fs::create_dir_all(folder).map_err(failed)?;
        let open = fs::Permissions::from_mode(0o755);
        made.iter().try_for_each(|it| fs::set_permissions(it, open.clone())).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(UnixListenerError::Other(path.to_owned()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(UnixListenerError::InUse(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
    }
    // Created under a temporary name and then renamed: at its final path the socket never has another group or mode.
    let made = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&made);
    let listener = UnixListener::bind(&made).map_err(failed)?;
    let given = (|| {
        chown(&made, None, Some(gid))?;
        fs::set_permissions(&made, fs::Permissions::from_mode(mode))?;
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(BACKLOG)?)?;
        listener.set_nonblocking(true)?;
        fs::rename(&made, path)
    })();
    if let Err(e) = given {
        let _ = fs::remove_file(&made);
        return Err(failed(e));
    }
    Ok((listener, UnixListenerSocket { path: path.to_owned() }))
}

/// Reads a file that everybody may read, such as a certificate.
///
/// # Errors
/// When it cannot be read.
pub fn read_public(path: &str) -> Result<Vec<u8>, HostError> {
    fs::read(path).map_err(|source| HostError::Read { path: path.into(), source })
}

/// Reads a file with a secret.
///
/// # Errors
/// When the file cannot be read, or users other than its owner and its group have any right to it.
pub fn read_secret(path: &str) -> Result<Vec<u8>, HostError> {
    let read = |source| HostError::Read { path: path.into(), source };
    let mode = fs::metadata(path).map_err(read)?.permissions().mode();
    if mode & OTHERS != 0 {
        return Err(HostError::NoSecret { path: path.into(), mode: mode & 0o7777 });
    }
    fs::read(path).map_err(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_agents_socket_is_replaced_and_a_live_ones_and_any_other_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/agent.sock");
        let (listener, socket) = listen_at(&path, 0, 0o660).unwrap();
        let meta = fs::symlink_metadata(&path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o660);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(listen_at(&path, 0, 0o660), Err(UnixListenerError::InUse(_))));
        drop(listener);
        assert!(path.exists(), "as a kill leaves it");
        std::mem::forget(socket);
        let (_listener, socket) = listen_at(&path, 0, 0o600).unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
        fs::write(&path, "of the operator").unwrap();
        assert!(matches!(listen_at(&path, 0, 0o660), Err(UnixListenerError::Other(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "of the operator");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_by_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "key").unwrap();
        let read = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            read_secret(path.to_str().unwrap())
        };
        assert_eq!(read(0o640).unwrap(), b"key");
        let error = read(0o644).unwrap_err().to_string();
        assert!(error.contains("0644") && error.contains("chmod o="), "{error}");
    }
}
