//! Writes and removals of many values at once: each value has its own file, and the files of a batch are synced in
//! parallel, which takes little longer than to sync a few.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{beside, sync_together};
use super::{Durability, Store, StoreError, encode};

/// Number of files that are written before they are synced together.
const BATCH: usize = 256;

impl Store {
    /// Writes many values durably, each in a file of its own, synced in batches. When one fails, new files
    /// are removed again; those that existed may have either value.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn write_all<T: Serialize + Sync>(&self, values: &[(String, T)]) -> Result<(), StoreError> {
        let mut new = Vec::new();
        // In batches, to bound the number of open files.
        let written = values.chunks(BATCH).try_for_each(|batch| self.write_batch(batch, &mut new));
        if written.is_err() {
            // A write that was reported as failed must not reappear after a restart.
            new.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        written
    }

    fn write_batch<T: Serialize + Sync>(
        &self,
        values: &[(String, T)],
        new: &mut Vec<PathBuf>,
    ) -> Result<(), StoreError> {
        let make = |name: &str, value: &T| {
            let path = self.path(name, Durability::Disk);
            let made = encode(value).map_err(io::Error::from).and_then(|bytes| {
                self.make_folder_of(&path, Durability::Disk)?;
                beside(&path, &bytes, 0o600, None)
            });
            match made {
                Ok(file) => Ok((file, path)),
                Err(source) => Err(StoreError::Write { path, source }),
            }
        };
        let made = values.iter().map(|(name, value)| make(name, value));
        let made: Vec<(tempfile::NamedTempFile, PathBuf)> = made.collect::<Result<_, _>>()?;
        sync_together(&made)?;
        let mut folders = BTreeSet::new();
        for (file, path) in made {
            let is_new = !path.exists();
            let kept = file.persist(&path).map_err(|e| e.error);
            kept.map_err(|source| StoreError::Write { path: path.clone(), source })?;
            folders.extend(path.parent().map(Path::to_owned));
            if is_new {
                new.push(path);
            }
        }
        self.sync_folders(&folders)
    }

    /// Removes many values durably.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn remove_all(&self, names: &[String]) -> Result<(), StoreError> {
        let mut folders = BTreeSet::new();
        for name in names {
            let path = self.path(name, Durability::Disk);
            match fs::remove_file(&path) {
                Ok(()) => folders.extend(path.parent().map(Path::to_owned)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(StoreError::Write { path, source }),
            }
        }
        self.sync_folders(&folders)
    }

    fn sync_folders(&self, folders: &BTreeSet<PathBuf>) -> Result<(), StoreError> {
        folders.iter().try_for_each(|folder| {
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(|source| StoreError::Write { path: folder.clone(), source })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_written_and_taken_away_like_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        let name = |n: usize| format!("things/{}/{n}.json", n % 2);
        let values: Vec<_> = (0..100).map(|n| (name(n), n)).collect();
        store.write_all(&values).unwrap();
        for folder in ["things/0", "things/1"] {
            assert_eq!(store.list(folder, Durability::Disk).unwrap().len(), 50);
        }
        assert_eq!(store.read::<usize>(&name(42), Durability::Disk).unwrap(), Some(42));
        store.remove_all(&values.into_iter().map(|(name, _)| name).collect::<Vec<_>>()).unwrap();
        store.remove_all(&[name(7)]).unwrap();
        assert!(store.list("things/1", Durability::Disk).unwrap().is_empty());
        store.write_all::<u8>(&[]).unwrap();
    }
}
