//! Due time of the next status report. Pure: times come in, a time comes out.
//!
//! ```text
//!            accepted                       a new state: at once; else the heartbeat
//! untried ─┬───────▶ heard ──────────────▶
//!          │ failed
//!          ├───────▶ failing ────────────▶ a new state: after a short pause; else with backoff
//!          │ 404
//!          └───────▶ unknown to it ──────▶ rarely, new states or not
//! ```

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::backoff::{Backoff, less_jitter};
use crate::model::policy::ReportPolicy;

/// Pause between a failed attempt and one with a newer state.
const BREATH: Duration = Duration::from_millis(100);

/// Outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReportOutcome {
    /// Accepted by the controller.
    Taken,
    /// Command path unknown to the controller.
    Unknown,
    /// Failed, with the reason.
    Failed(String),
}

/// Outcome of the last attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Went {
    /// No attempt yet.
    Untried,
    /// Last attempt accepted.
    Heard,
    /// Number of attempts in a row that have failed.
    Failing(u32),
    /// Command path unknown to the controller.
    Unknown,
}

/// Schedule of the reports to one address.
#[derive(Debug)]
pub(super) struct ReportSchedule {
    policy: ReportPolicy,
    went: Went,
    /// Generation that was sent last.
    sent: u64,
    /// Time at which the last attempt ended.
    ended: Instant,
    /// Due time of the next attempt without a new state.
    next: Instant,
    jitter: RandomState,
    drawn: u64,
}

impl ReportSchedule {
    /// Schedule with an attempt due now.
    pub(super) fn new(policy: ReportPolicy, now: Instant) -> ReportSchedule {
        let jitter = RandomState::new();
        ReportSchedule {
            policy,
            went: Went::Untried,
            sent: 0,
            ended: now,
            next: now,
            jitter,
            drawn: 0,
        }
    }

    /// Restarts the schedule after a controller's connect: the controller may accept now, or have lost an earlier
    /// report.
    pub(super) fn begins_anew(&mut self, now: Instant) {
        self.next = match self.went {
            Went::Failing(_) => now.max(self.ended + BREATH),
            Went::Untried | Went::Heard | Went::Unknown => now,
        };
    }

    /// Due time for a report of that generation.
    pub(super) fn due(&self, generation: u64) -> Instant {
        let at_once = match self.went {
            Went::Heard => self.ended,
            Went::Failing(_) => self.ended + BREATH,
            Went::Untried | Went::Unknown => self.next,
        };
        match generation == self.sent {
            true => self.next,
            false => self.next.min(at_once),
        }
    }

    /// Schedules a newer state at once, after a hung attempt was dropped for it.
    pub(super) fn overtaken(&mut self, now: Instant) {
        self.next = now;
    }

    /// Records the outcome of an attempt; returns the outcome of those before it.
    pub(super) fn record_attempt(
        &mut self,
        verdict: &ReportOutcome,
        generation: u64,
        now: Instant,
    ) -> Went {
        let before = self.went;
        let (went, pause) = match verdict {
            ReportOutcome::Taken => {
                // A tenth more or less: nodes that began together do not stay together.
                let longest = self.policy.interval / 10 * 11;
                (Went::Heard, less_jitter(longest, 18, self.random()))
            }
            ReportOutcome::Unknown => (Went::Unknown, self.policy.unknown_delay),
            ReportOutcome::Failed(_) => {
                let times = match before {
                    Went::Failing(times) => times.saturating_add(1),
                    _ => 1,
                };
                let (first, most) = (self.policy.first_delay, self.policy.max_delay);
                let backoff = Backoff { first, most, jitter_percent: 20 };
                (Went::Failing(times), backoff.delay(times, self.random()))
            }
        };
        (self.went, self.sent, self.ended, self.next) = (went, generation, now, now + pause);
        before
    }

    fn random(&mut self) -> u64 {
        self.drawn += 1;
        self.jitter.hash_one(self.drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> ReportOutcome {
        ReportOutcome::Failed("why".to_string())
    }

    fn seconds(due: Instant, now: Instant) -> f64 {
        due.saturating_duration_since(now).as_secs_f64()
    }

    #[test]
    fn a_new_state_is_due_at_once_and_the_same_one_with_the_heartbeat() {
        let now = Instant::now();
        let mut course = ReportSchedule::new(ReportPolicy::default(), now);
        assert_eq!(course.due(7), now);
        assert_eq!(course.record_attempt(&ReportOutcome::Taken, 7, now), Went::Untried);
        assert_eq!(course.due(8), now);
        let mut beats = Vec::new();
        for _ in 0..100 {
            course.record_attempt(&ReportOutcome::Taken, 7, now);
            beats.push(seconds(course.due(7), now));
        }
        assert!(beats.iter().all(|beat| (54.0..=66.0).contains(beat)), "{beats:?}");
        assert!(beats.iter().any(|beat| *beat != beats[0]), "{beats:?}");
    }

    #[test]
    fn pauses_grow_while_it_fails_and_a_new_state_takes_a_breath_only() {
        let now = Instant::now();
        let mut course = ReportSchedule::new(ReportPolicy::default(), now);
        for most in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            course.record_attempt(&failed(), 7, now);
            let pause = seconds(course.due(7), now);
            assert!(pause >= most * 0.8 && pause <= most, "{pause} of {most}");
            assert_eq!(course.due(8), now + BREATH);
        }
        assert_eq!(course.record_attempt(&ReportOutcome::Taken, 8, now), Went::Failing(8));
        course.record_attempt(&failed(), 9, now);
        assert!(seconds(course.due(9), now) <= 1.0, "it begins anew");
    }

    #[test]
    fn who_does_not_know_the_path_is_asked_rarely_until_it_connects_again() {
        let now = Instant::now();
        let mut course = ReportSchedule::new(ReportPolicy::default(), now);
        course.record_attempt(&ReportOutcome::Unknown, 7, now);
        assert_eq!(
            (course.due(7), course.due(8)),
            (
                now + ReportPolicy::default().unknown_delay,
                now + ReportPolicy::default().unknown_delay
            )
        );
        course.begins_anew(now);
        assert_eq!((course.due(7), course.due(8)), (now, now));
    }
}
