//! The engine's configuration file, owned by the operator (field note 8): reads and replaces it. Its content is merged
//! in `plan::daemon_json` and `model::daemon_json`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::{HostError, Root};
use crate::model::daemon_json::unmarked;
use crate::model::engine::DaemonJson;
use crate::store::{Durability, replace_file};

/// Upper bound on the size of a daemon.json in bytes; a larger file is taken for another kind of file.
const MOST_BYTES: u64 = 1024 * 1024;

/// Reads the file without changing it.
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
    let text = match fs::read(&path) {
        Ok(bytes) => match decoded(bytes) {
            Ok(text) => text,
            Err(why) => return DaemonJson::Unusable(why.to_string()),
        },
        Err(e) => return DaemonJson::Unusable(format!("it cannot be read: {e}")),
    };
    let modified_at = u64::try_from(meta.mtime()).unwrap_or(0);
    match serde_json::from_str(unmarked(&text)) {
        // Engines from 23 on take it for an object without keys (moby#44770).
        _ if unmarked(&text).trim().is_empty() => DaemonJson::Object { text, modified_at },
        Ok(Value::Object(_)) => DaemonJson::Object { text, modified_at },
        Ok(_) => DaemonJson::Unusable("it is not a JSON object".to_string()),
        Err(e) => DaemonJson::Unusable(format!("it is not JSON: {e}")),
    }
}

/// Text of the file, of which a byte order mark of UTF-8 is a part.
fn decoded(bytes: Vec<u8>) -> Result<String, &'static str> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("it is encoded in UTF-16: save it as UTF-8");
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

/// Replaces the file atomically, keeping its mode and owner, and returns its new content. A symbolic link is
/// followed, so that the file of a configuration tool stays where that tool keeps it.
///
/// The file is left alone if its content differs from `planned_on`, because another program writes it.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn replace(
    root: &Root,
    path: &str,
    text: &str,
    planned_on: &DaemonJson,
) -> Result<DaemonJson, HostError> {
    let there = read(root, path);
    if !same(&there, planned_on) {
        return Ok(there);
    }
    write(&root.path(path), text)?;
    Ok(read(root, path))
}

/// Restores the content `before`, unless the file no longer holds `written`. Returns `true` if it was restored.
///
/// # Errors
/// When the file cannot be written or removed.
pub fn take_back(
    root: &Root,
    path: &str,
    written: &str,
    before: &DaemonJson,
) -> Result<bool, HostError> {
    let ours = DaemonJson::Object { text: written.to_string(), modified_at: 0 };
    match before {
        DaemonJson::Object { text, .. } => Ok(same(&replace(root, path, text, &ours)?, before)),
        DaemonJson::Absent if same(&read(root, path), &ours) => {
            let path = root.path(path);
            fs::remove_file(&path).map(|()| true).map_err(|source| {
                let value = "nothing in its place".to_string();
                HostError::Write { path, value, hint: "", source }
            })
        }
        _ => Ok(false),
    }
}

/// `true` if `one` and `other` hold the same text. The modification time does not count: touching a file changes
/// nothing.
fn same(one: &DaemonJson, other: &DaemonJson) -> bool {
    match (one, other) {
        (DaemonJson::Object { text, .. }, DaemonJson::Object { text: other, .. }) => text == other,
        _ => one == other,
    }
}

fn write(path: &Path, text: &str) -> Result<(), HostError> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::daemon_json::with_keys;

    const PATH: &str = "/etc/docker/daemon.json";

    fn text(seen: &DaemonJson) -> &str {
        match seen {
            DaemonJson::Object { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_that_is_as_it_was_is_replaced_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let made = replace(&root, PATH, r#"{"a": 1}"#, &DaemonJson::Absent).unwrap();
        assert_eq!(text(&made), r#"{"a": 1}"#);
        let DaemonJson::Object { text: before, modified_at } = made else { unreachable!() };
        let touched = DaemonJson::Object { text: before, modified_at: modified_at - 60 };
        let after = replace(&root, PATH, r#"{"b": 2}"#, &touched).unwrap();
        assert_eq!(text(&after), r#"{"b": 2}"#);
    }

    /// Content of a file with these bytes.
    fn file(bytes: &[u8]) -> DaemonJson {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/etc/docker")).unwrap();
        fs::write(root.path(PATH), bytes).unwrap();
        read(&root, PATH)
    }

    #[test]
    fn blank_file_and_byte_order_mark_are_read_as_the_engine_does() {
        for bytes in [b"".as_slice(), b" \n\t\n", b"\xef\xbb\xbf\n"] {
            assert_eq!(unmarked(text(&file(bytes))).trim(), "", "{bytes:?}");
        }
        let marked = file(b"\xef\xbb\xbf{\"debug\": true}");
        assert_eq!(unmarked(text(&marked)), "{\"debug\": true}");
        let why = |bytes: &[u8]| match file(bytes) {
            DaemonJson::Unusable(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(b"\xff\xfe{\0}\0").contains("UTF-16"));
        assert!(why(b"\xfe\xff\0{\0}").contains("UTF-16"));
        assert!(why(b"{\"a\": \"\xe9\"}").contains("not UTF-8"));
        assert!(why(b"[]").contains("not a JSON object"));
        assert!(why(b"{").contains("not JSON"));
    }

    #[test]
    fn file_is_taken_back_byte_for_byte() {
        for bytes in [
            b"\xef\xbb\xbf{\"debug\": true}\r\n".as_slice(),
            b"\xef\xbb\xbf{}",
            b"\xef\xbb\xbf",
            b"",
            b" { } ",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let root = Root::new(folder.path());
            fs::create_dir_all(root.path("/etc/docker")).unwrap();
            fs::write(root.path(PATH), bytes).unwrap();
            let before = read(&root, PATH);
            let written = with_keys(&before, &[("iptables", Value::Bool(false))]);
            assert_eq!(text(&replace(&root, PATH, &written, &before).unwrap()), written);
            let there = fs::read(root.path(PATH)).unwrap();
            assert!(there.starts_with(b"{"), "{there:?}");
            assert!(take_back(&root, PATH, &written, &before).unwrap());
            assert_eq!(fs::read(root.path(PATH)).unwrap(), bytes);
        }
    }

    #[test]
    fn what_somebody_else_wrote_since_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/etc/docker")).unwrap();
        fs::write(root.path(PATH), r#"{"debug": true}"#).unwrap();
        let before = DaemonJson::Object { text: "{}".into(), modified_at: 0 };
        for planned_on in [DaemonJson::Absent, before] {
            let there = replace(&root, PATH, r#"{"iptables": false}"#, &planned_on).unwrap();
            assert_eq!(text(&there), r#"{"debug": true}"#);
            assert_eq!(fs::read_to_string(root.path(PATH)).unwrap(), r#"{"debug": true}"#);
        }
    }
}
