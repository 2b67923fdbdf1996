//! The settings of whom the agent calls.

use serde::{Deserialize, Serialize};

/// Whom the agent calls.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outgoing {
    /// Where callbacks, reports and the progress of calls may go: `any`, `callers`, or a list of networks.
    pub to: crate::model::outgoing::Outgoing,
}
