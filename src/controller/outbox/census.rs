//! Counters and gauges of the outbox: its load now, and outcomes of calls and results since the agent started.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::code::Code;

/// Name in the counters for a call without a name in the log.
pub(super) const UNNAMED: &str = "other";

/// Event counters since the agent started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Admitted calls, by name.
    pub taken_in: BTreeMap<&'static str, u64>,
    /// Calls ignored because their task was known.
    pub repeated: u64,
    /// Refused calls, by code.
    pub refused: BTreeMap<Code, u64>,
    /// Attempts whose result was accepted.
    pub taken: u64,
    /// Attempts whose result was not awaited any more.
    pub not_waited_for: u64,
    pub failed: u64,
    /// Expired results.
    pub given_up: u64,
}

impl Counts {
    /// Increments the counter under that key.
    pub(super) fn one_more<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
        *counts.entry(key).or_default() += 1;
    }
}

/// Load of the outbox at one time, with its counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Running tasks, by the names of their calls.
    pub at_work: BTreeMap<&'static str, u64>,
    /// Number of tasks whose work goes on after a result was sent because the time limit of their caller passed.
    pub going_on: usize,
    /// Pending results.
    pub waiting: usize,
    /// Age of the oldest pending result, over restarts.
    pub oldest: Option<Duration>,
    pub counts: Counts,
}
