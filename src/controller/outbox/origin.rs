//! Client and kind of a call: each kind has limits of its own, and no client has more than its quota of one.

use crate::model::caller::Caller;
use crate::model::quota::QuotaClient;

/// Origin of a call, as far as the limits regard it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// `true` if the call can change the node; a flood of read-only calls takes no place of these.
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
