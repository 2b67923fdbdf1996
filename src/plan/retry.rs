//! When a target that is down is brought up again: at once, then later and later. Pure.
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
//! A first exit is healed at once, for the guests' I/O hangs meanwhile. A target that exits again before it
//! has served for [`HealPolicy::clear_after`] is another matter: a guest that reconnects to one which dies
//! in its first moments never comes back (field note 21), and each exit can leak pages (field note 10). So the
//! attempts come ever more rarely, and the target is on probation before anything is made in it
//! ([`Backoff::needs_probation`]).
//!
//! There is no clock in here: who calls says what time it is. A time that stands still or goes back counts as
//! no time passed. Whoever calls notes each exit and each failed attempt once; there is no other counting.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::policy::HealPolicy;

/// Failures in a row from which on a target is in a crash loop.
pub const CRASH_LOOP: u32 = 3;

/// Doublings after which the delay grows no more, whatever `most` says: 2³¹ of a millisecond are 24 days.
const DOUBLINGS: u32 = 31;

/// Standing of a target between its exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing was told of it yet.
    Unknown,
    /// It serves since then.
    Serving(Instant),
    /// It is down, and the next attempt is due then.
    Down(Instant),
}

/// Failures of a target since everything was forgotten last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Failures {
    /// Exits and failed attempts.
    pub failures: u32,
    /// Those of them that were followed by a wait: all but an exit out of good standing.
    pub waits: u32,
}

/// Memory of a target's exits, and the time of its next start.
#[derive(Debug, Clone, PartialEq)]
pub struct Backoff {
    policy: HealPolicy,
    seed: u64,
    standing: Standing,
    /// Exits and failed attempts since everything was forgotten last.
    failures: u32,
    /// Those of them that were followed by a wait: all but an exit out of good standing.
    waits: u32,
}

impl Backoff {
    /// Of a target of which nothing is known yet. The seed decides the jitter: the same one, the same waits.
    pub fn new(policy: HealPolicy, seed: u64) -> Backoff {
        Backoff { policy, seed, standing: Standing::Unknown, failures: 0, waits: 0 }
    }

    /// The same, of a target that is known to have failed before. Whether it served since then is not: that
    /// it has to, for as long as is needed to be forgotten, from when it is seen to.
    pub fn recall(self, Failures { failures, waits }: Failures) -> Backoff {
        Backoff { failures, waits, ..self }
    }

    /// The same, of which nothing is known any more.
    pub fn forgotten(&self) -> Backoff {
        Backoff::new(self.policy, self.seed)
    }

    /// Failures to be recalled.
    pub fn remembers(&self) -> Failures {
        Failures { failures: self.failures, waits: self.waits }
    }

    /// Time at which everything is forgotten if it goes on serving; none where there is nothing to forget.
    pub fn clears(&self) -> Option<Instant> {
        match self.standing {
            Standing::Serving(since) if self.failures > 0 => {
                since.checked_add(self.policy.clear_after)
            }
            _ => None,
        }
    }

    /// Notes an exit of the target: its process ended, its container is gone, it was found frozen.
    ///
    /// The first exit makes an attempt due at once; one before `clear_after` of service since the last
    /// failure makes it due after the next longer wait.
    pub fn exited(&mut self, at: Instant) {
        self.passes(at);
        self.down(at, self.failures > 0);
    }

    /// Notes a failed attempt to bring it back. It is never tried again at once, not even
    /// where no exit came before it.
    pub fn failed(&mut self, at: Instant) {
        self.passes(at);
        self.down(at, true);
    }

    /// Notes that it serves since then. To be called as often as it is seen serving; the first time counts.
    pub fn serves(&mut self, at: Instant) {
        match self.standing {
            Standing::Serving(_) => self.passes(at),
            Standing::Unknown | Standing::Down(_) => self.standing = Standing::Serving(at),
        }
    }

    /// Time passes: after `clear_after` of uninterrupted service all exits are forgotten.
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

    /// Exits and failed attempts since they were forgotten last.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the next start is on probation before any controller is created in it: it failed
    /// more than once without `clear_after` of service between.
    pub fn needs_probation(&self) -> bool {
        self.failures > 1
    }

    /// Whether it exits again and again.
    pub fn is_crash_loop(&self) -> bool {
        self.failures >= CRASH_LOOP
    }

    /// Counts one more failure, and makes the next attempt due.
    fn down(&mut self, at: Instant, waits: bool) {
        self.failures = self.failures.saturating_add(1);
        self.waits = self.waits.saturating_add(u32::from(waits));
        let wait = if waits { self.wait() } else { Duration::ZERO };
        // No clock goes as far as to make this fail but with a `most` of ages: then at once is better than never.
        self.standing = Standing::Down(at.checked_add(wait).unwrap_or(at));
    }

    /// The wait that follows the failures so far.
    fn wait(&self) -> Duration {
        let doublings = self.waits.saturating_sub(1).min(DOUBLINGS);
        let whole = self.policy.first.saturating_mul(1 << doublings).min(self.policy.most);
        let widest = whole / 100 * self.policy.jitter_percent.min(100);
        // One of 1025 even steps from none of it to all of it.
        let steps = (scatter(self.seed, self.waits) % 1025) as u32;
        whole.saturating_sub(widest / 1024 * steps)
    }
}

/// A number that looks like chance and is none: the step of SplitMix64 (Steele, Lea, Flood 2014).
fn scatter(seed: u64, n: u32) -> u64 {
    let z = seed.wrapping_add(u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
