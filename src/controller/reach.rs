//! Whom the agent may call for somebody: the setting, and what is known of the controller.

use std::sync::Arc;

use super::identity::Identities;
use crate::model::caller::Caller;
use crate::model::outgoing::{Outgoing, Reach};

/// Tells it; clones know the same.
#[derive(Debug, Clone)]
pub struct Reaches {
    policy: Outgoing,
    identities: Arc<Identities>,
}

impl Reaches {
    /// By this setting.
    pub fn new(policy: Outgoing, identities: Arc<Identities>) -> Reaches {
        Reaches { policy, identities }
    }

    /// What a caller's word may lead to now; `None` is one of whom it was not noted where it calls from.
    pub fn of(&self, caller: Option<Caller>) -> Reach {
        self.policy.reach(caller, self.identities.learnt_from())
    }

    /// What the word of a controller that connects may lead to, once it is the one that connected last.
    pub fn of_connecting(&self, caller: Caller) -> Reach {
        self.policy.reach(Some(caller), Some(caller))
    }

    /// What the word of the controller that connected last may lead to.
    pub fn of_controller(&self) -> Reach {
        let controller = self.identities.learnt_from();
        self.policy.reach(controller, controller)
    }
}
