//! Client and kind of a call. Each kind has limits of its own, and no client gets more than its quota of a limit.

use crate::model::caller::Caller;
use crate::model::quota::QuotaClient;

/// Properties of a call on which the admission limits depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// `true` if the call can change the node. Read-only calls have limits of their own, so that a flood of them takes
    /// no place from these.
    pub(super) changes: bool,
    pub(super) client: QuotaClient,
}

impl Origin {
    pub(super) fn new(changes: bool, caller: Option<Caller>) -> Origin {
        Origin { changes, client: caller.into() }
    }

    /// Name of the kind, for a refusal's text.
    pub(super) fn kind(self) -> &'static str {
        if self.changes { "calls that change the node" } else { "calls that only look" }
    }
}
