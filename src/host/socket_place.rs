//! Checks of the place for a target's sockets, before anything is changed. A new target would report only after the old
//! one is gone that it cannot bind them.

use std::fs::{self, FileType};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode as NixMode;
use nix::unistd::{AccessFlags, access, geteuid};

use super::{HostError, Root};
use crate::model::fault::closed_or;

/// Obstacle to sockets in `folder` and to the control socket at `control`, as text; `None` if there is none. Changes
/// nothing.
pub fn obstacle(root: &Root, folder: &str, control: &str) -> Option<String> {
    in_folder(root, folder).or_else(|| at_control(root, control))
}

/// Way in which another user could replace the sockets in `folder`, as text; `None` if there is none. `owner` is the
/// user to whom the agent would give the folder.
///
/// The owner of a folder can replace the sockets in it, and where every user may create folders, such as in `/var/tmp`,
/// another user may have created it first. A user who may write to a folder above it can put another folder in its
/// place, unless the folder above is sticky (inode(7)).
pub fn doubt(root: &Root, folder: &str, owner: u32) -> Option<String> {
    let trusted = [0, owner, geteuid().as_raw()];
    let (own, top) = (root.path(folder), root.path("/"));
    let doubted = |at: &Path| {
        let meta = fs::symlink_metadata(at).ok()?;
        let (uid, mode) = (meta.uid(), meta.mode());
        let shown = Path::new("/").join(at.strip_prefix(&top).ok()?);
        let shown = shown.display();
        if !trusted.contains(&uid) {
            return Some(format!(
                "{shown} belongs to the user {uid}, who could swap its sockets: give it to root \
                 (`chown root {shown}`), set target.socket_uid, or choose another"
            ));
        }
        let others = mode & 0o002 != 0 || mode & 0o020 != 0 && meta.gid() != 0;
        let swapped = at != own && meta.is_dir() && others && mode & 0o1000 == 0;
        swapped.then(|| {
            format!(
                "others than root may write to {shown} (mode {:04o}), and could put another folder in the place of {folder}: \
                 take that right away (`chmod go-w {shown}`), or choose another",
                mode & 0o7777
            )
        })
    };
    // Both the given path, whose links could be replaced, and the path to which it leads are checked.
    let real = fs::canonicalize(&own).unwrap_or_default();
    own.ancestors().chain(real.ancestors()).find_map(doubted)
}

/// Reason why `folder`, or the nearest existing folder above it, is not writable, as text; `None` if it is.
pub fn in_folder(root: &Root, folder: &str) -> Option<String> {
    for path in Path::new(folder).ancestors() {
        let (at, shown) = (root.path(path), path.display());
        match fs::symlink_metadata(&at) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            // A component of the path is not a folder; a later round reports that.
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => continue,
            Err(e) => return Some(format!("{shown} cannot be looked at: {e}")),
            Ok(_) => {}
        }
        return match fs::metadata(&at) {
            Err(e) => Some(format!("{shown} is a link that leads nowhere: {e}")),
            Ok(meta) if !meta.is_dir() => {
                let kind = kind(meta.file_type());
                Some(format!("{shown} is {kind} and no folder: move it away, or choose another"))
            }
            Ok(_) => access(&at, AccessFlags::W_OK).err().map(|e| {
                let e = io::Error::from(e);
                let advice = closed_or(&e, "");
                format!("the folder {shown} cannot be written to: {e}{advice}")
            }),
        };
    }
    None
}

/// `true` if `folder` has sockets of volumes: all sockets but those named `*.sock`.
pub fn has_volumes(root: &Root, folder: &str) -> bool {
    let Ok(listing) = fs::read_dir(root.path(folder)) else { return false };
    let is_volumes = |entry: fs::DirEntry| {
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        is_socket && !entry.file_name().to_string_lossy().ends_with(".sock")
    };
    listing.flatten().any(is_volumes)
}

/// `true` if `path` is a socket with this `owner` (user and group) and `mode`.
pub fn is_given(root: &Root, path: &str, owner: (u32, u32), mode: u32) -> bool {
    fs::symlink_metadata(root.path(path)).is_ok_and(|meta| is_as(&meta, owner, mode))
}

fn is_as(meta: &fs::Metadata, owner: (u32, u32), mode: u32) -> bool {
    meta.file_type().is_socket()
        && (meta.uid(), meta.gid()) == owner
        && meta.mode() & 0o7777 == mode
}

/// Sets the user and group `owner` and the `mode` of the socket at `path`, which its target has just created.
///
/// # Errors
/// When no socket is at `path`, or the kernel refuses.
pub fn give(root: &Root, path: &str, owner: (u32, u32), mode: u32) -> Result<(), HostError> {
    let at = root.path(path);
    let given = || {
        // The socket is changed by a descriptor, because a user who can write to the folder may put a link at the path
        // meanwhile.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let socket = open(&at, flags, NixMode::empty())?;
        let opened = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let meta = fs::metadata(&opened)?;
        if !meta.file_type().is_socket() {
            return Err(io::Error::other("it is no socket"));
        }
        if is_as(&meta, owner, mode) {
            return Ok(());
        }
        // The mode denies every user until the owner is set: no client may connect that is not permitted afterwards.
        fs::set_permissions(&opened, fs::Permissions::from_mode(0o600))?;
        chown(&opened, Some(owner.0), Some(owner.1))?;
        fs::set_permissions(&opened, fs::Permissions::from_mode(mode))
    };
    given().map_err(|source| HostError::Write {
        path: at.clone(),
        value: format!("{}:{} {mode:o}", owner.0, owner.1),
        hint: "",
        source,
    })
}

fn at_control(root: &Root, control: &str) -> Option<String> {
    let meta = fs::symlink_metadata(root.path(control)).ok()?;
    let other = !meta.file_type().is_socket();
    other.then(|| {
        let kind = kind(meta.file_type());
        format!(
            "at {control} is {kind} and no socket: move it away, or choose another control socket"
        )
    })
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_file() => "a regular file",
        kind if kind.is_dir() => "a folder",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn says(root: &Root, folder: &str, control: &str, words: &str) {
        let obstacle = obstacle(root, folder, &format!("{folder}/{control}")).unwrap();
        assert!(obstacle.contains(words), "{obstacle}");
    }

    #[test]
    fn a_file_that_is_no_socket_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/sockets/folder")).unwrap();
        fs::write(root.path("/sockets/file"), "kept").unwrap();
        symlink("/nowhere", root.path("/sockets/link")).unwrap();
        says(&root, "/sockets", "file", "at /sockets/file is a regular file");
        says(&root, "/sockets", "folder", "at /sockets/folder is a folder");
        says(&root, "/sockets", "link", "at /sockets/link is a symbolic link");
        says(&root, "/sockets/file", "x", "/sockets/file is a regular file and no folder");
        says(&root, "/sockets/file/a/b", "x", "/sockets/file is a regular file and no folder");
        says(&root, "/sockets/link", "x", "/sockets/link is a link that leads nowhere");
        assert_eq!(fs::read_to_string(root.path("/sockets/file")).unwrap(), "kept");
    }

    #[test]
    fn a_socket_that_is_there_and_a_folder_that_is_not_are_no_obstacles() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert_eq!(obstacle(&root, "/not/yet/there", "/not/yet/there/vhost.sock"), None);
        fs::create_dir(root.path("/sockets")).unwrap();
        drop(UnixListener::bind(root.path("/sockets/vhost.sock")).unwrap());
        assert_eq!(obstacle(&root, "/sockets", "/sockets/vhost.sock"), None);
    }

    #[test]
    fn a_folder_of_somebody_else_is_not_taken() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root can give a folder away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir(root.path("/sockets")).unwrap();
        let give = |folder: &str, uid: u32, gid: u32| {
            chown(root.path(folder), Some(uid), Some(gid)).unwrap()
        };
        let says = |folder: &str, words: &str| {
            let doubt = doubt(&root, folder, 0).unwrap();
            assert!(doubt.contains(words), "{doubt}");
        };
        give("/sockets", 4711, 0);
        says("/sockets", "belongs to the user 4711");
        says("/sockets/below", "/sockets belongs to the user 4711");
        assert_eq!(doubt(&root, "/sockets", 4711), None);
        give("/sockets", 0, 0);
        fs::create_dir(root.path("/sockets/below")).unwrap();
        give("/sockets/below", 0, 0);
        let may_be = |mode: u32| {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(root.path("/sockets"), mode).unwrap();
            doubt(&root, "/sockets/below", 0)
        };
        for mode in [0o755, 0o775, 0o1777] {
            assert_eq!(may_be(mode), None, "{mode:o}");
        }
        let open = may_be(0o777).unwrap();
        assert!(open.contains("others than root may write to /sockets (mode 0777)"), "{open}");
        give("/sockets", 0, 4711);
        assert!(may_be(0o775).is_some());
        fs::create_dir(root.path("/safe")).unwrap();
        symlink(root.path("/sockets/below"), root.path("/safe/link")).unwrap();
        says("/safe/link", "may write to /sockets");
    }
}
