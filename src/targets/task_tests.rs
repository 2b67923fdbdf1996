//! Tasks on a node that is only played: its engine refuses every change, and the test says what is seen.

use tempfile::TempDir;
use tokio::time::{Duration, Instant, advance, sleep};

use super::status::Known;
use super::*;
use crate::agent::events::Events;
use crate::docker::fake::FakeContainers;
use crate::host::Root;
use crate::model::observation::{Activity, Observation, Process};
use crate::model::target::TargetState;
use crate::plan::lifecycle::{Phase, Remembered};
use crate::plan::retry::Failures;
use crate::spdk::Sockets;
use crate::store::Store;

/// What tasks on such a node share.
fn parts(folder: &TempDir, seen: watch::Sender<Arc<Observation>>) -> Parts<FakeContainers> {
    let root = Root::new(folder.path());
    crate::host::spawn_fake::put_cpu(&root);
    let (policy, sockets) = (TargetPolicy::example(), Sockets::default());
    let containers = Arc::new(FakeContainers::with_one(&[]));
    let store = Store::open(folder.path().join("state"), folder.path().join("run")).unwrap();
    let desired = DesiredTargets::open(store.clone()).unwrap();
    let probe = Probe::new(&root, containers.clone(), sockets.clone(), policy.clone());
    Parts {
        observer: TargetObserver::new(&root, containers.clone(), sockets.clone(), policy.clone()),
        applier: TargetApplier::new(&root, containers, sockets.clone(), policy.clone()),
        volume_observer: VolumeObserver::new(&root, sockets.clone(), policy.volumes.clone()),
        volume_applier: VolumeApplier::new(&root, sockets, policy.volumes.clone()),
        policy,
        observers: Observers::played(seen.subscribe(), desired.watch()),
        desired,
        exits: Exits::new(store),
        probe: Arc::new(probe),
        statuses: Statuses::new(Events::default()),
        progress: ProgressSink::default(),
        engine: None,
    }
}

fn unseen() -> watch::Sender<Arc<Observation>> {
    watch::Sender::new(Arc::new(Observation::unseen(Instant::now().into_std())))
}

/// The task of a target that is desired, with what it remembers, and what it sees.
struct Scene {
    task: Task<FakeContainers>,
    seen: watch::Sender<Arc<Observation>>,
}

impl Scene {
    async fn new(folder: &TempDir) -> Scene {
        let seen = unseen();
        let parts = parts(folder, seen.clone());
        let spec = TargetSpec::example("a");
        parts.desired.want(&spec).await.unwrap();
        let mut task = Task::new(spec.name, Arc::new(parts), Arc::default());
        task.acts();
        Scene { task, seen }
    }

    /// It is seen so.
    fn sees(&self, process: Process, answers: bool) {
        sees(&self.seen, process, answers);
    }

    fn phase(&self) -> &'static str {
        self.task.state.phase.name()
    }

    fn is_in_place(&self) -> bool {
        let pid = |known: &Known| known.seen.as_ref().unwrap().1.pid();
        self.task.status.read(|known| known.in_place.is_some() && known.in_place == pid(known))
    }

    /// In how many seconds something is due.
    fn due(&self) -> Option<f64> {
        let due = self.task.next_due()?;
        Some(due.saturating_duration_since(Instant::now()).as_secs_f64())
    }
}

fn sees(seen: &watch::Sender<Arc<Observation>>, process: Process, answers: bool) {
    let now = Instant::now().into_std();
    seen.send_modify(|last| {
        let mut next = Observation { at: now, number: last.number + 1, ..Observation::unseen(now) };
        next.answers = if last.process == process { last.answers.clone() } else { next.answers };
        next.answers.note(now, answers.then(|| "25.01".to_string()).ok_or("silent".to_string()));
        next.process = process;
        *last = Arc::new(next);
    });
}

const LIVES: Process = Process::Lives { pid: 7, young: false };

fn ended() -> Process {
    Process::Ended("exit code 1".to_string())
}

#[tokio::test(start_paused = true)]
async fn target_that_exits_is_tried_at_once_and_then_ever_more_rarely() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    scene.sees(LIVES, true);
    scene.task.settle().await;
    assert_eq!((scene.phase(), scene.due()), ("Serving", None));
    scene.sees(ended(), false);
    let mut waits = Vec::new();
    for failures in 2..8 {
        scene.task.settle().await;
        assert_eq!((scene.phase(), scene.task.state.retry.failures()), ("Down", failures));
        waits.push(scene.due().unwrap());
        advance(Duration::from_millis(100)).await;
        scene.task.settle().await;
        assert_eq!(scene.task.state.retry.failures(), failures, "nothing was due yet");
        advance(Duration::from_secs_f64(waits.last().unwrap().to_owned())).await;
    }
    for (wait, most) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]) {
        assert!((0.8 * most..=most).contains(wait), "{waits:?}");
    }
    let status = scene.task.parts.statuses.watch().borrow()[&scene.task.name].clone();
    let health = status.health.unwrap();
    assert_eq!(health.state, TargetState::Failed);
    assert!(health.reason.contains("again and again"), "{}", health.reason);
    assert_eq!((status.exits, status.restarts), (1, 0), "attempts that fail are no exits");
}

#[tokio::test(start_paused = true)]
async fn target_that_was_not_looked_at_yet_is_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    scene.task.settle().await;
    assert_eq!((scene.phase(), scene.task.state.retry.failures()), ("Down", 0));
}

#[tokio::test(start_paused = true)]
async fn exits_of_before_count_on_until_enough_service_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let failures = Failures { failures: 2, waits: 1 };
    let before = Remembered { failures, ..Remembered::default() };
    let exits = parts(&folder, unseen()).exits;
    exits.keep(&"a".parse().unwrap(), Remembered::default(), before).await;
    let mut scene = Scene::new(&folder).await;
    assert!(scene.task.state.retry.must_prove());
    scene.sees(LIVES, true);
    scene.task.settle().await;
    let clear_after = scene.task.parts.policy.heal.clear_after;
    assert_eq!(scene.due(), Some(clear_after.as_secs_f64()));
    let known = exits.of(&scene.task.name);
    assert_eq!((known.failures, known.process.pid), (failures, Some(7)));
    advance(clear_after).await;
    scene.task.settle().await;
    let known = exits.of(&scene.task.name);
    assert_eq!((scene.due(), known.failures), (None, Failures::default()));
}

#[tokio::test(start_paused = true)]
async fn target_that_nobody_wants_any_more_is_forgotten_with_its_exits() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    scene.sees(LIVES, true);
    scene.task.settle().await;
    scene.sees(ended(), false);
    scene.task.settle().await;
    let task = &mut scene.task;
    assert_eq!(task.parts.exits.of(&task.name).failures.failures, 2);
    task.parts.desired.forget(&task.name).await.unwrap();
    task.settle().await;
    assert_eq!(task.parts.exits.of(&task.name), Remembered::default());
    assert_eq!((scene.phase(), scene.due()), ("Unwanted", None));
}

#[tokio::test(start_paused = true)]
async fn target_in_a_crash_loop_gets_its_volumes_only_after_its_probation() {
    let folder = tempfile::tempdir().unwrap();
    let failures = Failures { failures: 5, waits: 4 };
    let often = Remembered { failures, ..Remembered::default() };
    let exits = parts(&folder, unseen()).exits;
    exits.keep(&"a".parse().unwrap(), Remembered::default(), often).await;
    let mut scene = Scene::new(&folder).await;
    let prove = scene.task.parts.policy.heal.prove;
    scene.sees(LIVES, true);
    let seen = scene.seen.clone();
    let exits = async {
        sleep(prove / 2).await;
        sees(&seen, ended(), false);
    };
    tokio::join!(scene.task.run_for(prove), exits);
    assert!(!scene.is_in_place());
    scene.sees(Process::Lives { pid: 8, young: false }, true);
    scene.task.run_for(prove - Duration::from_millis(100)).await;
    assert!(!scene.is_in_place());
    scene.task.run_for(Duration::from_millis(300)).await;
    assert!(scene.is_in_place());
}

#[tokio::test(start_paused = true)]
async fn work_is_given_up_when_the_target_is_to_be_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    scene.sees(LIVES, true);
    scene.task.settle().await;
    let seen = scene.seen.clone();
    let stops = async {
        loop {
            sleep(Duration::from_millis(500)).await;
            sees(&seen, LIVES, false);
            seen.send_modify(|last| {
                let mut next = (**last).clone();
                next.vitals.activity = Activity::Stopped;
                *last = Arc::new(next);
            });
        }
    };
    let began = Instant::now();
    tokio::select! {
        fault = scene.task.gives_up() => assert_eq!(fault.code, Code::TargetNotAnswering),
        () = stops => {}
    }
    assert!((3.0..6.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    let silent_since = scene.task.state.phase;
    assert!(matches!(silent_since, Phase::Unresponsive { .. }), "{silent_since:?}");
}

#[tokio::test]
async fn names_that_were_asked_for_once_do_not_shut_out_others() {
    let folder = tempfile::tempdir().unwrap();
    let deep = DeepProbe::new(&Root::new(folder.path()), Sockets::default(), Duration::ZERO);
    let targets = Targets::new(parts(&folder, unseen()), deep, Watchdog::default());
    for number in 0..=MOST_TARGETS {
        let spec = TargetSpec::example(&format!("target-{number}"));
        let wish = TargetWish::Destroy { spec, force: false };
        let report = targets.bring_about(WorkId::next(), wish, true).await;
        assert_eq!(report.unwrap().errors[0].code, Code::ContainerNotOurs);
    }
}
