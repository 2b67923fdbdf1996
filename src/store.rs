//! Store of the agent's own files: JSON with a version, one file per value, replaced atomically.
//!
//! A file that cannot be read is set aside under another name and logged as an error, never silently
//! dropped, and never takes others with it:
//!
//! ```text
//! a.json.unusable    is broken, or not of the expected type
//! a.json.version-2   was written by a newer agent; restored by the next agent that knows its version
//! ```
#![allow(clippy::disallowed_methods)] // one of the modules that touch files

mod batch;
mod error;
mod files;
mod form;
mod lock;
mod slot;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::error::StoreError;
use self::files::sweep;
pub use self::files::{make_folder, open_to_append, read_some, replace_file, write_new};
use self::form::name_aside;
pub use self::form::{Unusable, VERSION, content, decode, encode};
pub use self::lock::Lock;
pub use self::slot::BootSlot;

/// Lifetime that a file must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives a crash of the machine: on the disk, file and folder synced.
    Disk,
    /// Survives a crash of the agent but no reboot: in the folder that a reboot empties. For values that a reboot makes
    /// void.
    Boot,
}

/// Folders of the agent: one on the disk, one that a reboot empties.
#[derive(Debug, Clone)]
pub struct Store {
    state: PathBuf,
    run: PathBuf,
    /// Set if the store is read-only: it changes no file.
    only_looks: bool,
}

impl Store {
    /// Opens the store: `state` holds the files on disk, `run` those of this boot. A missing folder is created.
    ///
    /// # Errors
    /// [`StoreError::MakeFolder`].
    pub fn open(state: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Result<Store, StoreError> {
        let store = Store { only_looks: false, ..Store::look(state, run) };
        for folder in [&store.state, &store.run] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|source| StoreError::MakeFolder { path: folder.clone(), source })?;
        }
        Ok(store)
    }

    /// Opens the store read-only: no folder is created, and a missing one counts as empty.
    pub fn look(state: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Store {
        Store { state: state.into(), run: run.into(), only_looks: true }
    }

    fn path(&self, name: &str, durability: Durability) -> PathBuf {
        match durability {
            Durability::Disk => self.state.join(name),
            Durability::Boot => self.run.join(name),
        }
    }

    /// Writes a value as readable JSON.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn write<T: Serialize>(
        &self,
        name: &str,
        value: &T,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let path = self.path(name, durability);
        encode(value)
            .map_err(io::Error::from)
            .and_then(|bytes| {
                self.make_folder_of(&path, durability)?;
                replace_file(&path, &bytes, 0o600, None, durability)
            })
            .map_err(|source| StoreError::Write { path, source })
    }

    /// Returns the slot of the value `name`, which is of this boot and written often.
    pub fn boot_slot(&self, name: &str) -> BootSlot {
        BootSlot::new(self.path(name, Durability::Boot))
    }

    /// Creates the folder of `path`, and those above it, if it is missing.
    fn make_folder_of(&self, path: &Path, durability: Durability) -> io::Result<()> {
        let root = self.path("", durability);
        let Some(folder) = path.parent().filter(|folder| *folder != root && !folder.exists())
        else {
            return Ok(());
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        if durability == Durability::Disk {
            for above in folder.ancestors().skip(1).take_while(|above| above.starts_with(&root)) {
                File::open(above)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Lists the files of a folder that hold values.
    ///
    /// # Errors
    /// [`StoreError::Read`] when the disk fails; a missing folder is empty.
    pub fn list(&self, folder: &str, durability: Durability) -> Result<Vec<String>, StoreError> {
        let mut names = self.entries(folder, durability)?;
        // Without files that were set aside.
        names.retain(|name| name.ends_with(".json"));
        Ok(names)
    }

    /// Lists the folders in a folder.
    ///
    /// # Errors
    /// [`StoreError::Read`] when the disk fails; a missing folder is empty.
    pub fn folders(&self, folder: &str, durability: Durability) -> Result<Vec<String>, StoreError> {
        let path = self.path(folder, durability);
        let mut names = self.entries(folder, durability)?;
        names.retain(|name| path.join(name).is_dir());
        Ok(names)
    }

    /// Lists a folder, without the temporary files that a crash left.
    fn entries(&self, folder: &str, durability: Durability) -> Result<Vec<String>, StoreError> {
        let path = self.path(folder, durability);
        let read = |source| StoreError::Read { path: path.clone(), source };
        let listing = match fs::read_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing.map_err(read)?,
        };
        let mut names = Vec::new();
        for entry in listing {
            let name = entry.map_err(read)?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes a value; a missing one is no error.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn remove(&self, name: &str, durability: Durability) -> Result<(), StoreError> {
        let path = self.path(name, durability);
        let remove = || match fs::remove_file(&path) {
            Ok(()) if durability == Durability::Disk => {
                File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        remove().map_err(|source| StoreError::Write { path: path.clone(), source })
    }

    /// Removes temporary files that a crash left, and restores files that an agent too old for them set
    /// aside, in both folders and those below them. Only for the holder of the lock.
    ///
    /// # Errors
    /// [`StoreError::Read`] and [`StoreError::Write`]; a missing folder is no error.
    pub fn sweep(&self) -> Result<(), StoreError> {
        sweep(&self.state)?;
        sweep(&self.run)
    }

    /// Sets aside a file whose content is unexpected, and logs `why`.
    pub fn set_aside(&self, name: &str, durability: Durability, why: &str) {
        let path = self.path(name, durability);
        self.move_aside(&path, &path.with_extension("json.unusable"), why);
    }

    fn move_aside(&self, path: &Path, aside: &Path, why: &str) {
        if self.only_looks {
            // The agent that owns the file may be writing it at this moment.
            tracing::warn!(
                path = %path.display(), why,
                "the state file {} cannot be used: {why}", path.display()
            );
            return;
        }
        let moved = fs::rename(path, aside);
        tracing::error!(
            path = %path.display(), aside = %aside.display(), moved = moved.is_ok(), why,
            "the state file {} cannot be used and {} {}: {why}; the agent runs without its content",
            path.display(),
            if moved.is_ok() { "was set aside as" } else { "could not be renamed to" },
            aside.display()
        );
    }

    /// Reads a value; `None` when there is none, or when its file had to be set aside.
    ///
    /// # Errors
    /// [`StoreError::Read`] when the disk fails.
    pub fn read<T: DeserializeOwned>(
        &self,
        name: &str,
        durability: Durability,
    ) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.bytes(name, durability)? else { return Ok(None) };
        let value = decode(&bytes).inspect_err(|why| {
            let path = self.path(name, durability);
            self.move_aside(&path, &name_aside(&path, why), &format!("it {why}"));
        });
        Ok(value.ok())
    }

    /// Reads a file as it is and sets nothing aside. `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Read`] when the disk fails.
    pub fn bytes(&self, name: &str, durability: Durability) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(name, durability);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Read { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state"), dir.path().join("run")).unwrap();
        for (durability, folder) in [(Durability::Disk, "state"), (Durability::Boot, "run")] {
            store.write("a.json", &vec![1, 2], durability).unwrap();
            store.write("a.json", &vec![3], durability).unwrap();
            assert_eq!(store.read::<Vec<u8>>("a.json", durability).unwrap(), Some(vec![3]));
            assert_eq!(store.read::<Vec<u8>>("b.json", durability).unwrap(), None);
            assert_eq!(fs::read_dir(dir.path().join(folder)).unwrap().count(), 1);
        }
    }

    #[test]
    fn who_only_looks_finds_files_as_they_are_and_folders_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        store.write("things/b/1.json", &1, Durability::Disk).unwrap();
        store.write("things/a/1.json", &1, Durability::Disk).unwrap();
        store.write("things/file.json", &1, Durability::Disk).unwrap();
        assert_eq!(store.folders("things", Durability::Disk).unwrap(), ["a", "b"]);
        assert!(store.folders("nothing", Durability::Disk).unwrap().is_empty());
        fs::write(dir.path().join("broken.json"), "{").unwrap();
        let broken = store.bytes("broken.json", Durability::Disk).unwrap();
        assert_eq!(broken.as_deref(), Some(&b"{"[..]));
        assert!(dir.path().join("broken.json").exists(), "it is not set aside");
        assert_eq!(store.bytes("none.json", Durability::Disk).unwrap(), None);
    }

    #[test]
    fn what_a_crash_left_of_a_write_is_swept_wherever_it_lies_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state"), dir.path().join("run")).unwrap();
        let beside = dir.path().join(".vhost-agent-not-ours");
        fs::write(&beside, "").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("state/link")).unwrap();
        for (folder, durability) in [
            ("", Durability::Disk),
            ("things/", Durability::Disk),
            ("things/of/", Durability::Disk),
            ("", Durability::Boot),
        ] {
            store.write(&format!("{folder}a.json"), &1, durability).unwrap();
            for name in [".vhost-agent-Xy7z", ".hidden", "b.json.unusable"] {
                fs::write(store.path(folder, durability).join(name), "{").unwrap();
            }
            store.sweep().unwrap();
            let left = fs::read_dir(store.path(folder, durability)).unwrap();
            let left = left.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
            let mut left: Vec<_> = left.map(|path| path.file_name().unwrap().to_owned()).collect();
            left.sort();
            assert_eq!(
                left,
                [".hidden", "a.json", "b.json.unusable"],
                "in {folder} {durability:?}"
            );
        }
        assert!(beside.exists(), "what a link leads to is somebody else's");
    }

    #[test]
    fn a_broken_file_is_set_aside_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        fs::write(dir.path().join("a.json"), "{\"half").unwrap();
        assert_eq!(store.read::<Vec<u8>>("a.json", Durability::Disk).unwrap(), None);
        assert_eq!(fs::read_to_string(dir.path().join("a.json.unusable")).unwrap(), "{\"half");
    }

    #[test]
    fn a_file_of_a_newer_agent_is_taken_back_by_the_next_one_that_knows_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state"), dir.path().join("run")).unwrap();
        let path = |name: &str| dir.path().join("state/things").join(name);
        let newer = "{\"version\": 2, \"value\": 7}";
        store.write("things/of/here.json", &1, Durability::Disk).unwrap();
        fs::write(path("a.json"), newer).unwrap();
        assert_eq!(store.read::<u8>("things/a.json", Durability::Disk).unwrap(), None);
        assert!(store.list("things", Durability::Disk).unwrap().is_empty());
        store.sweep().unwrap();
        assert_eq!(fs::read_to_string(path("a.json.version-2")).unwrap(), newer);
        // As an agent of the version that this one knows finds it after one that did not.
        let old = "{\"version\": 1, \"value\": 7}";
        for name in ["b.json.version-1", "b.json.version-0", "of/here.json.version-1"] {
            fs::write(path(name), old).unwrap();
        }
        store.sweep().unwrap();
        assert_eq!(store.read::<u8>("things/b.json", Durability::Disk).unwrap(), Some(7));
        assert!(path("b.json.version-0").exists(), "the newest is taken, the other one is kept");
        assert_eq!(store.read::<u8>("things/of/here.json", Durability::Disk).unwrap(), Some(1));
        assert!(path("of/here.json.version-1").exists(), "what was written meanwhile counts");
    }

    #[test]
    fn a_look_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::look(dir.path().join("state"), dir.path().join("run"));
        assert_eq!(store.holder().unwrap(), None);
        assert_eq!(store.read::<u8>("a.json", Durability::Boot).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
