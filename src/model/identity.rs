//! Who this host is to its controller.

use serde::{Deserialize, Serialize};

use super::caller::Caller;

/// What a controller said when it connected; empty where it did not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Identity {
    /// The controller's name for this host.
    pub host_uuid: String,
    /// Where commands to the controller go.
    pub send_command_url: String,
    /// The version that the controller expects of the agent.
    pub version: String,
    /// From where it said so; not known of what was learnt before that was noted, which then is nobody on
    /// this node: a wrong guess costs reports until the next connect, the other one would open loopback.
    pub learnt_from: Option<Caller>,
}

impl Identity {
    /// Its file in the state folder.
    pub const FILE: &str = "controller.json";
}
