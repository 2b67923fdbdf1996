//! The lifecycle against random histories of a target, and against its documented transitions.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// The transitions that the module's documentation lists.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = include_str!("lifecycle.rs");
    let block = text.split("```transitions").nth(1).unwrap().split("```").next().unwrap();
    let transitions = block.lines().filter_map(|line| line.strip_prefix("//! ")?.split_once("->"));
    let parse = |(from, to): (&str, &str)| {
        (from.trim().to_string(), to.split(',').map(|to| to.trim().to_string()).collect())
    };
    transitions.map(parse).collect()
}

#[derive(Debug, Clone)]
struct Turn {
    passes: u64,
    process: Option<(u8, u32)>,
    answers: Option<bool>,
    activity: Activity,
    progress: bool,
    busy: bool,
    wanted: bool,
    free: bool,
    stopping: bool,
    attempt: u8,
}

fn turn() -> impl Strategy<Value = Turn> {
    let activity = prop_oneof![
        4 => Just(Activity::Runs),
        1 => Just(Activity::Stopped),
        1 => Just(Activity::Paused),
        1 => Just(Activity::Unknown),
    ];
    let seen = (
        0u64..4000,
        proptest::option::weighted(0.4, (0u8..8, 1u32..4)),
        proptest::option::weighted(0.8, proptest::bool::weighted(0.4)),
        activity,
    );
    let rest = (
        any::<bool>(),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.97),
        proptest::bool::weighted(0.8),
        proptest::bool::weighted(0.05),
        0u8..10,
    );
    (seen, rest).prop_map(|((passes, process, answers, activity), rest)| {
        let (progress, busy, wanted, free, stopping, attempt) = rest;
        Turn { passes, process, answers, activity, progress, busy, wanted, free, stopping, attempt }
    })
}

proptest! {
    #[test]
    fn random_histories_keep_the_law(turns in proptest::collection::vec(turn(), 1..120)) {
        let documented = documented();
        let mut scene = Scene::new();
        let mut killed_upon = None;
        let mut progress = scene.now;
        for turn in turns {
            scene.now += Duration::from_millis(turn.passes);
            let process = match turn.process {
                Some((0, _)) => Process::NoContainer,
                Some((1, _)) => Process::Ended("x".to_string()),
                Some((2, _)) => Process::Unknown("x".to_string()),
                Some((_, pid)) => Process::Lives { pid, young: false },
                None => scene.seen.process.clone(),
            };
            scene.sees(process, turn.answers.map(|answers| answers.then_some("v").ok_or("silent")));
            if turn.progress {
                progress = scene.now;
            }
            scene.seen.vitals = Vitals {
                activity: turn.activity,
                progress: Some(progress),
                busy_until: turn.busy.then(|| scene.now + SECOND),
                ..Vitals::default()
            };
            let bringing_up = scene.situation.bringing_up;
            let attempt = match turn.attempt {
                0 if bringing_up => Some(Attempt::Failed),
                1 if bringing_up => Some(Attempt::After(SECOND)),
                2 if bringing_up => scene.seen.pid().map(Attempt::Silent),
                _ => None,
            };
            scene.situation = Situation {
                wanted: turn.wanted,
                is_free: turn.free && !bringing_up,
                stopping: turn.stopping,
                bringing_up: bringing_up && attempt.is_none() && turn.attempt > 2,
                attempt,
                ..scene.situation
            };
            for _ in 0..10 {
                let before = scene.state.clone();
                let done = step(&before, &scene.seen, &scene.situation, scene.now, &scene.policy);
                scene.situation.attempt = None;
                let (from, to) = (before.phase.name(), done.state.phase.name());
                prop_assert!(from == to || documented[from].contains(to), "{from} -> {to}");
                if let Some(at) = done.requeue_at {
                    prop_assert!(at > scene.now, "it would be a busy loop");
                }
                match done.action {
                    Action::Kill => {
                        let stopped = turn.activity == Activity::Stopped;
                        prop_assert!(scene.seen.answers.is_silent());
                        prop_assert!(stopped || scene.situation.has_users && !turn.busy);
                        prop_assert!(turn.activity != Activity::Paused);
                        if scene.situation.is_free {
                            prop_assert!(killed_upon.is_none_or(|number| number < scene.seen.number));
                            killed_upon = Some(scene.seen.number);
                        }
                    }
                    Action::Start => {
                        let Phase::Down { due: Some(due), .. } = before.phase else { panic!("{before:?}") };
                        prop_assert!(due <= scene.now && scene.situation.is_free);
                        scene.situation.bringing_up = true;
                        scene.situation.is_free = false;
                    }
                    Action::Wait => {}
                }
                if let (Phase::Probation { since, .. }, Phase::Serving { .. }) =
                    (before.phase, done.state.phase)
                    && before.retry.needs_probation()
                {
                    prop_assert!(scene.now >= since + scene.policy.min_ready);
                }
                // What the next agent would know of it.
                let fresh = State::new(&scene.policy, 7);
                let recalled = fresh.recall(done.state.remembers(), scene.now);
                prop_assert_eq!(recalled.remembers(), done.state.remembers());
                let same = done.state == before;
                scene.state = done.state;
                if same || done.action != Action::Wait {
                    break;
                }
            }
        }
    }
}
