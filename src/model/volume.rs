//! Volumes: spec, observation in a target, and status.

mod backing;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::backing::{Backing, MAKES, TAKES, ZBS_SUFFIX, validate_method};
use super::code::Code;
use super::fault::{Fault, Finding};
use super::guest::Reconnect;
use super::names::TargetName;
pub use super::names::VolumeName;
use super::path::{CleanPath, validate_length};

/// Desired state of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// Name of the volume and of its controller.
    pub name: VolumeName,
    /// Name of the volume's bdev.
    pub bdev: VolumeName,
    pub backing: Backing,
    /// Set if guests may not write.
    #[serde(default)]
    pub read_only: bool,
    /// CPUs that serve the volume's requests, in SPDK's notation; `None`: those of the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpumask: Option<String>,
}

impl VolumeSpec {
    /// Checks the whole spec, for a target with its sockets in `socket_dir`.
    ///
    /// # Errors
    /// An impossible backing, a socket path that is too long, a malformed mask.
    pub fn validate(self, socket_dir: &CleanPath) -> Result<VolumeSpec, Fault> {
        self.backing.validate()?;
        validate_length(&socket_dir.join(self.name.as_str()).parse()?)?;
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

    /// File or device that guests of the volume write to; `None` if they only read, or the backing names no file. A ZBS
    /// volume has none either: it can have writers on other nodes, which only the controller knows.
    pub fn writes_to(&self) -> Option<&str> {
        let params = match &self.backing {
            Backing::Raw { params, .. } => params.get("readonly"),
            _ => None,
        };
        let only_reads = self.read_only || params.and_then(Value::as_bool) == Some(true);
        self.backing.file().filter(|_| !only_reads)
    }

    /// Example in memory, for tests.
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

/// Key that finds a volume: its name, the name of its bdev, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeKey {
    Name(VolumeName),
    /// Name of the volume's bdev.
    Bdev(VolumeName),
    /// Both names. They find a volume even if the agent has no record of it.
    Both {
        name: VolumeName,
        /// Name of the volume's bdev.
        bdev: VolumeName,
    },
}

/// Observation of a volume in its target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeSeen {
    /// Bdev with the name in [`VolumeSpec::bdev`].
    pub bdev: Option<BdevSeen>,
    /// Controller with the volume's name.
    pub controller: Option<ControllerSeen>,
    /// Set if the volume's socket is present with the desired owner and mode.
    pub socket_is_given: bool,
    /// Name of another server or user of the volume's bdev, if the observation covered them: a controller with another
    /// name, an iSCSI node, or a device of the kernel.
    pub served_by_another: Option<String>,
}

/// Observed bdev of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BdevSeen {
    /// File or volume that holds its data, if the target reports one.
    pub file: Option<String>,
    pub bytes: u64,
    /// Set if a part of the target has claimed the bdev, such as another bdev on top of it or NVMe-oF.
    pub claimed: bool,
}

/// Observed controller of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControllerSeen {
    /// Name of the controller's bdev; `None` if the bdev was deleted while the controller used it.
    pub bdev: Option<String>,
    /// Set if guests may not write.
    pub read_only: bool,
    pub sessions: Vec<SessionSeen>,
}

/// Session of a connected virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionSeen {
    /// Numbers of the connection in the target and of the session in its controller, which SPDK does not use again.
    pub id: (u64, u64),
    /// Set if the session's queues run.
    pub started: bool,
    /// Number of queues that the virtual machine has set up.
    pub queues: u64,
}

/// Step of a volume's plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeStep {
    /// Delete the volume's controller, to which no virtual machine is connected.
    DeleteController,
    /// Delete the volume's bdev, which no controller uses.
    DeleteBdev,
    CreateBdev,
    CreateController,
    /// Set the desired owner and mode of the volume's socket.
    GiveSocket,
}

/// Published state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeState {
    /// Desired, but not observed as serving yet.
    Pending,
    Serving,
    /// Last reconcile failed; retried.
    Degraded,
    /// Connected virtual machine whose session does not start: the VM needs a restart.
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

/// Published status of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    pub state: VolumeState,
    /// Reason for the state; empty while the volume serves.
    pub reason: String,
    /// Start of the state, in RFC 3339.
    pub since: String,
    pub socket_path: String,
    /// Connected virtual machines.
    pub sessions: usize,
    /// Set if a virtual machine was connected before the target exited, and has not reconnected.
    pub disconnected: bool,
    /// Interval at which the volume's guest tries to reconnect after an exit of the target, in seconds; 0 for never. It
    /// is read from the command line of the guest's QEMU; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_seconds: Option<Reconnect>,
    /// Findings about the volume's guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

impl VolumeStatus {
    /// Status of a volume that was not observed yet.
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

/// Desired volumes of one target.
pub type VolumeSpecs = BTreeMap<VolumeName, VolumeSpec>;

/// Statuses of one target's volumes.
pub type Volumes = BTreeMap<VolumeName, VolumeStatus>;

/// Volume with spec and status, as `/v1` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeView {
    pub target: TargetName,
    #[serde(flatten)]
    pub spec: VolumeSpec,
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
            assert!(spec(mask).validate(&dir).is_ok());
        }
        for mask in ["", "0x", "[0,1", "all", "[0;1]"] {
            assert_eq!(spec(Some(mask)).validate(&dir).unwrap_err().code, Code::InvalidCpumask);
        }
        let deep: CleanPath = format!("/{}", "x".repeat(106)).parse().unwrap();
        assert_eq!(spec(None).validate(&deep).unwrap_err().code, Code::SocketPathTooLong);
    }
}
