//! Delays between attempts: exponential, bounded, with jitter. Pure.

use std::time::Duration;

/// Number of doublings after which the delay grows no more, even below `most`. 2³¹ ms are 24 days.
const DOUBLINGS: u32 = 31;

/// Exponential backoff: `first`, doubled with each failure, up to `most`, less some jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Delay after the first failure.
    pub first: Duration,
    /// Longest delay.
    pub most: Duration,
    /// Largest random reduction of a delay, in percent.
    pub jitter_percent: u32,
}

impl Backoff {
    /// Backoff without jitter.
    pub const fn steady(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most, jitter_percent: 0 }
    }

    /// Delay after `failures` failures in a row, counted from 1. The same `seed` gives the same delay.
    pub fn delay(self, failures: u32, seed: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(DOUBLINGS);
        let whole = self.first.saturating_mul(1 << doublings).min(self.most);
        less_jitter(whole, self.jitter_percent, scatter(seed, failures))
    }
}

/// Reduces `whole` by up to `percent` percent of it; `random` decides by how much.
pub fn less_jitter(whole: Duration, percent: u32, random: u64) -> Duration {
    let widest = whole / 100 * percent.min(100);
    // One of 1025 even steps from no jitter to all of it.
    let steps = (random % 1025) as u32;
    whole.saturating_sub(widest / 1024 * steps)
}

/// Deterministic pseudo-random number: the step of SplitMix64 (Steele, Lea, Flood 2014).
fn scatter(seed: u64, n: u32) -> u64 {
    let z = seed.wrapping_add(u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff::steady(SECOND, 30 * SECOND);
        let delays = [1, 2, 3, 4, 5, 6, 7, u32::MAX].map(|n| backoff.delay(n, 7).as_secs());
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(backoff.delay(0, 7), SECOND);
        let odd = Backoff::steady(Duration::MAX, Duration::MAX);
        assert_eq!(odd.delay(9, 7), Duration::MAX);
    }

    #[test]
    fn jitter_takes_off_at_most_its_part_and_all_of_that_range() {
        let backoff = Backoff { jitter_percent: 20, ..Backoff::steady(SECOND, 30 * SECOND) };
        let delays = (0..1000).map(|seed| backoff.delay(1, seed));
        let (least, most) = delays.fold((SECOND, Duration::ZERO), |(least, most), delay| {
            (least.min(delay), most.max(delay))
        });
        assert!(least >= SECOND * 8 / 10 && least < SECOND * 81 / 100, "{least:?}");
        assert!(most <= SECOND && most > SECOND * 99 / 100, "{most:?}");
        assert_eq!(backoff.delay(3, 5), backoff.delay(3, 5));
        assert_eq!(less_jitter(SECOND, 400, 1024), less_jitter(SECOND, 100, 1024));
    }
}
