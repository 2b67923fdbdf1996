//! Delays before a result is offered again: short ones while the controller may be restarting, longer ones later.

use std::time::Duration;

use crate::model::backoff::{Backoff, less_jitter};
use crate::model::policy::CallbackPolicy;

/// Time for which a result that was not accepted is retried at short intervals, of at most `EAGER_PAUSE`.
const EAGER: Duration = Duration::from_secs(600);
/// Maximum delay between two attempts during `EAGER`: a result soon reaches a controller that was restarted.
const EAGER_PAUSE: Duration = Duration::from_secs(5);
/// Divisor of the time beyond `EAGER`: a tenth of that time passes until the next attempt.
const LATER: u32 = 10;
/// Largest part of a delay that is taken off at random.
const JITTER_PERCENT: u32 = 20;

/// Delay before the next attempt at a result that was offered `attempts` times in the time `offered`. `random` decides
/// its jitter, so that results that failed together are not retried together.
pub(super) fn retry_delay(
    attempts: u32,
    offered: Duration,
    callbacks: &CallbackPolicy,
    random: u64,
) -> Duration {
    let eager = Backoff::steady(callbacks.first_delay, EAGER_PAUSE).delay(attempts, 0);
    let whole = eager.max(offered.saturating_sub(EAGER) / LATER).min(callbacks.max_delay);
    less_jitter(whole, JITTER_PERCENT, random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_short_for_ten_minutes_and_grow_after_them() {
        let callbacks = CallbackPolicy::default();
        let delay = |attempts, age| {
            retry_delay(attempts, Duration::from_secs(age), &callbacks, 0).as_secs()
        };
        let delays = [delay(1, 0), delay(3, 9), delay(9, 99), delay(99, 599), delay(99, 700)];
        assert_eq!(delays, [1, 4, 5, 5, 10]);
        assert_eq!((delay(99, 1100), delay(99, 3000)), (50, 60));
    }
}
