//! Egress policy for a caller's addresses: the setting, and the controller that connected last.

use std::sync::Arc;

use super::identity::Identities;
use crate::model::caller::Caller;
use crate::model::egress_policy::{EgressPolicy, Reach};

/// Egress policies by caller; clones share the identity.
#[derive(Debug, Clone)]
pub struct Reaches {
    policy: EgressPolicy,
    identities: Arc<Identities>,
}

impl Reaches {
    pub fn new(policy: EgressPolicy, identities: Arc<Identities>) -> Reaches {
        Reaches { policy, identities }
    }

    /// Current policy for addresses that this caller supplied; `None` is a caller that was not recorded.
    pub fn of(&self, caller: Option<Caller>) -> Reach {
        self.policy.reach(caller, self.identities.learnt_from())
    }

    /// Policy for the address that a connecting controller supplies, as if `caller` were already the one that connected
    /// last.
    pub fn of_connecting(&self, caller: Caller) -> Reach {
        self.policy.reach(Some(caller), Some(caller))
    }

    /// Policy for the address of the controller that connected last.
    pub fn of_controller(&self) -> Reach {
        let controller = self.identities.learnt_from();
        self.policy.reach(controller, controller)
    }
}
