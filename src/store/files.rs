//! Atomic file operations: a file is there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::form::take_back;
use super::{Durability, StoreError};

/// Number of files that are synced at the same time.
const SYNCS: usize = 16;
/// Prefix of the names of files that are not whole yet.
const TEMPORARY: &str = ".vhost-agent-";

/// Replaces a file: writes a temporary one beside it, and renames that. With [`Durability::Disk`], file and folder are
/// synced.
///
/// # Errors
/// Any I/O error of the file system.
pub fn replace_file(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
    durability: Durability,
) -> io::Result<()> {
    let file = beside(path, bytes, mode, owner)?;
    if durability == Durability::Disk {
        file.as_file().sync_all()?;
    }
    file.persist(path)?;
    if durability == Durability::Disk {
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// Makes the folder of a file, when it is missing.
///
/// # Errors
/// Any I/O error of the file system.
pub fn make_folder(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Opens a file for appending; writes go to its end also after somebody has truncated it. A new file gets the mode
/// 0640.
///
/// # Errors
/// Any I/O error of the file system.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    let is_new = !path.exists();
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    if is_new {
        // The umask may have removed bits of the mode above.
        file.set_permissions(fs::Permissions::from_mode(0o640))?;
    }
    Ok(file)
}

/// Writes a temporary file beside `path`.
pub(super) fn beside(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    // The umask may have removed bits of the mode above.
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some((uid, gid)) = owner {
        chown(file.path(), Some(uid), Some(gid))?;
    }
    Ok(file)
}

/// Writes a file that did not exist, readable by its owner only: whole or not at all.
///
/// # Errors
/// [`StoreError::Write`], also when the file exists already.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let write = || {
        let path = std::path::absolute(path)?;
        let file = beside(&path, bytes, 0o600, None)?;
        file.as_file().sync_all()?;
        file.persist_noclobber(&path).map_err(|e| e.error)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|source| StoreError::Write { path: path.to_owned(), source })
}

/// Removes temporary files that a crash left in a folder and those below it, and restores files that an
/// older agent set aside there.
pub(super) fn sweep(path: &Path) -> Result<(), StoreError> {
    let read = |source| StoreError::Read { path: path.to_owned(), source };
    let listing = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        listing => listing.map_err(read)?,
    };
    let mut files = Vec::new();
    for entry in listing {
        let entry = entry.map_err(read)?;
        let path = entry.path();
        if entry.file_type().map_err(read)?.is_dir() {
            sweep(&path)?;
        } else if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_file(&path).map_err(|source| StoreError::Write { path, source })?;
        } else {
            files.push(path);
        }
    }
    take_back(&files)
}

/// Reads at most the first `most` bytes of a file, which may be of any size.
///
/// # Errors
/// [`StoreError::Read`].
pub fn read_some(path: &Path, most: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.map_err(|source| StoreError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// Syncs files in parallel. One after the other, each would wait for a commit of the file system's journal; together
/// they share a few commits.
pub(super) fn sync_together(made: &[(tempfile::NamedTempFile, PathBuf)]) -> Result<(), StoreError> {
    let sync = |files: &[(tempfile::NamedTempFile, PathBuf)]| {
        files.iter().try_for_each(|(file, path)| {
            let synced = file.as_file().sync_all();
            synced.map_err(|source| StoreError::Write { path: path.clone(), source })
        })
    };
    let share = made.len().div_ceil(SYNCS);
    let (own, others) = made.split_at(share);
    std::thread::scope(|scope| {
        let shares = others.chunks(share.max(1)).map(|files| scope.spawn(move || sync(files)));
        let threads: Vec<_> = shares.collect();
        // This thread syncs a part too: a single file, the most frequent case, needs no other thread.
        let synced = sync(own);
        let mut ends = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        // A thread that panicked has no other error to report.
        let broke = || {
            let path = made.first().map(|(_, path)| path.clone()).unwrap_or_default();
            StoreError::Write { path, source: io::Error::other("broke off") }
        };
        synced.and(ends.try_for_each(|end| end.unwrap_or_else(|_| Err(broke()))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_for_its_owner_and_takes_no_others_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_new(&path, b"first").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let StoreError::Write { source, .. } = write_new(&path, b"second").unwrap_err() else {
            panic!()
        };
        assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read_some(&path, 3).unwrap(), b"fir");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(write_new(&dir.path().join("missing/state.json"), b"").is_err());
    }
}
