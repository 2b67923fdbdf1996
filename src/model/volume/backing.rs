//! Backings of volumes, validated before a target is asked to open one.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;

/// Storage of a volume's blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "lowercase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Backing {
    /// A volume of ZBS.
    Zbs {
        /// `<pool>/<volume>`; the target opens it with [`ZBS_SUFFIX`] appended.
        path: String,
    },
    /// A file or block device, under the path that the target's container sees.
    Aio {
        path: CleanPath,
        /// Bytes of a block; required for a file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        block_size: Option<u32>,
    },
    /// Disk in the target's memory, of `size_mib` MiB; its data is lost when the target exits.
    Malloc {
        size_mib: u64,
        /// Bytes of a block.
        #[serde(default = "usual_block_size")]
        block_size: u32,
    },
    /// Bdev made by any method of the target.
    Raw {
        /// Method, such as `bdev_rbd_create`.
        method: String,
        /// Parameters of the method; the bdev's name is added as `name` if that is missing.
        #[serde(default)]
        params: Map<String, Value>,
        /// Method that deletes the bdev, with the bdev's name as `name`; by default the method's name with `_delete`
        /// instead of `_create`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delete_method: Option<String>,
    },
}

/// Suffix that is appended to the path of a ZBS volume when a target opens it.
pub const ZBS_SUFFIX: &str = "_zbs_";
/// Largest disk in a target's memory, in MiB: far more than a target's memory, and low enough that the size in bytes
/// does not overflow.
const MOST_MALLOC_MIB: u64 = 1 << 20;
/// Size limit of the parameters of a raw method, in bytes of JSON.
const MOST_PARAMS: usize = 64 * 1024;

/// Suffixes of the methods that make a bdev.
pub const MAKES: [&str; 2] = ["_create", "_attach_controller"];
/// Suffixes of the methods that delete a bdev.
pub const TAKES: [&str; 2] = ["_delete", "_detach_controller"];

fn usual_block_size() -> u32 {
    512
}

impl Backing {
    /// File or device that holds the blocks, if the backing names one.
    pub fn file(&self) -> Option<&str> {
        match self {
            Backing::Aio { path, .. } => Some(path.as_str()),
            Backing::Raw { params, .. } => params.get("filename").and_then(Value::as_str),
            Backing::Zbs { .. } | Backing::Malloc { .. } => None,
        }
    }

    /// Checks the backing as a whole.
    ///
    /// # Errors
    /// A size, a path or a method that no target takes.
    pub fn validate(&self) -> Result<(), Fault> {
        let refused = |text: String| Err(Fault::new(Code::InvalidBacking, text));
        match self {
            Backing::Zbs { path } => {
                let parts = path.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
                let plain = path.bytes().all(|b| b.is_ascii_graphic());
                match parts && plain && path.len() <= 512 && path.contains('/') {
                    true => Ok(()),
                    false => {
                        let shown: String = path.chars().take(120).collect();
                        refused(format!("'{shown}' is no ZBS volume, which looks like pool/volume"))
                    }
                }
            }
            Backing::Aio { block_size, .. } => validate_block_size(block_size.unwrap_or(512)),
            Backing::Malloc { size_mib, block_size } => {
                validate_block_size(*block_size)?;
                match (1..=MOST_MALLOC_MIB).contains(size_mib) {
                    true => Ok(()),
                    false => {
                        refused(format!("{size_mib} MiB are not between 1 and {MOST_MALLOC_MIB}"))
                    }
                }
            }
            Backing::Raw { method, params, delete_method } => {
                validate_method(method, &MAKES)?;
                delete_method.as_ref().map_or(Ok(()), |delete| validate_method(delete, &TAKES))?;
                match serde_json::to_vec(params).map_or(usize::MAX, |bytes| bytes.len()) {
                    0..=MOST_PARAMS => Ok(()),
                    long => {
                        refused(format!("{long} bytes of parameters are more than {MOST_PARAMS}"))
                    }
                }
            }
        }
    }
}

fn validate_block_size(bytes: u32) -> Result<(), Fault> {
    if bytes.is_power_of_two() && (512..=65536).contains(&bytes) {
        return Ok(());
    }
    let text = format!("{bytes} is no block size: a power of two from 512 to 65536");
    Err(Fault::new(Code::InvalidBacking, text))
}

/// Checks the name of a raw method: it begins with `bdev_` and ends with one of `ends`. So the method makes or deletes
/// bdevs, and does nothing else.
///
/// # Errors
/// Any other method.
pub fn validate_method(method: &str, ends: &[&str]) -> Result<(), Fault> {
    let plain = method.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let fits = method.starts_with("bdev_") && ends.iter().any(|end| method.ends_with(end));
    if plain && fits && method.len() <= 64 {
        return Ok(());
    }
    let shown: String = method.chars().take(80).collect();
    let text = format!("'{shown}' is not a method bdev_… that ends with {}", ends.join(" or "));
    Err(Fault::new(Code::InvalidBacking, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_is_read_as_it_is_documented() {
        let read = |text: &str| serde_json::from_str::<Backing>(text);
        let malloc = read(r#"{"kind":"malloc","sizeMib":16}"#).unwrap();
        assert_eq!(malloc, Backing::Malloc { size_mib: 16, block_size: 512 });
        assert!(read(r#"{"kind":"aio","path":"/a","blockSize":4096}"#).unwrap().validate().is_ok());
        assert!(read(r#"{"kind":"zbs","path":"p/v"}"#).unwrap().validate().is_ok());
        assert!(read(r#"{"kind":"malloc","sizeMib":16,"x":1}"#).is_err());
        assert!(read(r#"{"kind":"tape"}"#).is_err());
        assert!(read(r#"{"kind":"aio","path":"../a"}"#).is_err());
        for text in [
            r#"{"kind":"malloc","sizeMib":0}"#,
            r#"{"kind":"malloc","sizeMib":1,"blockSize":500}"#,
            r#"{"kind":"zbs","path":"../../etc/x"}"#,
            r#"{"kind":"zbs","path":"nopool"}"#,
            r#"{"kind":"raw","method":"spdk_kill_instance"}"#,
            r#"{"kind":"raw","method":"bdev_malloc_delete"}"#,
            r#"{"kind":"raw","method":"bdev_null_create","deleteMethod":"bdev_null_create"}"#,
        ] {
            assert_eq!(
                read(text).unwrap().validate().unwrap_err().code,
                Code::InvalidBacking,
                "{text}"
            );
        }
        assert!(
            read(r#"{"kind":"raw","method":"bdev_rbd_create","params":{"a":1}}"#)
                .unwrap()
                .validate()
                .is_ok()
        );
    }
}
