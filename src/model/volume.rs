//! Volumes: what is wanted of one, what is seen of it in its target, and what is told of it.

use crate::model::code::Code;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::deep::PROBE_PREFIX;
use super::fault::Fault;
use super::path::{CleanPath, judge_length};
use super::target::TargetName;

/// The name of a volume, which is its controller's and so its socket's, or of its bdev.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// Characters of a name; with the folder before it, a socket's path has room for it.
    const MOST: usize = 96;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<VolumeName, Fault> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        // Control sockets and their locks lie in the same folder.
        let reserved = text.ends_with(".sock") || text.ends_with(".lock");
        let probes = text.starts_with(PROBE_PREFIX);
        let fits = text.len() <= VolumeName::MOST;
        if first && fits && !reserved && !probes && text.bytes().all(plain) {
            return Ok(VolumeName(text.to_string()));
        }
        let shown: String = text.chars().take(120).collect();
        Err(Fault::new(
            Code::InvalidVolumeName,
            format!(
                "'{shown}' is no name for a volume or a bdev: it begins with a letter or digit, goes on \
                 with those and '_', '.', '-', has at most {} characters, ends neither with .sock nor \
                 with .lock, and does not begin with {PROBE_PREFIX}",
                VolumeName::MOST
            ),
        ))
    }
}

impl TryFrom<String> for VolumeName {
    type Error = Fault;

    fn try_from(text: String) -> Result<VolumeName, Fault> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a volume's blocks are kept in.
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
        /// `<pool>/<volume>`; the target opens it with [`ZBS_SUFFIX`] behind it.
        path: String,
    },
    /// A file or block device, under the path that the target's container sees.
    Aio {
        /// Which.
        path: CleanPath,
        /// Bytes of a block; needed for a file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        block_size: Option<u32>,
    },
    /// Memory of the target: gone when it ends.
    Malloc {
        /// Its size in MiB.
        size_mib: u64,
        /// Bytes of a block.
        #[serde(default = "usual_block_size")]
        block_size: u32,
    },
    /// Whatever method of the target makes a bdev.
    Raw {
        /// The method, such as `bdev_rbd_create`.
        method: String,
        /// Its parameters; the bdev's name is added as `name` where that is not among them.
        #[serde(default)]
        params: Map<String, Value>,
        /// The method that takes it away, with the bdev's name as `name`; without it, the method's name
        /// with `_delete` instead of `_create`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delete_method: Option<String>,
    },
}

/// What ZBS's names of volumes that a target opens end with.
pub const ZBS_SUFFIX: &str = "_zbs_";
/// The largest memory disk, in MiB: far more than a target gets, and far from where bytes overflow.
const MOST_MALLOC_MIB: u64 = 1 << 20;
/// Bytes of the largest parameters of a raw method.
const MOST_PARAMS: usize = 64 * 1024;

fn usual_block_size() -> u32 {
    512
}

impl Backing {
    /// What of it cannot be.
    ///
    /// # Errors
    /// A size, a path or a method that no target takes.
    pub fn judge(&self) -> Result<(), Fault> {
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
            Backing::Aio { block_size, .. } => judge_block_size(block_size.unwrap_or(512)),
            Backing::Malloc { size_mib, block_size } => {
                judge_block_size(*block_size)?;
                match (1..=MOST_MALLOC_MIB).contains(size_mib) {
                    true => Ok(()),
                    false => {
                        refused(format!("{size_mib} MiB are not between 1 and {MOST_MALLOC_MIB}"))
                    }
                }
            }
            Backing::Raw { method, params, delete_method } => {
                judge_method(method, &["_create", "_attach_controller"])?;
                if let Some(delete) = delete_method {
                    judge_method(delete, &["_delete", "_detach_controller"])?;
                }
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

fn judge_block_size(bytes: u32) -> Result<(), Fault> {
    if bytes.is_power_of_two() && (512..=65536).contains(&bytes) {
        return Ok(());
    }
    let text = format!("{bytes} is no block size: a power of two from 512 to 65536");
    Err(Fault::new(Code::InvalidBacking, text))
}

/// A raw method makes or takes away bdevs, and nothing else.
fn judge_method(method: &str, ends: &[&str]) -> Result<(), Fault> {
    let plain = method.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let fits = method.starts_with("bdev_") && ends.iter().any(|end| method.ends_with(end));
    if plain && fits && method.len() <= 64 {
        return Ok(());
    }
    let shown: String = method.chars().take(80).collect();
    let text = format!("'{shown}' is not a method bdev_… that ends with {}", ends.join(" or "));
    Err(Fault::new(Code::InvalidBacking, text))
}

/// What is wanted of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// Its name: its controller's.
    pub name: VolumeName,
    /// Its bdev's name.
    pub bdev: VolumeName,
    /// What its blocks are kept in.
    pub backing: Backing,
    /// Whether guests may not write.
    #[serde(default)]
    pub read_only: bool,
    /// The CPUs of its requests, as SPDK takes them; else the target's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpumask: Option<String>,
}

impl VolumeSpec {
    /// What of it is wrong as a whole, in a target with its sockets in that folder.
    ///
    /// # Errors
    /// A backing that cannot be, a socket that would not fit, a mask that is none.
    pub fn judge(self, socket_dir: &CleanPath) -> Result<VolumeSpec, Fault> {
        self.backing.judge()?;
        judge_length(&socket_dir.join(self.name.as_str()).parse()?)?;
        let mask = |mask: &String| {
            let digits = mask.strip_prefix("0x").unwrap_or(mask);
            let hex = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let list = mask.starts_with('[')
                && mask.ends_with(']')
                && mask.bytes().all(|b| b.is_ascii_digit() || b"[],-".contains(&b));
            mask.len() <= 256 && (hex || list)
        };
        match self.cpumask.as_ref().is_none_or(mask) {
            true => Ok(self),
            false => {
                let text = "cpumask is neither a mask such as 0x3 nor a list such as [0,1]";
                Err(Fault::new(Code::InvalidCpumask, text))
            }
        }
    }

    /// One of memory, for tests.
    #[cfg(test)]
    pub(crate) fn example(name: &str) -> VolumeSpec {
        VolumeSpec {
            name: VolumeName(name.to_string()),
            bdev: VolumeName(name.to_string()),
            backing: Backing::Malloc { size_mib: 1, block_size: 512 },
            read_only: false,
            cpumask: None,
        }
    }
}

/// Which volume is meant: by its own name, or by its bdev's where only that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeKey {
    /// By its name.
    Name(VolumeName),
    /// By its bdev's.
    Bdev(VolumeName),
    /// By both; so one is found too of which nothing was written down.
    Both {
        /// Its own.
        name: VolumeName,
        /// Its bdev's.
        bdev: VolumeName,
    },
}

/// What is seen of a volume in its target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeSeen {
    /// The bdev of its bdev's name.
    pub bdev: Option<BdevSeen>,
    /// The controller of its name.
    pub controller: Option<ControllerSeen>,
    /// Whether its socket is there, with the owner and mode that it is to have.
    pub socket_is_given: bool,
    /// A controller of another name that serves its bdev, as far as all of them were asked for.
    pub served_by_another: Option<String>,
}

/// A bdev of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BdevSeen {
    /// The file or volume that it is kept in, where the target tells one.
    pub file: Option<String>,
    /// Its size.
    pub bytes: u64,
}

/// A controller of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControllerSeen {
    /// Its bdev; none once that was deleted under it.
    pub bdev: Option<String>,
    /// Whether guests may not write.
    pub read_only: bool,
    /// Who is connected.
    pub sessions: Vec<SessionSeen>,
}

/// A virtual machine that is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionSeen {
    /// Whether its queues run.
    pub started: bool,
    /// Its queues.
    pub queues: u64,
}

/// One thing to do to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeStep {
    /// Take its controller away, which nobody is connected to.
    DeleteController,
    /// Take its bdev away, which no controller uses.
    DeleteBdev,
    /// Make its bdev.
    CreateBdev,
    /// Make its controller.
    CreateController,
    /// Give its socket the owner and mode that it is to have.
    GiveSocket,
}

/// How a volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeState {
    /// It is wanted, and not there yet.
    Pending,
    /// Its socket serves.
    Serving,
    /// It could not be brought about; it is tried again.
    Degraded,
    /// A virtual machine is connected and its session does not start: the VM needs a restart.
    Stuck,
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VolumeState::Pending => "pending",
            VolumeState::Serving => "serving",
            VolumeState::Degraded => "degraded",
            VolumeState::Stuck => "stuck",
        })
    }
}

/// What is told of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// How it stands.
    pub state: VolumeState,
    /// Why; empty when it serves.
    pub reason: String,
    /// Since when, in RFC 3339.
    pub since: String,
    /// Where its socket is.
    pub socket_path: String,
    /// Virtual machines that are connected.
    pub sessions: usize,
    /// Whether one was connected before its target died, and has not come back.
    pub disconnected: bool,
}

impl VolumeStatus {
    /// Of one that nobody has looked at yet.
    pub fn unknown() -> VolumeStatus {
        VolumeStatus {
            state: VolumeState::Pending,
            reason: "it was not looked at yet".to_string(),
            since: String::new(),
            socket_path: String::new(),
            sessions: 0,
            disconnected: false,
        }
    }
}

/// The volumes that are wanted in one target.
pub type VolumeSpecs = BTreeMap<VolumeName, VolumeSpec>;

/// The volumes of one target as they stand.
pub type Volumes = BTreeMap<VolumeName, VolumeStatus>;

/// A volume with what is wanted of it, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeView {
    /// Its target.
    pub target: TargetName,
    /// As it is wanted.
    #[serde(flatten)]
    pub spec: VolumeSpec,
    /// As it stands.
    #[serde(flatten)]
    pub status: VolumeStatus,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else_and_are_no_control_sockets() {
        for name in ["zbs-bdev-0123456789abcdef0123456789abcdef", "a", "A_b.c-1"] {
            assert_eq!(name.parse::<VolumeName>().unwrap().as_str(), name);
        }
        let long = "x".repeat(97);
        for name in [
            "",
            "../x",
            "a/b",
            ".a",
            "-a",
            "a b",
            "vhost.sock",
            "a.sock.lock",
            "ä",
            "a\0",
            "vhost-agent-probe-1-2-3",
            long.as_str(),
        ] {
            assert_eq!(
                name.parse::<VolumeName>().unwrap_err().code,
                Code::InvalidVolumeName,
                "{name}"
            );
        }
    }

    #[test]
    fn a_backing_is_read_as_it_is_documented() {
        let read = |text: &str| serde_json::from_str::<Backing>(text);
        let malloc = read(r#"{"kind":"malloc","sizeMib":16}"#).unwrap();
        assert_eq!(malloc, Backing::Malloc { size_mib: 16, block_size: 512 });
        assert!(read(r#"{"kind":"aio","path":"/a","blockSize":4096}"#).unwrap().judge().is_ok());
        assert!(read(r#"{"kind":"zbs","path":"p/v"}"#).unwrap().judge().is_ok());
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
                read(text).unwrap().judge().unwrap_err().code,
                Code::InvalidBacking,
                "{text}"
            );
        }
        assert!(
            read(r#"{"kind":"raw","method":"bdev_rbd_create","params":{"a":1}}"#)
                .unwrap()
                .judge()
                .is_ok()
        );
    }

    #[test]
    fn a_volumes_socket_fits_and_its_mask_is_one() {
        let dir: CleanPath = "/var/tmp/vhost-sockets".parse().unwrap();
        let spec = |cpumask: Option<&str>| VolumeSpec {
            cpumask: cpumask.map(str::to_string),
            ..VolumeSpec::example("a")
        };
        for mask in [None, Some("0x3"), Some("[0,2-3]"), Some("ff")] {
            assert!(spec(mask).judge(&dir).is_ok());
        }
        for mask in ["", "0x", "[0,1", "all", "[0;1]"] {
            assert_eq!(spec(Some(mask)).judge(&dir).unwrap_err().code, Code::InvalidCpumask);
        }
        let deep: CleanPath = format!("/{}", "x".repeat(106)).parse().unwrap();
        assert_eq!(spec(None).judge(&deep).unwrap_err().code, Code::SocketPathTooLong);
    }
}
