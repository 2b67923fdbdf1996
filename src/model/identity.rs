//! Identity of this host for its controller.

use serde::{Deserialize, Serialize};

use super::caller::Caller;

/// Values that a controller gave when it connected; all empty before the first connect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostIdentity {
    /// The controller's name for this host.
    pub host_uuid: String,
    /// Address of commands to the controller.
    pub send_command_url: String,
    /// Version that the controller expects of the agent.
    pub version: String,
    /// Caller that gave `send_command_url`; `None` if it was learnt before callers were recorded. `None` is treated as
    /// a caller elsewhere: if that is wrong, reports fail until the next connect, whereas the other choice would open
    /// loopback.
    pub learnt_from: Option<Caller>,
}

impl HostIdentity {
    /// File in the state folder.
    pub const FILE: &str = "controller.json";
}
