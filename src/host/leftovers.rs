//! Leftovers of a dead target (field note 10): sockets, locks, hugetlbfs files. The kernel tells whether one is still
//! in use. No socket is connected to, because a virtual machine may wait for it (the lost reconnect:
//! packaging/doc/facts.md, "Guests when a target dies").

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::files::{entries, read_table_text};
use super::{HostError, Root};

/// Creates the folder of a target's sockets with `owner` and `mode`; an existing folder stays as it is.
///
/// # Errors
/// When the folder cannot be created, or another kind of file is in its place.
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
        // The umask has been applied already, and the permitted clients must be able to traverse the folders above.
        let may_pass = fs::Permissions::from_mode(mode & !0o022);
        above.iter().try_for_each(|folder| fs::set_permissions(folder, may_pass.clone()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        chown(&path, Some(owner.0), Some(owner.1))
    };
    make().map_err(|source| HostError::MakeFolder { path: path.clone(), source })
}

/// `true` if a live process holds the lock of the control socket `control`.
pub fn is_locked(root: &Root, control: &str) -> bool {
    held(&root.path(format!("{control}.lock")))
}

/// `true` if a process listens on the control socket `control`, whether it holds the lock or not.
pub fn is_served(root: &Root, control: &str) -> bool {
    dial(&root.path(control)) == Err(Errno::EPROTOTYPE)
}

/// Attempts a datagram connection to the stream socket at `path`, which the kernel always refuses: nothing is connected
/// (unix(7)). The error is `EPROTOTYPE` if a process has the socket, in any network namespace and by any path, and
/// `ECONNREFUSED` if no process has it.
fn dial(path: &Path) -> Result<(), Errno> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    connect(probe.as_raw_fd(), &address)
}

fn held(lock: &Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Removes from `folder` the sockets that no process has and the locks that no process holds; returns their paths.
/// Everything else stays, and so does any socket or lock about which the kernel's answer is unclear.
///
/// # Errors
/// When the folder cannot be read, or a socket or lock cannot be removed.
pub fn clear_sockets(root: &Root, folder: &str) -> Result<Vec<PathBuf>, HostError> {
    let mut removed = Vec::new();
    for (name, path) in entries(&root.path(folder))? {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let dead_socket = meta.file_type().is_socket() && dial(&path) == Err(Errno::ECONNREFUSED);
        let dead_lock = name.ends_with(".sock.lock") && meta.is_file() && !held(&path);
        if dead_socket || dead_lock {
            remove(&path, &mut removed)?;
        }
    }
    Ok(removed)
}

/// Removes the hugetlbfs files of dead targets' memory (DPDK's `*map_*`) that no process maps any more; returns their
/// paths.
///
/// # Errors
/// When the folder cannot be read or a file cannot be removed.
pub fn clear_memory(root: &Root, huge_dir: &str) -> Result<Vec<PathBuf>, HostError> {
    let mut removed = Vec::new();
    for path in left_memory(root, huge_dir)? {
        remove(&path, &mut removed)?;
    }
    Ok(removed)
}

/// Counts the 2 MiB pages in the files that [`clear_memory`] would remove.
///
/// # Errors
/// When the folder cannot be read.
pub fn left_pages(root: &Root, huge_dir: &str) -> Result<u64, HostError> {
    let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    Ok(left_memory(root, huge_dir)?.iter().map(|path| bytes(path) >> 21).sum())
}

fn left_memory(root: &Root, huge_dir: &str) -> Result<Vec<PathBuf>, HostError> {
    let kept = entries(&root.path(huge_dir))?.into_iter();
    let mut orphans: Vec<(String, PathBuf)> = kept
        .filter(|(name, path)| name.contains("map_") && path.is_file())
        // Compared by file name: a container may have the folder mounted elsewhere.
        .map(|(name, path)| (format!("/{name}"), path))
        .collect();
    for (name, process) in entries(&root.path("/proc"))? {
        if orphans.is_empty() {
            break;
        }
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // The map of a process that has exited meanwhile is empty.
        let maps = read_table_text(&process.join("maps")).unwrap_or_default();
        orphans.retain(|(name, _)| !maps.lines().any(|line| line.ends_with(name.as_str())));
    }
    Ok(orphans.into_iter().map(|(_, path)| path).collect())
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
    use std::os::unix::net::{UnixDatagram, UnixListener};

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
    fn a_socket_of_a_process_stays_whatever_its_path_and_namespace() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("with a blank");
        fs::create_dir(&at).unwrap();
        let blank = UnixListener::bind(at.join("disk one.sock")).unwrap();
        // A socket that a container has bound under another path: the kernel's list has that other path.
        let moved = UnixListener::bind(at.join("before.sock")).unwrap();
        fs::rename(at.join("before.sock"), at.join("moved.sock")).unwrap();
        let datagrams = UnixDatagram::bind(at.join("datagrams")).unwrap();
        drop(UnixListener::bind(at.join("dead one.sock")).unwrap());
        let elsewhere = at.join("elsewhere.sock");
        // A socket in a thread's own network namespace, which the kernel's list of this namespace does not show.
        let of_others = std::thread::spawn({
            let elsewhere = elsewhere.clone();
            move || {
                let own = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
                own.is_ok().then(|| UnixListener::bind(elsewhere).unwrap())
            }
        });
        let of_others = of_others.join().unwrap();
        if of_others.is_none() {
            println!("SKIPPED: only root can make a network namespace");
        }
        let removed = clear_sockets(&Root::new("/"), at.to_str().unwrap()).unwrap();
        assert_eq!(removed, [at.join("dead one.sock")]);
        assert_eq!(elsewhere.exists(), of_others.is_some());
        drop((blank, moved, datagrams));
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
        fs::File::create(root.path("/dev/huge/rtemap_0")).unwrap().set_len(3 << 21).unwrap();
        assert_eq!(left_pages(&root, "/dev/huge").unwrap(), 3);
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
