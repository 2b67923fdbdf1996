//! Identity of this host for its controller.

use serde::{Deserialize, Serialize};

use super::caller::Caller;

/// Values that a controller gave when it connected; empty if it did not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostIdentity {
    /// The controller's name for this host.
    pub host_uuid: String,
    /// Address of commands to the controller.
    pub send_command_url: String,
    /// Version that the controller expects of the agent.
    pub version: String,
    /// Caller that gave them; unknown if they were learnt before that was recorded, and then nobody on this node: a
    /// wrong guess costs reports until the next connect, the other one would open loopback.
    pub learnt_from: Option<Caller>,
}

impl HostIdentity {
    /// File in the state folder.
    pub const FILE: &str = "controller.json";
}
