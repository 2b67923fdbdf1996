//! The backoff against random histories of a target, and against the few that matter most.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn plain() -> HealPolicy {
    HealPolicy { jitter_percent: 0, ..HealPolicy::default() }
}

/// How long after `at` the next attempt is due.
fn wait(backoff: &Retry, at: Instant) -> Duration {
    backoff.due().unwrap().duration_since(at)
}

#[test]
fn a_first_exit_is_recovered_at_once_without_probation() {
    let at = Instant::now();
    let mut backoff = Retry::new(HealPolicy::default(), 7);
    assert_eq!(backoff.due(), None, "nothing is known yet");
    backoff.serves(at);
    backoff.exited(at + SECOND);
    assert_eq!(backoff.due(), Some(at + SECOND));
    assert!(!backoff.needs_probation() && !backoff.is_crash_loop());
}

#[test]
fn the_waits_double_up_to_the_most_that_the_policy_allows() {
    let at = Instant::now();
    let mut backoff = Retry::new(plain(), 7);
    backoff.exited(at);
    let mut seconds = Vec::new();
    for _ in 0..9 {
        backoff.failed(at);
        seconds.push(wait(&backoff, at).as_secs());
    }
    assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    assert_eq!(backoff.failures(), 10);
}

#[test]
fn a_failed_attempt_without_an_exit_before_is_not_repeated_at_once() {
    let at = Instant::now();
    let mut backoff = Retry::new(plain(), 7);
    backoff.failed(at);
    assert_eq!((wait(&backoff, at), backoff.failures()), (SECOND, 1));
    assert!(!backoff.needs_probation());
}

#[test]
fn an_exit_within_a_minute_of_service_requires_probation() {
    let at = Instant::now();
    let mut backoff = Retry::new(plain(), 7);
    backoff.exited(at);
    backoff.serves(at + SECOND);
    let again = at + 60 * SECOND;
    backoff.exited(again);
    assert_eq!((wait(&backoff, again), backoff.failures()), (SECOND, 2));
    assert!(backoff.needs_probation() && !backoff.is_crash_loop());
    backoff.serves(again + SECOND);
    assert!(backoff.needs_probation(), "serving for a moment proves nothing");
    backoff.exited(again + 2 * SECOND);
    assert_eq!(wait(&backoff, again + 2 * SECOND), 2 * SECOND);
    assert!(backoff.is_crash_loop());
}

#[test]
fn an_exit_after_a_full_minute_of_service_is_a_first_one() {
    let at = Instant::now();
    for looked in [false, true] {
        let mut backoff = Retry::new(plain(), 7);
        (0..5).for_each(|_| backoff.exited(at));
        backoff.serves(at);
        if looked {
            (0..=60).for_each(|n| backoff.passes(at + n * SECOND));
            assert_eq!(backoff.failures(), 0);
        }
        backoff.exited(at + 60 * SECOND);
        assert_eq!(backoff.due(), Some(at + 60 * SECOND));
        assert_eq!(backoff.failures(), 1);
    }
}

#[test]
fn what_is_recalled_counts_on_until_a_minute_of_service_was_seen() {
    let at = Instant::now();
    let mut before = Retry::new(plain(), 7);
    before.exited(at);
    let recalled = || Retry::new(plain(), 7).recall(before.remembers());
    assert_eq!((recalled().due(), recalled().clears()), (None, None), "nothing is known of it yet");
    let mut found_down = recalled();
    found_down.exited(at);
    assert_eq!((wait(&found_down, at), found_down.needs_probation()), (SECOND, true));
    let mut found_serving = recalled();
    found_serving.serves(at);
    assert_eq!(found_serving.clears(), Some(at + 60 * SECOND));
    found_serving.serves(at + 60 * SECOND);
    assert_eq!((found_serving.clears(), found_serving.remembers()), (None, Failures::default()));
    found_serving.exited(at + 61 * SECOND);
    assert_eq!(wait(&found_serving, at + 61 * SECOND), Duration::ZERO);
}

#[test]
fn the_count_stops_at_the_most_that_it_can_hold_and_the_wait_stays() {
    let at = Instant::now();
    let mut backoff = Retry::new(plain(), 7);
    (backoff.failures, backoff.waits) = (u32::MAX - 1, u32::MAX - 1);
    for _ in 0..3 {
        backoff.failed(at);
        assert_eq!((wait(&backoff, at), backoff.failures()), (64 * SECOND, u32::MAX));
    }
}

#[test]
fn odd_policies_are_borne() {
    let at = Instant::now();
    let ages = HealPolicy {
        first: Duration::MAX,
        most: Duration::MAX,
        jitter_percent: u32::MAX,
        ..plain()
    };
    let nothing = HealPolicy { first: Duration::ZERO, most: Duration::ZERO, ..plain() };
    for policy in [ages, nothing] {
        for seed in 0..100 {
            let mut backoff = Retry::new(policy, seed);
            backoff.failed(at);
            assert!(backoff.due().unwrap() >= at);
        }
    }
}

#[test]
fn different_seeds_spread_the_attempts() {
    let at = Instant::now();
    let waits: std::collections::BTreeSet<Duration> = (0..100)
        .map(|seed| {
            let mut backoff = Retry::new(HealPolicy::default(), seed);
            (0..8).for_each(|_| backoff.failed(at));
            wait(&backoff, at)
        })
        .collect();
    assert!(waits.len() > 80, "{} different waits of 100", waits.len());
    let spread = *waits.last().unwrap() - *waits.first().unwrap();
    assert!(spread > 10 * SECOND, "of the 12.8 s that they may differ, they use {spread:?}");
}

/// Events of a target, each with the milliseconds since the event before; some go back.
#[derive(Debug, Clone, Copy)]
enum Event {
    Fell,
    Failed,
    Serves,
    Passes,
}

fn histories() -> impl Strategy<Value = Vec<(Event, i64)>> {
    let event = prop_oneof![
        Just(Event::Fell),
        Just(Event::Failed),
        Just(Event::Serves),
        Just(Event::Passes),
    ];
    let step = prop_oneof![
        4 => 0i64..5_000,
        3 => 55_000i64..65_000,
        1 => -70_000i64..0,
        1 => Just(0i64),
        1 => Just(60_000i64),
    ];
    prop::collection::vec((event, step), 1..80)
}

fn policies() -> impl Strategy<Value = HealPolicy> {
    (1u64..5_000, 0u32..8, 0u32..=50).prop_map(|(first, doublings, jitter_percent)| HealPolicy {
        first: Duration::from_millis(first),
        most: Duration::from_millis(first << doublings),
        clear_after: 60 * SECOND,
        jitter_percent,
        ..HealPolicy::default()
    })
}

/// The times of a history, in milliseconds from its begin.
fn times(history: &[(Event, i64)]) -> Vec<(Event, Instant)> {
    let start = Instant::now();
    let mut now = 0i64;
    let mut times = Vec::new();
    for (event, step) in history {
        now = (now + step).max(0);
        times.push((*event, start + Duration::from_millis(now.unsigned_abs())));
    }
    times
}

fn apply(backoff: &mut Retry, event: Event, at: Instant) {
    match event {
        Event::Fell => backoff.exited(at),
        Event::Failed => backoff.failed(at),
        Event::Serves => backoff.serves(at),
        Event::Passes => backoff.passes(at),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_attempt_is_due_exactly_while_the_target_is_down_and_never_before_it_failed(
        history in histories(), policy in policies(), seed: u64,
    ) {
        let mut backoff = Retry::new(policy, seed);
        let mut down = false;
        for (event, at) in times(&history) {
            apply(&mut backoff, event, at);
            match event {
                Event::Fell | Event::Failed => {
                    down = true;
                    let due = backoff.due().expect("it is down");
                    prop_assert!(due >= at);
                    prop_assert!(due <= at + policy.most);
                }
                Event::Serves => down = false,
                Event::Passes => {}
            }
            prop_assert_eq!(backoff.due().is_some(), down);
        }
    }

    #[test]
    fn the_wait_doubles_with_each_failure_less_its_jitter_and_never_shrinks_before_the_cap(
        history in histories(), policy in policies(), seed: u64,
    ) {
        let mut backoff = Retry::new(policy, seed);
        let mut waits = 0u32;
        let mut before = Duration::ZERO;
        for (event, at) in times(&history) {
            apply(&mut backoff, event, at);
            let out_of_good_standing = matches!(event, Event::Fell) && backoff.failures() == 1;
            match event {
                _ if backoff.failures() == 0 => (waits, before) = (0, Duration::ZERO),
                Event::Fell if out_of_good_standing => {
                    prop_assert_eq!(wait(&backoff, at), Duration::ZERO);
                    (waits, before) = (0, Duration::ZERO);
                }
                Event::Fell | Event::Failed => {
                    // A first failure: what was before is forgotten.
                    if backoff.failures() == 1 {
                        (waits, before) = (0, Duration::ZERO);
                    }
                    let whole = (policy.first * 2u32.pow(waits.min(20))).min(policy.most);
                    let least = whole * (100 - policy.jitter_percent) / 100;
                    let this = wait(&backoff, at);
                    prop_assert!(this <= whole, "{:?} of {:?}", this, whole);
                    prop_assert!(this >= least - Duration::from_micros(1), "{:?} of {:?}", this, whole);
                    if whole < policy.most {
                        prop_assert!(this >= before, "{:?} after {:?}", this, before);
                    }
                    (waits, before) = (waits + 1, this);
                }
                Event::Serves | Event::Passes => {}
            }
        }
    }

    #[test]
    fn failures_are_forgotten_after_a_full_minute_of_service_and_only_then(
        history in histories(), policy in policies(), seed: u64,
    ) {
        let mut backoff = Retry::new(policy, seed);
        // An independent record: since when it serves, and what it counted.
        let (mut since, mut counted) = (None::<Instant>, 0u32);
        for (event, at) in times(&history) {
            apply(&mut backoff, event, at);
            if since.is_some_and(|since| at >= since + 60 * SECOND) {
                counted = 0;
            }
            match event {
                Event::Fell | Event::Failed => (since, counted) = (None, counted + 1),
                Event::Serves => since = since.or(Some(at)),
                Event::Passes => {}
            }
            prop_assert_eq!(backoff.failures(), counted);
            prop_assert_eq!(backoff.needs_probation(), counted >= 2);
            prop_assert_eq!(backoff.is_crash_loop(), counted >= 3);
        }
    }

    #[test]
    fn the_same_seed_waits_the_same(history in histories(), policy in policies(), seed: u64) {
        let (mut one, mut other) = (Retry::new(policy, seed), Retry::new(policy, seed));
        for (event, at) in times(&history) {
            apply(&mut one, event, at);
            apply(&mut other, event, at);
            prop_assert_eq!(&one, &other);
        }
    }

    #[test]
    fn to_be_seen_serving_again_and_again_changes_nothing(
        history in histories(), policy in policies(), seed: u64,
    ) {
        let (mut once, mut often) = (Retry::new(policy, seed), Retry::new(policy, seed));
        for (event, at) in times(&history) {
            apply(&mut once, event, at);
            apply(&mut often, event, at);
            if matches!(event, Event::Serves) {
                (0..3).for_each(|_| often.serves(at));
            }
            prop_assert_eq!(&once, &often);
        }
    }
}
