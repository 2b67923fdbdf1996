//! The lifecycle against the histories of a target that matter most.

use super::*;
use crate::model::observation::{ProbeResults, Vitals};
use crate::model::policy::TargetPolicy;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn policy() -> HealPolicy {
    HealPolicy { jitter_percent: 0, ..TargetPolicy::example().heal }
}

/// A target with its clock, and what came of it.
struct Scene {
    now: Instant,
    state: State,
    seen: Observation,
    situation: Situation,
    policy: HealPolicy,
    story: Vec<&'static str>,
}

impl Scene {
    /// One that is wanted and not there.
    fn new() -> Scene {
        let (now, policy) = (Instant::now(), policy());
        let situation =
            Situation { wanted: true, has_users: true, is_free: true, ..Situation::default() };
        let (state, seen) = (State::new(&policy, 7), Observation::unseen(now));
        Scene { now, state, seen, situation, policy, story: Vec::new() }
    }

    /// One that serves as process 1.
    fn serving() -> Scene {
        let mut scene = Scene::new();
        scene.answers(1);
        scene.run_to_rest();
        assert_eq!(scene.state.phase.name(), "Serving");
        scene.story.clear();
        scene
    }

    fn sees(&mut self, process: Process, answer: Option<Result<&str, &str>>) {
        if self.seen.process != process {
            self.seen.answers = ProbeResults::default();
        }
        if let Some(answer) = answer {
            let answer = answer.map(str::to_string).map_err(str::to_string);
            self.seen.answers.note(self.now, answer);
        }
        (self.seen.process, self.seen.at) = (process, self.now);
        self.seen.number += 1;
    }

    fn answers(&mut self, pid: u32) {
        self.sees(Process::Lives { pid, young: false }, Some(Ok("v")));
    }

    fn exits(&mut self) {
        self.sees(Process::Ended("exit code 1".to_string()), None);
    }

    /// Steps until nothing changes any more; the last action.
    fn run_to_rest(&mut self) -> Action {
        for _ in 0..10 {
            let step = step(&self.state, &self.seen, &self.situation, self.now, &self.policy);
            let same = step.state == self.state;
            if step.state.phase.name() != self.state.phase.name() {
                self.story.push(step.state.phase.name());
            }
            self.state = step.state;
            self.situation.attempt = None;
            if same || step.action != Action::Wait {
                return step.action;
            }
        }
        panic!("it never settles: {:?}", self.story);
    }

    /// It is silent for so long, seen every half second; the time until it was killed.
    fn killed_within(
        &mut self,
        time: Duration,
        mut vitals: impl FnMut(Instant) -> Vitals,
    ) -> Option<Duration> {
        let begin = self.now;
        while self.now < begin + time {
            self.now += 500 * MS;
            let process = self.seen.process.clone();
            self.sees(process, Some(Err("no answer")));
            self.seen.vitals = vitals(self.now);
            if self.run_to_rest() == Action::Kill {
                return Some(self.now - begin);
            }
        }
        None
    }
}

fn idle(since: Instant) -> impl FnMut(Instant) -> Vitals {
    move |_| Vitals { activity: Activity::Runs, progress: Some(since), ..Vitals::default() }
}

fn computes(now: Instant) -> Vitals {
    Vitals { activity: Activity::Runs, progress: Some(now), ..Vitals::default() }
}

#[test]
fn target_that_exits_is_started_at_once_and_again_ever_more_rarely() {
    let mut scene = Scene::serving();
    scene.exits();
    assert_eq!(scene.run_to_rest(), Action::Start);
    assert_eq!(scene.story, ["Down", "Starting"]);
    let mut waits = Vec::new();
    for _ in 0..8 {
        scene.situation.attempt = Some(Attempt::Failed);
        assert_eq!(scene.run_to_rest(), Action::Wait);
        let Phase::Down { due: Some(due), failed: true } = scene.state.phase else { panic!() };
        waits.push((due - scene.now).as_secs());
        scene.now = due - MS;
        assert_eq!(scene.run_to_rest(), Action::Wait, "not before it is due");
        scene.now = due;
        assert_eq!(scene.run_to_rest(), Action::Start);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64]);
}

#[test]
fn target_that_answers_its_start_and_hangs_then_is_killed_as_soon_as_any_other() {
    let started = |attempt| {
        let mut scene = Scene::serving();
        scene.exits();
        assert_eq!(scene.run_to_rest(), Action::Start);
        // Young, and with no answer to a probe yet.
        scene.sees(Process::Lives { pid: 2, young: true }, Some(Err("no answer")));
        scene.situation.attempt = Some(attempt);
        scene.run_to_rest();
        scene
    };
    let mut heard = started(Attempt::Silent(2));
    assert_eq!(heard.state.phase.name(), "Unresponsive");
    let now = heard.now;
    let killed = heard.killed_within(60 * SECOND, idle(now)).unwrap();
    assert!((3 * SECOND..5 * SECOND).contains(&killed), "{killed:?}");
    assert_eq!(
        heard.state.retry.failures(),
        1,
        "the exit before; that of this process is yet to come"
    );
    let another = started(Attempt::Silent(3));
    assert!(another.story.ends_with(&["Down", "Starting"]), "the process that answered is gone");
    let mut unheard = started(Attempt::Failed);
    unheard.now += SECOND;
    let now = unheard.now;
    let killed = unheard.killed_within(90 * SECOND, idle(now)).unwrap();
    assert!((60 * SECOND..63 * SECOND).contains(&killed), "it may be starting yet: {killed:?}");
}

#[test]
fn target_that_exited_twice_in_short_order_is_on_probation() {
    let mut scene = Scene::serving();
    scene.exits();
    scene.run_to_rest();
    scene.answers(2);
    scene.run_to_rest();
    assert_eq!(scene.story, ["Down", "Starting", "Probation", "Serving"], "the first at once");
    scene.exits();
    scene.run_to_rest();
    scene.now += SECOND;
    scene.run_to_rest();
    scene.answers(3);
    scene.run_to_rest();
    assert_eq!(scene.state.phase.name(), "Probation");
    scene.now += scene.policy.min_ready - MS;
    scene.run_to_rest();
    assert_eq!(scene.state.phase.name(), "Probation");
    scene.now += MS;
    scene.run_to_rest();
    assert_eq!(scene.state.phase.name(), "Serving");
}

#[test]
fn target_that_the_kernel_stopped_is_killed_soon_and_without_volumes_too() {
    for has_users in [true, false] {
        let mut scene = Scene::serving();
        scene.situation.has_users = has_users;
        let stopped = |_| Vitals { activity: Activity::Stopped, ..Vitals::default() };
        let killed = scene.killed_within(60 * SECOND, stopped).unwrap();
        assert!((3 * SECOND..5 * SECOND).contains(&killed), "{killed:?}");
    }
}

#[test]
fn target_that_makes_no_progress_is_killed_soon_where_somebody_needs_it() {
    let mut scene = Scene::serving();
    let now = scene.now;
    let killed = scene.killed_within(60 * SECOND, idle(now)).unwrap();
    assert!((3 * SECOND..5 * SECOND).contains(&killed), "{killed:?}");
    let mut scene = Scene::serving();
    scene.situation.has_users = false;
    assert_eq!(scene.killed_within(600 * SECOND, idle(now)), None);
}

#[test]
fn target_that_computes_is_killed_late_or_never_and_may_answer_again() {
    let mut scene = Scene::serving();
    let killed = scene.killed_within(600 * SECOND, computes).unwrap();
    assert!((60 * SECOND..63 * SECOND).contains(&killed), "{killed:?}");
    let mut scene = Scene::serving();
    scene.policy.kill_unresponsive_after = Duration::ZERO;
    assert_eq!(scene.killed_within(600 * SECOND, computes), None);
    scene.answers(1);
    scene.run_to_rest();
    assert_eq!(scene.story, ["Unresponsive", "Serving"]);
    assert_eq!(scene.state.retry.failures(), 0, "nothing has failed");
}

#[test]
fn own_request_explains_silence_until_its_deadline() {
    let mut scene = Scene::serving();
    let begin = scene.now;
    let busy = move |_| Vitals {
        activity: Activity::Runs,
        progress: Some(begin),
        busy_until: Some(begin + 30 * SECOND),
        busy_with: Some("bdev_malloc_create".into()),
        ..Vitals::default()
    };
    let killed = scene.killed_within(600 * SECOND, busy).unwrap();
    assert!((33 * SECOND..35 * SECOND).contains(&killed), "{killed:?}");
    assert_eq!(scene.story, ["Unresponsive"]);
}

#[test]
fn own_request_explains_no_silence_of_a_stopped_process() {
    let mut scene = Scene::serving();
    let until = scene.now + 30 * SECOND;
    let stopped = move |_| Vitals {
        activity: Activity::Stopped,
        busy_until: Some(until),
        ..Vitals::default()
    };
    let killed = scene.killed_within(60 * SECOND, stopped).unwrap();
    assert!((3 * SECOND..5 * SECOND).contains(&killed), "{killed:?}");
}

#[test]
fn a_slow_target_is_not_killed_and_a_stuck_reactor_is() {
    let mut scene = Scene::serving();
    let slow = |now| Vitals { replied: Some(now), ..computes(now) };
    assert_eq!(scene.killed_within(600 * SECOND, slow), None);
    let mut scene = Scene::serving();
    let since = scene.now;
    let stuck = move |now| Vitals { replied: Some(now), progress: Some(since), ..computes(now) };
    assert!(scene.killed_within(60 * SECOND, stuck).unwrap() < 5 * SECOND);
}

#[test]
fn target_that_outlives_a_kill_is_given_the_same_time_again() {
    let mut scene = Scene::serving();
    let stopped = |_| Vitals { activity: Activity::Stopped, ..Vitals::default() };
    assert!(scene.killed_within(60 * SECOND, stopped).is_some());
    let again = scene.killed_within(60 * SECOND, stopped).unwrap();
    assert!(again >= 3 * SECOND, "{again:?}");
}

#[test]
fn paused_target_is_never_killed_and_not_forgotten() {
    let mut scene = Scene::serving();
    let paused = |_| Vitals { activity: Activity::Paused, ..Vitals::default() };
    assert_eq!(scene.killed_within(600 * SECOND, paused), None);
    assert_eq!(scene.story, ["Paused"]);
    scene.seen.vitals = Vitals::default();
    scene.answers(1);
    scene.run_to_rest();
    assert_eq!(scene.story, ["Paused", "Unresponsive", "Serving"]);
}

#[test]
fn target_that_was_never_heard_is_given_much_longer() {
    let mut scene = Scene::new();
    scene.sees(Process::Lives { pid: 1, young: false }, None);
    scene.run_to_rest();
    let now = scene.now;
    let killed = scene.killed_within(600 * SECOND, idle(now)).unwrap();
    assert!((60 * SECOND..63 * SECOND).contains(&killed), "{killed:?}");
}

#[test]
fn next_agent_knows_the_process_that_answered_and_how_often_it_failed() {
    let mut scene = Scene::serving();
    scene.exits();
    scene.run_to_rest();
    scene.answers(2);
    scene.run_to_rest();
    let remembered = scene.state.remembers();
    let mut next = Scene::new();
    next.state = next.state.recall(remembered, next.now);
    next.sees(Process::Lives { pid: 2, young: false }, None);
    let now = next.now;
    assert!(next.killed_within(60 * SECOND, idle(now)).unwrap() < 5 * SECOND, "it was heard");
    let mut next = Scene::new();
    next.state = next.state.recall(remembered, next.now);
    next.exits();
    assert_eq!(next.run_to_rest(), Action::Wait, "it is the second exit in short order");
    assert_eq!(next.state.retry.failures(), 2);
}

#[test]
fn target_of_an_agent_before_is_down_where_neither_engine_nor_control_socket_answers() {
    let mut scene = Scene::serving();
    let remembered = scene.state.remembers();
    scene.state = State::new(&scene.policy, 7).recall(remembered, scene.now);
    scene.sees(Process::Unknown("nobody listens".to_string()), None);
    assert_eq!((scene.run_to_rest(), scene.state.phase.name()), (Action::Wait, "Unresponsive"));
    scene.sees(Process::Unknown("nobody listens".to_string()), Some(Err("refused")));
    assert_eq!(scene.run_to_rest(), Action::Start);
}

#[test]
fn own_stop_is_no_exit() {
    let mut scene = Scene::serving();
    scene.situation.stopping = true;
    scene.exits();
    scene.run_to_rest();
    scene.situation = Situation { stopping: false, bringing_up: true, ..scene.situation };
    scene.run_to_rest();
    scene.situation.bringing_up = false;
    scene.answers(2);
    scene.run_to_rest();
    assert_eq!(scene.story, ["Stopping", "Down", "Starting", "Probation", "Serving"]);
    assert_eq!(scene.state.retry.failures(), 0);
}

#[path = "lifecycle_property_tests.rs"]
mod property;
