//! Restarts of a target that is down: at once, then with growing delays. Pure.
//!
//! ```text
//!               exit: due at once
//!  serving ─────────────────────────▶ down ◀─┐ failed, or exit again: due after
//!     ▲                               │  ▲ └─┘ first, 2·first, 4·first … most, less some jitter
//!     │                       serves: │  │
//!     │                nothing is due │  │ exit before clear_after: the count goes on
//!     │                               ▼  │
//!     └───────────────────────── serving, on trial
//!       clear_after of service:
//!       all is forgotten
//! ```
//!
//! A first exit is healed at once, because the guests' I/O hangs meanwhile. A target that exits again before it has
//! served for [`HealPolicy::clear_after`] is another matter: a guest that reconnects to one which dies in its first
//! moments never comes back (field note 21), and each exit can leak pages (field note 10). So the attempts come ever
//! more rarely, and the target is on probation before anything is made in it ([`Retry::needs_probation`]).
//!
//! There is no clock in here: the caller passes the time. A time that stands still or goes back counts as no time
//! passed. The caller notes each exit and each failed attempt once; nothing else counts them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::backoff::Backoff;
use crate::model::policy::HealPolicy;

/// Number of failures in a row that makes a crash loop.
pub const CRASH_LOOP: u32 = 3;

/// State of a target as far as its backoff knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing was noted yet.
    Unknown,
    /// Serving since this time.
    Serving(Instant),
    /// Down, with the next attempt due at this time.
    Down(Instant),
}

/// Failures of a target since they were last cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Failures {
    /// Exits and failed attempts.
    pub failures: u32,
    /// Failures after which the next attempt had to wait: all but the first one, if that was an exit.
    pub waits: u32,
}

/// Backoff of a target: its failures, and the time of its next start.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    policy: HealPolicy,
    seed: u64,
    standing: Standing,
    /// Exits and failed attempts since they were last cleared.
    failures: u32,
    /// Failures after which the next attempt had to wait: all but the first one, if that was an exit.
    waits: u32,
}

impl Retry {
    /// Backoff of a target of which nothing is known yet. `seed` decides the jitter: the same seed gives the same
    /// waits.
    pub fn new(policy: HealPolicy, seed: u64) -> Retry {
        Retry { policy, seed, standing: Standing::Unknown, failures: 0, waits: 0 }
    }

    /// Restores the failures noted by a previous agent. It is unknown whether the target has served meanwhile, so the
    /// failures are cleared only after `clear_after` of service from the first observation of it.
    pub fn recall(self, Failures { failures, waits }: Failures) -> Retry {
        Retry { failures, waits, ..self }
    }

    /// Backoff with the same policy and seed, and no failures.
    pub fn forgotten(&self) -> Retry {
        Retry::new(self.policy, self.seed)
    }

    /// Failures for [`Retry::recall`].
    pub fn remembers(&self) -> Failures {
        Failures { failures: self.failures, waits: self.waits }
    }

    /// Time at which all failures are cleared if the target goes on serving; `None` without failures or while it does
    /// not serve.
    pub fn clears(&self) -> Option<Instant> {
        match self.standing {
            Standing::Serving(since) if self.failures > 0 => {
                since.checked_add(self.policy.clear_after)
            }
            _ => None,
        }
    }

    /// Notes an exit of the target: its process ended, its container is gone, it was found unresponsive.
    ///
    /// The first exit makes an attempt due at once; one before `clear_after` of service since the last
    /// failure makes it due after the next longer wait.
    pub fn exited(&mut self, at: Instant) {
        self.passes(at);
        self.down(at, self.failures > 0);
    }

    /// Notes a failed attempt to bring the target back. The next attempt is never due at once, even without an exit
    /// before.
    pub fn failed(&mut self, at: Instant) {
        self.passes(at);
        self.down(at, true);
    }

    /// Notes that the target is observed to serve at the time `at`. Service counts from the first of consecutive calls.
    pub fn serves(&mut self, at: Instant) {
        match self.standing {
            Standing::Serving(_) => self.passes(at),
            Standing::Unknown | Standing::Down(_) => self.standing = Standing::Serving(at),
        }
    }

    /// Advances the time: `clear_after` of uninterrupted service clears all failures.
    pub fn passes(&mut self, now: Instant) {
        let Standing::Serving(since) = self.standing else { return };
        if now.saturating_duration_since(since) >= self.policy.clear_after {
            (self.failures, self.waits) = (0, 0);
        }
    }

    /// Time of the next attempt; none while it serves, and none before anything was noted.
    pub fn due(&self) -> Option<Instant> {
        match self.standing {
            Standing::Down(due) => Some(due),
            Standing::Serving(_) | Standing::Unknown => None,
        }
    }

    /// Exits and failed attempts since they were last cleared.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// `true` if the target has failed more than once without `clear_after` of service between. Its next start is then
    /// on probation before any controller is created in it.
    pub fn needs_probation(&self) -> bool {
        self.failures > 1
    }

    /// `true` from [`CRASH_LOOP`] failures on.
    pub fn is_crash_loop(&self) -> bool {
        self.failures >= CRASH_LOOP
    }

    /// Counts one more failure, and makes the next attempt due.
    fn down(&mut self, at: Instant, waits: bool) {
        self.failures = self.failures.saturating_add(1);
        self.waits = self.waits.saturating_add(u32::from(waits));
        let wait = if waits { self.wait() } else { Duration::ZERO };
        // Overflows only if `most` is ages; an attempt at once is then better than none.
        self.standing = Standing::Down(at.checked_add(wait).unwrap_or(at));
    }

    /// Wait after the failures so far, less some jitter.
    fn wait(&self) -> Duration {
        let HealPolicy { first, most, jitter_percent, .. } = self.policy;
        Backoff { first, most, jitter_percent }.delay(self.waits, self.seed)
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
