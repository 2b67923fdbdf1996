//! Values of this boot that are written often: in place, because replacing a file takes much longer.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use serde::Serialize;

use super::{Durability, StoreError, encode, replace_file};

/// Most bytes that one write(2) writes whole or not at all, even if this process is killed meanwhile: one page of the
/// kernel's cache.
const PAGE: usize = 4096;

/// Slot of one value of this boot that is written often: overwritten in place, which takes much less time than
/// replacing its file.
///
/// No reader finds a value half written: readers hold the node's lock or have found it free, and a crash of the machine
/// makes the value void.
#[derive(Debug)]
pub struct BootSlot {
    path: PathBuf,
    held: Option<HeldSlot>,
}

/// Open file of a slot.
#[derive(Debug)]
struct HeldSlot {
    file: File,
    /// Device and inode.
    id: (u64, u64),
    length: usize,
}

impl BootSlot {
    /// Makes a slot; no file is open before the first write.
    pub(super) fn new(path: PathBuf) -> BootSlot {
        BootSlot { path, held: None }
    }

    /// Writes the value as readable JSON.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn write<T: Serialize>(&mut self, value: &T) -> Result<(), StoreError> {
        let written = encode(value).map_err(io::Error::from);
        let written = written.and_then(|bytes| match self.writes_over(&bytes) {
            true => Ok(()),
            false => self.replace(&bytes),
        });
        written.map_err(|source| StoreError::Write { path: self.path.clone(), source })
    }

    /// Overwrites the value in place, if its file is still there; `true` if that succeeded.
    fn writes_over(&mut self, bytes: &[u8]) -> bool {
        let Some(held) = &mut self.held else { return false };
        let id = fs::symlink_metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        let length = bytes.len().max(held.length);
        if length > PAGE || id.ok() != Some(held.id) {
            return false;
        }
        // Trailing blanks change nothing in JSON, so the value is complete even before they are cut off.
        let mut padded = bytes.to_vec();
        padded.resize(length, b' ');
        held.length = length;
        if !held.file.write_at(&padded, 0).is_ok_and(|written| written == length) {
            return false;
        }
        if bytes.len() < length && held.file.set_len(bytes.len() as u64).is_ok() {
            held.length = bytes.len();
        }
        true
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.held = None;
        replace_file(&self.path, bytes, 0o600, None, Durability::Boot)?;
        let held = || -> io::Result<HeldSlot> {
            let file = File::options().write(true).open(&self.path)?;
            let meta = file.metadata()?;
            Ok(HeldSlot { file, id: (meta.dev(), meta.ino()), length: bytes.len() })
        };
        // If the file cannot be opened, the next write replaces it again.
        self.held = held().ok();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn a_value_that_is_written_over_is_whole_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state"), dir.path().join("run")).unwrap();
        let path = dir.path().join("run/a.json");
        let inode = || fs::metadata(&path).unwrap().ino();
        let read = || store.read::<String>("a.json", Durability::Boot).unwrap();
        let mut slot = store.boot_slot("a.json");
        slot.write(&"first").unwrap();
        let first = inode();
        for value in ["a longer one", "short", "", "longer than all of the others"] {
            slot.write(&value).unwrap();
            assert_eq!((read().as_deref(), inode()), (Some(value), first));
            assert_eq!(fs::read(&path).unwrap(), encode(value).unwrap());
        }
        let large = "x".repeat(PAGE);
        slot.write(&large).unwrap();
        assert_eq!(read(), Some(large));
        assert_ne!(inode(), first, "what does not fit into a page is replaced");
        slot.write(&"small again").unwrap();
        assert_eq!(read().as_deref(), Some("small again"));
        fs::remove_file(&path).unwrap();
        slot.write(&"there again").unwrap();
        assert_eq!(read().as_deref(), Some("there again"));
        fs::write(dir.path().join("run/b.json"), "\"another\"").unwrap();
        fs::rename(dir.path().join("run/b.json"), &path).unwrap();
        slot.write(&"in its place").unwrap();
        assert_eq!(read().as_deref(), Some("in its place"));
        assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 1);
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        assert!(slot.write(&"nowhere").is_err());
    }
}
