//! Whose place a call takes, and of which kind it is: each kind has bounds of its own, and nobody has more
//! than its quota of one.

use crate::model::caller::Caller;
use crate::model::quota::Client;

/// Where a call comes from, as far as the bounds look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// Whether it can change the node; a flood of those that only look takes no place of these.
    pub(super) changes: bool,
    /// Whose it is.
    pub(super) client: Client,
}

impl Origin {
    /// The origin of a call.
    pub(super) fn new(changes: bool, caller: Option<Caller>) -> Origin {
        Origin { changes, client: caller.into() }
    }

    /// Its kind, as a refusal has it.
    pub(super) fn kind(self) -> &'static str {
        if self.changes { "calls that change the node" } else { "calls that only look" }
    }
}
