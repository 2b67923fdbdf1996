//! Counters of the status reports since the agent started.

use std::sync::atomic::{AtomicI8, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::schedule::ReportOutcome;

/// Attempt counters, by outcome.
#[derive(Debug)]
pub struct Tally {
    taken: AtomicU64,
    unknown: AtomicU64,
    failed: AtomicU64,
    overtaken: AtomicU64,
    /// 1 if the last attempt was accepted, 0 if not; below zero before the first.
    last: AtomicI8,
    /// Time of the last accepted attempt, in seconds since 1970; zero before the first.
    taken_at: AtomicU64,
}

/// Values of the counters at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReportCounts {
    /// Accepted by the controller.
    pub taken: u64,
    /// Refused for an unknown command path.
    pub unknown: u64,
    pub failed: u64,
    /// Dropped after hanging, for a newer state.
    pub overtaken: u64,
    /// `true` if the last attempt was accepted; `None` before the first.
    pub last_taken: Option<bool>,
    /// Time of the last accepted attempt, in seconds since 1970.
    pub taken_at: Option<u64>,
}

impl Default for Tally {
    fn default() -> Tally {
        let none = || AtomicU64::new(0);
        Tally {
            taken: none(),
            unknown: none(),
            failed: none(),
            overtaken: none(),
            last: AtomicI8::new(-1),
            taken_at: none(),
        }
    }
}

impl Tally {
    /// Reads the counters.
    pub fn read(&self) -> ReportCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let last = self.last.load(Ordering::Relaxed);
        ReportCounts {
            taken: read(&self.taken),
            unknown: read(&self.unknown),
            failed: read(&self.failed),
            overtaken: read(&self.overtaken),
            last_taken: (last >= 0).then_some(last > 0),
            taken_at: Some(read(&self.taken_at)).filter(|at| *at > 0),
        }
    }

    /// Counts an attempt that ended.
    pub(super) fn ended(&self, verdict: &ReportOutcome) {
        let counter = match verdict {
            ReportOutcome::Taken => &self.taken,
            ReportOutcome::Unknown => &self.unknown,
            ReportOutcome::Failed(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let taken = *verdict == ReportOutcome::Taken;
        self.last.store(i8::from(taken), Ordering::Relaxed);
        if taken {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.taken_at.store(now.as_secs(), Ordering::Relaxed);
        }
    }

    /// Counts an attempt that was dropped for a newer state.
    pub(super) fn overtaken(&self) {
        self.overtaken.fetch_add(1, Ordering::Relaxed);
        self.last.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_attempt_is_distinguished_from_earlier_ones() {
        let tally = Tally::default();
        assert_eq!(tally.read(), ReportCounts::default());
        tally.ended(&ReportOutcome::Failed("why".to_string()));
        let failed = ReportCounts { failed: 1, last_taken: Some(false), ..ReportCounts::default() };
        assert_eq!(tally.read(), failed);
        tally.ended(&ReportOutcome::Taken);
        let counts = tally.read();
        assert!(counts.taken_at.is_some_and(|at| at > 1_000_000_000));
        assert_eq!((counts.taken, counts.failed, counts.last_taken), (1, 1, Some(true)));
        tally.overtaken();
        tally.ended(&ReportOutcome::Unknown);
        let after = ReportCounts { overtaken: 1, unknown: 1, last_taken: Some(false), ..counts };
        assert_eq!(tally.read(), after);
    }
}
