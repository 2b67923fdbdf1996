//! Events of a node, as they are published to those who follow them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fault::Finding;
use super::prepare::Progress;
use super::target::TargetHealth;

/// Position of an event: the agent's run, and the number in that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    /// Start of the agent's run, in milliseconds since 1970.
    pub run: u64,
    /// Number in that run, from 1.
    pub number: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.run, self.number)
    }
}

impl FromStr for EventId {
    type Err = String;

    fn from_str(text: &str) -> Result<EventId, String> {
        let parts = text.split_once('-');
        let parsed =
            parts.and_then(|(run, number)| Some((run.parse().ok()?, number.parse().ok()?)));
        let (run, number) = parsed.ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            format!("'{shown}' is no event's id, which looks like 1700000000000-42")
        })?;
        Ok(EventId { run, number })
    }
}

/// Event with its position and time.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: EventId,
    /// Time, in RFC 3339.
    pub at: String,
    pub what: What,
}

/// Content of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum What {
    /// Change of a target's status.
    Target(TargetHealth),
    /// Progress of an owner's long-running work.
    Work(Progress),
    /// Work that exceeds its time limit, or that did and has ended.
    Overdue(OverdueEvent),
    /// New finding of the node.
    Finding(Finding),
}

/// Work that exceeds its time limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverdueEvent {
    /// Owner of the work: `engine`, `outbox`, `pools` or `target`.
    pub owner: String,
    /// Object of the work, such as a target's name.
    pub subject: String,
    /// Time limit of the work, in milliseconds.
    pub limit_ms: u64,
    /// Time that the work has taken so far, in milliseconds.
    pub took_ms: u64,
    /// Set if the work has ended, or was given up.
    pub ended: bool,
}

impl What {
    pub fn name(&self) -> &'static str {
        match self {
            What::Target(_) => "target",
            What::Work(_) => "work",
            What::Overdue(_) => "overdue",
            What::Finding(_) => "finding",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_nothing_else_is_one() {
        let id = EventId { run: 1_700_000_000_000, number: 42 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "-", "1", "1-", "-1", "a-b", "1-2-3", "99999999999999999999999-1"] {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
    }
}
