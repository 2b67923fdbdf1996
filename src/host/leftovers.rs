//! What a dead target leaves behind (field note 10): sockets, locks, hugetlbfs files. Whether somebody
//! still uses one is read from procfs; no socket is connected to, for a virtual machine may wait for it
//! (the lost reconnect in `reference/spdk-rpc.md`).

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::files::{entries, read_table};
use super::{HostError, Root};

/// Makes the folder of a target's sockets when it is missing; one that is there stays as it is.
///
/// # Errors
/// When it cannot be made, or something else is there.
pub fn make_folder(
    root: &Root,
    folder: &str,
    owner: (u32, u32),
    mode: u32,
) -> Result<(), HostError> {
    let path = root.path(folder);
    if path.is_dir() {
        return Ok(());
    }
    let above: Vec<&Path> = path.ancestors().skip(1).take_while(|it| !it.exists()).collect();
    let make = || {
        DirBuilder::new().recursive(true).mode(mode).create(&path)?;
        // The umask has had its say, and who may enter the folder has to come through those above it.
        let may_pass = fs::Permissions::from_mode(mode & !0o022);
        above.iter().try_for_each(|folder| fs::set_permissions(folder, may_pass.clone()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        chown(&path, Some(owner.0), Some(owner.1))
    };
    make().map_err(|source| HostError::MakeFolder { path: path.clone(), source })
}

/// Whether a live process holds the lock of a control socket.
pub fn is_locked(root: &Root, control: &str) -> bool {
    held(&root.path(format!("{control}.lock")))
}

/// Whether a process listens on a control socket, with a lock or without. A connection of another type is
/// refused with one error where a process has the socket and with another where none has: nothing is
/// connected.
pub fn is_served(root: &Root, control: &str) -> bool {
    let Ok(address) = UnixAddr::new(&root.path(control)) else { return false };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(probe) = socket(AddressFamily::Unix, SockType::Datagram, flags, None) else {
        return false;
    };
    connect(probe.as_raw_fd(), &address) == Err(Errno::EPROTOTYPE)
}

fn held(lock: &Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Removes the sockets in `folder` on which nobody listens, and the locks that nobody holds; returns
/// their paths. Everything else stays.
///
/// # Errors
/// When the folder or the kernel's list of sockets cannot be read, or one cannot be removed.
pub fn clear_sockets(root: &Root, folder: &str) -> Result<Vec<PathBuf>, HostError> {
    let bound = bound_sockets(root)?;
    let mut removed = Vec::new();
    for (name, path) in entries(&root.path(folder))? {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let is_bound = || bound.iter().any(|at| may_be(root, at, &name, &path));
        let dead_socket = meta.file_type().is_socket() && !is_bound();
        let dead_lock = name.ends_with(".sock.lock") && meta.is_file() && !held(&path);
        if dead_socket || dead_lock {
            remove(&path, &mut removed)?;
        }
    }
    Ok(removed)
}

/// Whether the socket that was bound `at` a path may be the one that lies at `path`. The same file can
/// have another path, through a link; and in a container's view one that is nothing here.
fn may_be(root: &Root, at: &str, name: &str, path: &Path) -> bool {
    if Path::new(at).file_name() != Some(name.as_ref()) {
        return false;
    }
    match fs::canonicalize(root.path(at)) {
        Ok(at) => fs::canonicalize(path).is_ok_and(|path| path == at),
        Err(_) => true,
    }
}

/// The paths of all bound sockets of the host's network namespace (proc_net(5)).
fn bound_sockets(root: &Root) -> Result<Vec<String>, HostError> {
    let table = read_table(&root.path("/proc/net/unix"))?;
    let table = String::from_utf8_lossy(&table);
    let path = |line: &str| Some(line.split_whitespace().nth(7)?.to_string());
    Ok(table.lines().skip(1).filter_map(path).collect())
}

/// Removes the files that DPDK keeps a target's memory in, where no process maps them any more; returns
/// their paths.
///
/// # Errors
/// When the folder cannot be read or a file not be removed.
pub fn clear_memory(root: &Root, huge_dir: &str) -> Result<Vec<PathBuf>, HostError> {
    let kept = entries(&root.path(huge_dir))?.into_iter();
    let mut orphans: Vec<(String, PathBuf)> = kept
        .filter(|(name, path)| name.contains("map_") && path.is_file())
        // In a container's view its folder may be another one.
        .map(|(name, path)| (format!("/{name}"), path))
        .collect();
    for (name, process) in entries(&root.path("/proc"))? {
        if orphans.is_empty() {
            break;
        }
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // A process that has ended meanwhile maps nothing.
        let maps = read_table(&process.join("maps")).unwrap_or_default();
        let maps = String::from_utf8_lossy(&maps);
        orphans.retain(|(name, _)| !maps.lines().any(|line| line.ends_with(name.as_str())));
    }
    let mut removed = Vec::new();
    for (_, path) in orphans {
        remove(&path, &mut removed)?;
    }
    Ok(removed)
}

fn remove(path: &Path, removed: &mut Vec<PathBuf>) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Ok(()) => removed.push(path.to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            let (value, hint) = ("nothing in its place".to_string(), "");
            return Err(HostError::Write { path: path.to_owned(), value, hint, source });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_what_nobody_uses_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display().to_string();
        let path = |name: &str| folder.path().join(name);
        drop(UnixListener::bind(path("dead.sock")).unwrap());
        let live = UnixListener::bind(path("live.sock")).unwrap();
        fs::write(path("dead.sock.lock"), "").unwrap();
        fs::write(path("file"), "").unwrap();
        let lock = File::create(path("live.sock.lock")).unwrap();
        lock.try_lock().unwrap();
        let root = Root::new("/");
        let removed = clear_sockets(&root, &at).unwrap();
        assert_eq!(removed, [path("dead.sock"), path("dead.sock.lock")]);
        assert!(is_locked(&root, &format!("{at}/live.sock")));
        assert!(!is_locked(&root, &format!("{at}/dead.sock")));
        assert!(is_served(&root, &format!("{at}/live.sock")));
        assert!(!is_served(&root, &format!("{at}/dead.sock")));
        let other = folder.path().join("other");
        std::os::unix::fs::symlink(folder.path(), &other).unwrap();
        let through_link = UnixListener::bind(other.join("linked.sock")).unwrap();
        assert_eq!(clear_sockets(&root, &at).unwrap(), [""; 0].map(PathBuf::from));
        assert!(path("linked.sock").exists());
        drop((live, lock));
        assert!(path("live.sock").exists() && !is_served(&root, &format!("{at}/live.sock")));
        assert_eq!(clear_sockets(&root, &at).unwrap().len(), 2);
        drop(through_link);
        assert_eq!(clear_sockets(&root, &at).unwrap(), [path("linked.sock")]);
        assert!(path("file").exists());
    }

    #[test]
    fn a_socket_that_a_container_may_have_bound_under_another_path_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/proc/net")).unwrap();
        fs::create_dir_all(root.path("/sockets")).unwrap();
        let line = "0000: 00000002 00000000 00010000 0001 01 4711 /in/the/container/disk.sock\n";
        fs::write(root.path("/proc/net/unix"), format!("Num RefCount Protocol …\n{line}")).unwrap();
        drop(UnixListener::bind(root.path("/sockets/disk.sock")).unwrap());
        drop(UnixListener::bind(root.path("/sockets/other.sock")).unwrap());
        let removed = clear_sockets(&root, "/sockets").unwrap();
        assert_eq!(removed, [root.path("/sockets/other.sock")]);
    }

    #[test]
    fn memory_that_a_process_maps_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/dev/huge")).unwrap();
        fs::create_dir_all(root.path("/proc/7")).unwrap();
        for name in ["/dev/huge/rtemap_0", "/dev/huge/rtemap_1", "/dev/huge/other"] {
            fs::write(root.path(name), "").unwrap();
        }
        let line = "7f00-7f20 rw-s 00000000 00:2e 45  /in/the/container/rtemap_1\n";
        fs::write(root.path("/proc/7/maps"), line).unwrap();
        assert_eq!(clear_memory(&root, "/dev/huge").unwrap(), [root.path("/dev/huge/rtemap_0")]);
        assert!(root.path("/dev/huge/other").exists());
    }

    #[test]
    fn a_folder_is_made_with_its_mode_and_one_that_is_there_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let mode = || fs::metadata(root.path("/a/b")).unwrap().permissions().mode() & 0o7777;
        let me = fs::metadata(folder.path()).unwrap();
        let owner =
            (std::os::unix::fs::MetadataExt::uid(&me), std::os::unix::fs::MetadataExt::gid(&me));
        make_folder(&root, "/a/b", owner, 0o777).unwrap();
        assert_eq!(mode(), 0o777);
        let above = fs::metadata(root.path("/a")).unwrap().permissions().mode();
        assert_eq!(above & 0o7777, 0o755, "whatever the umask is");
        make_folder(&root, "/a/b", owner, 0o700).unwrap();
        assert_eq!(mode(), 0o777);
        fs::write(root.path("/a/file"), "").unwrap();
        make_folder(&root, "/a/file", owner, 0o700).unwrap_err();
    }
}
