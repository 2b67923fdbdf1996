//! The engine's configuration file, which is the operator's (field note 8).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::{HostError, Root};
use crate::model::engine::DaemonJson;
use crate::store::{Durability, replace_file};

/// More than any daemon.json has; what is longer is something else.
const MOST_BYTES: u64 = 1024 * 1024;

/// Reads the file as it is.
pub fn read(root: &Root, path: &str) -> DaemonJson {
    let path = root.path(path);
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {
            return DaemonJson::Absent;
        }
        Err(e) => return DaemonJson::Unusable(format!("it cannot be read: {e}")),
    };
    if !meta.is_file() || meta.len() > MOST_BYTES {
        return DaemonJson::Unusable("it is not a file of ordinary size".to_string());
    }
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) => return DaemonJson::Unusable(format!("it cannot be read: {e}")),
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(_)) => {
            DaemonJson::Object { text, modified_at: u64::try_from(meta.mtime()).unwrap_or(0) }
        }
        Ok(_) => DaemonJson::Unusable("it is not a JSON object".to_string()),
        Err(e) => DaemonJson::Unusable(format!("it is not JSON: {e}")),
    }
}

/// Replaces the file in one step, keeping its mode and owner; a symbolic link is followed, so that
/// the file of a configuration tool stays where that tool has it.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn write(root: &Root, path: &str, text: &str) -> Result<(), HostError> {
    let path = root.path(path);
    let path = fs::canonicalize(&path).unwrap_or(path);
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)
        .map_err(|source| HostError::MakeFolder { path: folder.to_owned(), source })?;
    let keep = fs::metadata(&path).ok();
    let mode = keep.as_ref().map_or(0o644, |meta| meta.mode() & 0o7777);
    let owner = keep.map(|meta| (meta.uid(), meta.gid()));
    replace_file(&path, text.as_bytes(), mode, owner, Durability::Disk).map_err(|source| {
        HostError::Write { path, value: "the new configuration".to_string(), hint: "", source }
    })
}
