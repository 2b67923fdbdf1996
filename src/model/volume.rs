//! Volumes: what is wanted of one, what is seen of it in its target, and what is told of it.

mod backing;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::backing::{Backing, MAKES, TAKES, ZBS_SUFFIX, judge_method};
use super::code::Code;
use super::fault::{Fault, Finding};
use super::guest::Reconnect;
use super::names::TargetName;
pub use super::names::VolumeName;
use super::path::{CleanPath, judge_length};

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

    /// The file or device that its guests write to. A volume of ZBS is none: who else writes to it, anywhere, is the
    /// controller's to know.
    pub fn writes_to(&self) -> Option<&str> {
        let params = match &self.backing {
            Backing::Raw { params, .. } => params.get("readonly"),
            _ => None,
        };
        let only_reads = self.read_only || params.and_then(Value::as_bool) == Some(true);
        self.backing.file().filter(|_| !only_reads)
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
    /// Who else serves or uses its bdev, as far as all of them were asked for: a controller of another name, a node of
    /// iSCSI, a device of the kernel.
    pub served_by_another: Option<String>,
}

/// A bdev of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BdevSeen {
    /// The file or volume that it is kept in, where the target tells one.
    pub file: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// Whether a part of the target has it for itself: a bdev on top of it, NVMe-oF.
    pub claimed: bool,
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
    /// How often its guest looks for the socket again once the target has exited, in seconds (0: never), as the command
    /// line of the guest's QEMU says; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_seconds: Option<Reconnect>,
    /// What the operator should know of its guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
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
            reconnect_seconds: None,
            findings: Vec::new(),
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
