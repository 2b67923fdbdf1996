//! Settings of the agent's outgoing requests.

use serde::{Deserialize, Serialize};

/// Egress settings for addresses that callers supply.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressSettings {
    /// Allowed destinations of callbacks, reports and progress: `any`, `callers`, or a list of networks.
    pub to: crate::model::egress_policy::EgressPolicy,
}
