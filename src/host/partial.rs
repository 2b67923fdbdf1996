//! Resumable download: a file that grows piece by piece, is hashed as it grows, and outlives a broken transfer. A file
//! lock admits one writer at a time, of all processes and all calls.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::HostError;
use super::own_image::hex;
use crate::store::{Durability, decode, encode, replace_file};

/// Age after which an unfinished download is removed.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes per read of the existing content.
const PIECE: usize = 256 * 1024;

/// Metadata of a download, from the file's server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Validator of the server's copy: a strong `ETag`, else `Last-Modified`.
    pub validator: Option<String>,
    /// Total size of the file, in bytes.
    pub total: Option<u64>,
}

/// Partially downloaded file, locked until this value is dropped.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    length: u64,
    hash: Sha256,
    notes: Notes,
}

impl Partial {
    /// Opens or creates the file `name` in `folder`, and hashes its content. Waits until no other call or process holds
    /// the file's lock.
    ///
    /// # Errors
    /// When the folder or the file cannot be created or read.
    pub fn open(folder: &Path, name: &str) -> Result<Partial, HostError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| HostError::MakeFolder { path: folder.to_owned(), source })?;
        remove_abandoned(folder);
        let path = folder.join(name);
        let file = open_locked(&path).map_err(|source| cannot_write(&path, source))?;
        let notes = fs::read(notes_path(&path)).unwrap_or_default();
        let notes = decode(&notes).unwrap_or_default();
        let mut partial = Partial { path, file, length: 0, hash: Sha256::new(), notes };
        let read = partial.read_what_is_there();
        read.map_err(|source| HostError::Read { path: partial.path.clone(), source })?;
        Ok(partial)
    }

    fn read_what_is_there(&mut self) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            match self.file.read(&mut piece)? {
                0 => return Ok(()),
                count => {
                    self.hash.update(piece.get(..count).unwrap_or_default());
                    self.length += count as u64;
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the content so far, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// SHA-256 of the content so far, in hex.
    pub fn sha256(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// Free space on the file's disk, in bytes; `None` if unknown.
    pub fn room(&self) -> Option<u64> {
        let disk = nix::sys::statvfs::statvfs(&self.path).ok()?;
        Some(disk.blocks_available().saturating_mul(disk.fragment_size()))
    }

    /// Discards the content; the pieces that follow belong to the file that `notes` describe.
    ///
    /// # Errors
    /// When the disk refuses the write.
    pub fn start_over(&mut self, notes: Notes) -> Result<(), HostError> {
        let mut start = || {
            self.file.set_len(0)?;
            self.file.rewind()?;
            let text = encode(&notes)?;
            // `Durability::Boot` suffices: after a crash of the machine, the digest or else the engine detects an
            // incomplete file.
            replace_file(&notes_path(&self.path), &text, 0o600, None, Durability::Boot)
        };
        start().map_err(|source| cannot_write(&self.path, source))?;
        (self.length, self.hash, self.notes) = (0, Sha256::new(), notes);
        Ok(())
    }

    /// Appends `piece` to the file and to its hash.
    ///
    /// # Errors
    /// When the disk refuses the write.
    pub fn append(&mut self, piece: &[u8]) -> Result<(), HostError> {
        self.file.write_all(piece).map_err(|source| cannot_write(&self.path, source))?;
        self.hash.update(piece);
        self.length += piece.len() as u64;
        Ok(())
    }

    /// Reader of the content, from the beginning.
    ///
    /// # Errors
    /// When the file cannot be reopened.
    pub fn reader(&self) -> io::Result<tokio::fs::File> {
        Ok(tokio::fs::File::from_std(File::open(&self.path)?))
    }

    /// Deletes the file and its notes.
    pub fn remove(self) {
        remove_both(&self.path);
    }
}

fn remove_both(path: &Path) {
    for path in [path.to_owned(), notes_path(path)] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(
                    path = %path.display(), error = %e,
                    "the download file {} could not be removed: {e}", path.display()
                );
            }
            _ => {}
        }
    }
}

fn notes_path(path: &Path) -> PathBuf {
    path.with_extension("json")
}

/// Opens and locks the file at `path`. Starts over if a previous holder of the lock has removed it: then the path
/// belongs to another file.
fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let mut options = File::options();
        let options = options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let file = options.open(path)?;
        file.lock()?;
        if fs::metadata(path).is_ok_and(|there| Some(there.ino()) == inode(&file)) {
            return Ok(file);
        }
    }
}

fn inode(file: &File) -> Option<u64> {
    file.metadata().ok().map(|meta| meta.ino())
}

/// Removes abandoned downloads, which would fill the disk over the years.
fn remove_abandoned(folder: &Path) {
    let Ok(listing) = fs::read_dir(folder) else { return };
    for path in listing.flatten().map(|entry| entry.path()) {
        let Ok(modified) = fs::metadata(&path).and_then(|meta| meta.modified()) else { continue };
        let old = modified.elapsed().is_ok_and(|age| age > ABANDONED);
        if old && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(&path);
        }
    }
}

fn cannot_write(path: &Path, source: io::Error) -> HostError {
    const FULL: [i32; 2] = [Errno::ENOSPC as i32, Errno::EDQUOT as i32];
    let hint = match source.raw_os_error() {
        Some(errno) if FULL.contains(&errno) => {
            " (its disk is full: free some room there, or set state_dir to a disk that has it)"
        }
        _ => " (is the disk writable?)",
    };
    HostError::Grow { path: path.to_owned(), hint, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let listing = super::super::files::entries(folder).unwrap();
        listing.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn what_is_there_is_hashed_with_what_comes() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("images");
        let notes = Notes { validator: Some("\"a\"".into()), total: Some(6) };
        let mut partial = Partial::open(&folder, "x.part").unwrap();
        partial.start_over(notes.clone()).unwrap();
        partial.append(b"abc").unwrap();
        drop(partial);
        let mut partial = Partial::open(&folder, "x.part").unwrap();
        assert_eq!((partial.length(), partial.notes()), (3, &notes));
        partial.append(b"def").unwrap();
        // printf abcdef | sha256sum
        let digest = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";
        assert_eq!(partial.sha256(), digest);
        partial.start_over(Notes::default()).unwrap();
        assert_eq!((partial.length(), fs::read(partial.path()).unwrap().len()), (0, 0));
        assert_eq!(names(&folder), ["x.json", "x.part"]);
        partial.remove();
        assert_eq!(names(&folder), [""; 0]);
    }

    #[test]
    fn who_waited_for_a_file_that_was_taken_away_gets_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Partial::open(folder.path(), "x.part").unwrap();
        first.append(b"abc").unwrap();
        let path = folder.path().to_owned();
        let second = std::thread::spawn(move || Partial::open(&path, "x.part").unwrap());
        first.remove();
        let second = second.join().unwrap();
        assert_eq!((second.length(), second.path().exists()), (0, true));
    }

    #[test]
    fn what_nobody_goes_on_with_is_removed_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let week = std::time::SystemTime::now() - ABANDONED - Duration::from_secs(60);
        for name in ["old.part", "old.json", "held.part", "new.part"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        for name in ["old.part", "old.json", "held.part"] {
            File::open(folder.path().join(name)).unwrap().set_modified(week).unwrap();
        }
        let held = File::open(folder.path().join("held.part")).unwrap();
        held.lock().unwrap();
        drop(Partial::open(folder.path(), "new.part").unwrap());
        assert_eq!(names(folder.path()), ["held.part", "new.part"]);
    }
}
