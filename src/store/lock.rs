//! Lock of a node: held by the one agent that owns the node, with a line in the lock file that identifies this agent.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Store, StoreError};

impl Store {
    /// Takes the node's lock, which is released when the returned value is dropped. Each of the two folders has a lock
    /// file, because two agents may have only one of the folders in common.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another agent has it.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        let state = take(self.state.join("lock"))?;
        match self.run == self.state {
            true => Ok(Lock(vec![state])),
            false => Ok(Lock(vec![state, take(self.run.join("lock"))?])),
        }
    }

    /// Returns the line that the holder of the node's lock signed; `None` when nobody holds it. Makes no
    /// file, and holds the lock no longer than the check takes.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn holder(&self) -> Result<Option<String>, StoreError> {
        match holder(&self.state.join("lock"))? {
            None => holder(&self.run.join("lock")),
            holder => Ok(holder),
        }
    }
}

fn take(path: PathBuf) -> Result<LockFile, StoreError> {
    let write = |source| StoreError::Write { path: path.clone(), source };
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(write)?;
    match file.try_lock() {
        Ok(()) => Ok(LockFile { path, file }),
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            Err(StoreError::Locked { path, holder: holder.trim().to_string() })
        }
        Err(TryLockError::Error(source)) => Err(StoreError::Write { path, source }),
    }
}

fn holder(path: &Path) -> Result<Option<String>, StoreError> {
    let read = |source| StoreError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(read(source)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path).map_err(read)?;
            Ok(Some(holder.trim().to_string()))
        }
        Err(TryLockError::Error(source)) => Err(read(source)),
    }
}

/// Held lock of the node, released on drop.
#[derive(Debug)]
pub struct Lock(Vec<LockFile>);

#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Writes the holder into the lock file, for the next agent that tries: `pid 12` or `pid 12, http://…`.
    ///
    /// The lock holds without that line, so a full disk is only a warning.
    pub fn sign(&mut self, url: Option<&str>) {
        let pid = std::process::id();
        let line = match url {
            Some(url) => format!("pid {pid}, {url}"),
            None => format!("pid {pid}"),
        };
        self.0.iter_mut().for_each(|lock| lock.sign(&line));
    }
}

impl LockFile {
    fn sign(&mut self, line: &str) {
        let sign = |file: &mut File| {
            file.set_len(0)?;
            io::Seek::rewind(file)?;
            file.write_all(line.as_bytes())
        };
        if let Err(e) = sign(&mut self.file) {
            tracing::warn!(
                path = %self.path.display(), error = %e,
                "this agent's pid and address could not be written into the lock file {} (the lock itself holds): {e}",
                self.path.display()
            );
        }
    }
}

impl Drop for LockFile {
    /// Clears the line of the holder. A reader may find the file locked only because another reader checks it, and must
    /// not take the line of a holder that has ended for the current one.
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        let mut lock = store.lock().unwrap();
        lock.sign(Some("http://[::1]:7070"));
        let signed = format!("pid {}, http://[::1]:7070", std::process::id());
        match store.lock() {
            Err(StoreError::Locked { holder, .. }) => assert_eq!(holder, signed),
            other => panic!("{other:?}"),
        }
        assert_eq!(store.holder().unwrap(), Some(signed));
        drop(lock);
        assert_eq!(store.holder().unwrap(), None);
        store.lock().unwrap();
    }

    #[test]
    fn neither_folder_has_two_owners() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            |state: &str| Store::open(dir.path().join(state), dir.path().join("run")).unwrap();
        let mut lock = store("one").lock().unwrap();
        lock.sign(None);
        let signed = format!("pid {}", std::process::id());
        match store("other").lock() {
            Err(StoreError::Locked { path, holder }) => {
                assert_eq!((path, &holder), (dir.path().join("run/lock"), &signed));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(store("other").holder().unwrap(), Some(signed));
        drop(lock);
        store("other").lock().unwrap();
    }
}
