//! Form of every file that the agent keeps: JSON with a version.
//!
//! ```text
//! {"version": 1, "spec": …}       the members of an object are beside the version,
//! {"version": 1, "value": [ … ]}  anything else is under "value", and so is an object that has one of these members
//! ```
//! Files without a version, from older agents, are read too.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::StoreError;

/// Version of the form, the same for all files.
pub const VERSION: u64 = 1;
/// Name of the member that holds the version.
const MEMBER: &str = "version";
/// Name of the member that holds a value that cannot be beside the version.
const VALUE: &str = "value";
/// Text between the name of a file that was set aside for its newer version, and that version.
const NEWER: &str = ".version-";

#[derive(Serialize)]
#[serde(untagged)]
enum Form<'a> {
    Beside {
        version: u64,
        #[serde(flatten)]
        content: &'a Value,
    },
    Under {
        version: u64,
        value: &'a Value,
    },
}

/// Reason for which a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Version that only a newer agent knows.
    #[error("is of version {0}, and this agent knows {VERSION}")]
    Newer(u64),
    /// Not JSON, or not of the expected type.
    #[error("cannot be read: {0}")]
    Broken(#[from] serde_json::Error),
}

/// Encodes a value as file content.
///
/// # Errors
/// When the value cannot be represented in JSON.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    let content = serde_json::to_value(value)?;
    let beside = content
        .as_object()
        .is_some_and(|members| !members.contains_key(MEMBER) && !members.contains_key(VALUE));
    serde_json::to_vec_pretty(&match beside {
        true => Form::Beside { version: VERSION, content: &content },
        false => Form::Under { version: VERSION, value: &content },
    })
}

/// Decodes the value that a file holds.
///
/// # Errors
/// [`Unusable`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unusable> {
    Ok(serde_json::from_value(content(serde_json::from_slice(bytes)?)?)?)
}

/// Extracts a file's value, without its version.
///
/// # Errors
/// [`Unusable::Newer`].
pub fn content(mut file: Value) -> Result<Value, Unusable> {
    // A file without a numeric version is from before files had one; a `version` of another type is part of the value.
    let Some(version) = file.get(MEMBER).and_then(Value::as_u64) else { return Ok(file) };
    if version > VERSION {
        return Err(Unusable::Newer(version));
    }
    if let Some(members) = file.as_object_mut() {
        members.remove(MEMBER);
        if let Some(value) = members.remove(VALUE) {
            return Ok(value);
        }
    }
    Ok(file)
}

/// Name under which a file that cannot be used is kept.
pub(super) fn name_aside(path: &Path, why: &Unusable) -> PathBuf {
    path.with_extension(match why {
        Unusable::Newer(version) => format!("json{NEWER}{version}"),
        Unusable::Broken(_) => "json.unusable".to_string(),
    })
}

/// Name of a file before it was set aside for its version, and that version.
fn name_before(path: &Path) -> Option<(PathBuf, u64)> {
    let (name, version) = path.file_name()?.to_str()?.rsplit_once(NEWER)?;
    Some((path.with_file_name(name), version.parse().ok()?))
}

/// Restores the `files` of one folder that an older agent set aside for a version that this agent knows. Of several
/// with the same name, the newest is restored. The others stay, and so does a file whose name is in use again.
pub(super) fn take_back(files: &[PathBuf]) -> Result<(), StoreError> {
    let mut aside: Vec<(PathBuf, u64, &PathBuf)> = files
        .iter()
        .filter_map(|file| name_before(file).map(|(name, version)| (name, version, file)))
        .filter(|(_, version, _)| *version <= VERSION)
        .collect();
    aside.sort_by(|(_, one, _), (_, other, _)| other.cmp(one));
    for (name, version, file) in aside {
        if name.exists() {
            tracing::warn!(
                path = %name.display(), aside = %file.display(), version,
                "the state file {}, set aside by an older agent, is not restored, because {} exists: \
                 remove one of them",
                file.display(), name.display()
            );
            continue;
        }
        fs::rename(file, &name)
            .map_err(|source| StoreError::Write { path: name.clone(), source })?;
        tracing::info!(
            path = %name.display(), version,
            "the state file {}, set aside by an older agent, was restored", name.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn file<T: Serialize>(value: &T) -> Value {
        serde_json::from_slice(&encode(value).unwrap()).unwrap()
    }

    #[test]
    fn an_object_is_beside_its_version_and_anything_else_under_it() {
        assert_eq!(file(&json!({"spec": 7})), json!({"version": 1, "spec": 7}));
        assert_eq!(file(&[1, 2]), json!({"version": 1, "value": [1, 2]}));
        let own = json!({"version": "5", "hostUuid": "a"});
        assert_eq!(file(&own), json!({"version": 1, "value": own}));
        assert!(encode(&json!({"a": 1})).unwrap().starts_with(b"{\n  \"version\": 1,"));
    }

    #[test]
    fn files_from_before_they_had_a_version_are_read_as_they_are() {
        for value in [json!([{"pages": 1}]), json!({"version": "5"}), json!({"failures": 2})] {
            assert_eq!(decode::<Value>(value.to_string().as_bytes()).unwrap(), value);
        }
    }

    #[test]
    fn newer_versions_and_broken_files_are_distinguished() {
        let newer = decode::<u8>(br#"{"version": 2, "value": 1}"#).unwrap_err();
        assert_eq!(newer.to_string(), "is of version 2, and this agent knows 1");
        assert!(matches!(decode::<u8>(br#"{"version": 2"#), Err(Unusable::Broken(_))));
        assert!(matches!(decode::<u8>(br#"{"version": 1}"#), Err(Unusable::Broken(_))));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<i32>().prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 4, |inner| {
            let name = prop_oneof!["[a-c]", Just(MEMBER.to_string()), Just(VALUE.to_string())];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map(name, inner, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_value_is_read_back_as_it_was_written(value in any_json()) {
            prop_assert_eq!(decode::<Value>(&encode(&value).unwrap()).unwrap(), value);
        }
    }
}
