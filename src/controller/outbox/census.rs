//! What of the outbox can be counted: how it stands, and what has come of calls and results since the
//! agent runs.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::code::Code;

/// A call that has no name in the log.
pub(super) const UNNAMED: &str = "other";

/// What has happened since the agent runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that were taken in, by their names.
    pub taken_in: BTreeMap<&'static str, u64>,
    /// Calls that were ignored, for their task was known.
    pub repeated: u64,
    /// Calls that were refused, by the code that they were told.
    pub refused: BTreeMap<Code, u64>,
    /// Attempts at results that were taken.
    pub taken: u64,
    /// Attempts at results that nobody waited for any more.
    pub not_waited_for: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Results that became too old.
    pub given_up: u64,
}

impl Counts {
    /// Counts one more under that key.
    pub(super) fn one_more<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
        *counts.entry(key).or_default() += 1;
    }
}

/// How the outbox stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Tasks at work, by the names of their calls.
    pub at_work: BTreeMap<&'static str, u64>,
    /// Work that goes on after its result was given early.
    pub going_on: usize,
    /// Results that wait.
    pub waiting: usize,
    /// How long the oldest of them has waited, restarts and all.
    pub oldest: Option<Duration>,
    /// What has happened.
    pub counts: Counts,
}
