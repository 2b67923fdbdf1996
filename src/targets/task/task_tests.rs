//! Tasks on a node that is only played: its engine refuses every change, and the test says what is seen.

use tempfile::TempDir;
use tokio::time::{Duration, Instant, advance, sleep};

use super::*;
use crate::agent::events::Events;
use crate::docker::fake::FakeContainers;
use crate::host::Root;
use crate::model::observation::{Activity, Observation, Process};
use crate::model::policy::TargetSettings;
use crate::model::target::{TargetSpec, TargetState};
use crate::model::volume::VolumeSpec;
use crate::plan::lifecycle::Phase;
use crate::plan::retry::Failures;
use crate::spdk::Sockets;
use crate::store::Store;
use crate::targets::status::Known;
use crate::targets::*;

/// What tasks on such a node share.
fn parts(folder: &TempDir, seen: watch::Sender<Arc<Observation>>) -> Parts<FakeContainers> {
    parts_with(folder, seen, Arc::new(FakeContainers::with_one(&[])))
}

/// What they share with that engine.
pub(super) fn parts_with(
    folder: &TempDir,
    seen: watch::Sender<Arc<Observation>>,
    containers: Arc<FakeContainers>,
) -> Parts<FakeContainers> {
    let root = Root::new(folder.path());
    crate::host::spawn_fake::put_cpu(&root);
    let (policy, sockets) = (TargetPolicy::example(), Sockets::default());
    let store = Store::open(folder.path().join("state"), folder.path().join("run")).unwrap();
    let desired = DesiredTargets::open(store.clone(), &TargetSettings::example()).unwrap();
    let probe = Probe::new(&root, containers.clone(), sockets.clone(), policy.clone());
    Parts {
        observer: TargetObserver::new(&root, containers.clone(), sockets.clone(), policy.clone()),
        applier: TargetApplier::new(&root, containers, sockets.clone(), policy.clone()),
        volume_observer: VolumeObserver::new(&root, sockets.clone(), policy.volumes.clone()),
        volume_applier: VolumeApplier::new(&root, sockets, policy.clone()),
        policy,
        observers: Observers::played(seen.subscribe(), desired.watch()),
        desired,
        exits: Exits::new(store),
        probe: Arc::new(probe),
        statuses: Statuses::new(Events::default()),
        progress: ProgressSink::default(),
        pages: watch::channel(Default::default()).1,
        guests: watch::channel(Arc::default()).1,
        engine: None,
        deep: DeepProbe::new(&root, Sockets::default(), Duration::ZERO),
    }
}

pub(super) fn unseen() -> watch::Sender<Arc<Observation>> {
    watch::Sender::new(Arc::new(Observation::unseen(Instant::now().into_std())))
}

/// The task of a target that is desired, with what it remembers, and what it sees.
pub(super) struct Scene {
    pub(super) task: Task<FakeContainers>,
    seen: watch::Sender<Arc<Observation>>,
}

impl Scene {
    pub(super) async fn new(folder: &TempDir) -> Scene {
        let seen = unseen();
        let parts = parts(folder, seen.clone());
        let spec = TargetSpec::example("a");
        parts.desired.want(&spec, None).await.unwrap();
        let mut task = Task::new(spec.name, Arc::new(parts), Arc::default());
        task.may_act();
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
    scene.task.reconcile_all().await;
    assert_eq!((scene.phase(), scene.due()), ("Serving", None));
    scene.sees(ended(), false);
    let mut waits = Vec::new();
    for failures in 2..8 {
        scene.task.reconcile_all().await;
        assert_eq!((scene.phase(), scene.task.state.retry.failures()), ("Down", failures));
        waits.push(scene.due().unwrap());
        advance(Duration::from_millis(100)).await;
        scene.task.reconcile_all().await;
        assert_eq!(scene.task.state.retry.failures(), failures, "nothing was due yet");
        advance(Duration::from_secs_f64(waits.last().unwrap().to_owned())).await;
    }
    for (wait, most) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]) {
        assert!((0.8 * most..=most).contains(wait), "{waits:?}");
    }
    let status = scene.task.parts.statuses.watch().borrow()[scene.task.name()].clone();
    let health = status.health.unwrap();
    assert_eq!(health.state, TargetState::Failed);
    assert!(health.reason.contains("again and again"), "{}", health.reason);
    assert_eq!((status.exits, status.restarts), (1, 0), "attempts that fail are no exits");
}

#[tokio::test(start_paused = true)]
async fn target_that_was_not_looked_at_yet_is_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    scene.task.reconcile_all().await;
    assert_eq!((scene.phase(), scene.task.state.retry.failures()), ("Down", 0));
}

#[tokio::test(start_paused = true)]
async fn exits_of_before_count_on_until_enough_service_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let failures = Failures { failures: 2, waits: 1 };
    let before = LifecycleRecord { failures, ..LifecycleRecord::default() };
    let exits = parts(&folder, unseen()).exits;
    exits.keep(&"a".parse().unwrap(), LifecycleRecord::default(), before).await;
    let mut scene = Scene::new(&folder).await;
    assert!(scene.task.state.retry.needs_probation());
    scene.sees(LIVES, true);
    scene.task.reconcile_all().await;
    let clear_after = scene.task.parts.policy.heal.clear_after;
    assert_eq!(scene.due(), Some(clear_after.as_secs_f64()));
    let known = exits.of(scene.task.name());
    assert_eq!((known.failures, known.process.pid), (failures, Some(7)));
    advance(clear_after).await;
    scene.task.reconcile_all().await;
    let known = exits.of(scene.task.name());
    assert_eq!((scene.due(), known.failures), (None, Failures::default()));
}

#[tokio::test(start_paused = true)]
async fn target_that_nobody_wants_any_more_is_forgotten_with_its_exits() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    scene.sees(LIVES, true);
    scene.task.reconcile_all().await;
    scene.sees(ended(), false);
    scene.task.reconcile_all().await;
    let task = &mut scene.task;
    assert_eq!(task.parts.exits.of(task.name()).failures.failures, 2);
    task.parts.desired.forget(task.name()).await.unwrap();
    task.reconcile_all().await;
    assert_eq!(task.parts.exits.of(task.name()), LifecycleRecord::default());
    assert_eq!((scene.phase(), scene.due()), ("Unwanted", None));
}

#[tokio::test(start_paused = true)]
async fn target_in_a_crash_loop_gets_its_volumes_only_after_its_probation() {
    let folder = tempfile::tempdir().unwrap();
    let failures = Failures { failures: 5, waits: 4 };
    let often = LifecycleRecord { failures, ..LifecycleRecord::default() };
    let exits = parts(&folder, unseen()).exits;
    exits.keep(&"a".parse().unwrap(), LifecycleRecord::default(), often).await;
    let mut scene = Scene::new(&folder).await;
    let min_ready = scene.task.parts.policy.heal.min_ready;
    scene.sees(LIVES, true);
    let seen = scene.seen.clone();
    let exits = async {
        sleep(min_ready / 2).await;
        sees(&seen, ended(), false);
    };
    tokio::join!(scene.task.run_for(min_ready), exits);
    assert!(!scene.is_in_place());
    scene.sees(Process::Lives { pid: 8, young: false }, true);
    scene.task.run_for(min_ready - Duration::from_millis(100)).await;
    assert!(!scene.is_in_place());
    scene.task.run_for(Duration::from_millis(300)).await;
    assert!(scene.is_in_place());
}

#[tokio::test(start_paused = true)]
async fn work_is_given_up_when_the_target_is_to_be_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    scene.sees(LIVES, true);
    scene.task.reconcile_all().await;
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
    let targets = Targets::new(parts(&folder, unseen()), Watchdog::default());
    for number in 0..=MOST_TARGETS {
        let spec = TargetSpec::example(&format!("target-{number}"));
        let wish = TargetChange::Destroy { spec, force: false };
        let report = targets.reconcile(WorkId::next(), wish, true).await;
        assert_eq!(report.unwrap().errors[0].code, Code::ContainerNotOurs);
    }
}

#[tokio::test(start_paused = true)]
async fn volume_waits_until_it_is_known_whether_its_target_answers() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    let (reply, mut activated) = oneshot::channel();
    let volumes = vec![VolumeSpec::example("v")];
    let request = TaskRequest::Activate { volumes, undo: true, reply };
    scene.task.requested(Requested { request, _work: Arc::default() });
    scene.task.reconcile_all().await;
    assert!(activated.try_recv().is_err(), "it was not looked at");
    let lives = Observation { number: 1, process: LIVES, ..(**scene.seen.borrow()).clone() };
    scene.seen.send_replace(Arc::new(lives));
    scene.task.reconcile_all().await;
    assert!(activated.try_recv().is_err(), "it was not asked");
    scene.sees(LIVES, true);
    scene.task.reconcile_all().await;
    let failed = activated.try_recv().unwrap().unwrap_err();
    assert_ne!(failed.code, Code::TargetNotServing, "it answers: {failed}");
}

/// A task without its loop.
impl<C: Containers> Task<C> {
    /// Reconciles until nothing more is to be done now.
    async fn reconcile_all(&mut self) {
        loop {
            self.reconcile();
            if self.worker.is_idle() {
                return;
            }
            let done = self.worker.finished().await;
            self.finished(done);
        }
    }

    /// It is asked for something.
    fn may_act(&mut self) {
        self.mandate = Mandate::Act;
    }

    /// Reconciles for so long.
    async fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.reconcile_all().await;
            let due = self.next_due().map(|due| due.max(self.reconciled + LEAST_PAUSE));
            tokio::select! {
                () = changed(&mut self.observed) => {}
                () = wait::until(due) => {}
                () = tokio::time::sleep_until(end) => {}
            }
        }
    }

    /// Begins work on volumes that never ends by itself, and reconciles until it is given up; why it was.
    async fn gives_up(&mut self) -> Fault {
        self.reconcile_all().await;
        let Some(mut worker) = self.worker.take() else { unreachable!() };
        let mut done =
            Box::pin(async move { worker.unless_stuck(std::future::pending::<()>()).await });
        loop {
            self.reconcile();
            let due = self.next_due();
            tokio::select! {
                given_up = &mut done => return given_up.unwrap_err(),
                () = changed(&mut self.observed) => {}
                () = wait::until(due) => {}
            }
        }
    }
}
