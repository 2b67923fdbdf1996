//! Tasks on a node that is only played: its engine refuses every change, and the test says what is seen.

use tempfile::TempDir;
use tokio::time::{Duration, Instant, advance, sleep};

use super::*;
use crate::agent::events::Events;
use crate::docker::fake::{FakeContainers, FakeRegistry};
use crate::host::Root;
use crate::model::observation::{Activity, Observation, Process};
use crate::model::policy::TargetSettings;
use crate::model::step::Step;
use crate::model::target::{EnsureOptions, OwnerWork, TargetKind, TargetSpec, TargetState};
use crate::model::volume::{VolumeKey, VolumeSpec};
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
fn parts_with(
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
        guests: watch::channel(Arc::default()).1,
        engine: None,
        deep: DeepProbe::new(&root, Sockets::default(), Duration::ZERO),
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

/// A node to whose engine images come in when the test says so, and a deploy whose image is on its way.
struct SlowImage {
    targets: Targets,
    engine: Arc<FakeContainers>,
    image: Arc<Semaphore>,
    spec: TargetSpec,
    deploy: tokio::task::JoinHandle<PrepareReport>,
    _seen: watch::Sender<Arc<Observation>>,
}

impl SlowImage {
    /// Where the target is desired as it was before, or not at all.
    async fn new(folder: &TempDir, is_desired: bool) -> SlowImage {
        let image = Arc::new(Semaphore::new(0));
        let engine = Arc::new(FakeContainers::with_registry(FakeRegistry::Gives(image.clone())));
        // One that somebody else made, and that has ended.
        engine.change(|one| (one.running, one.pid) = (false, None));
        let seen = unseen();
        // It was looked at, and nobody could tell of it.
        seen.send_modify(|seen| Arc::make_mut(seen).number = 1);
        let parts = parts_with(folder, seen.clone(), engine.clone());
        let spec = TargetSpec::example("a");
        if is_desired {
            parts.desired.want(&spec, None).await.unwrap();
        }
        let targets = Targets::new(parts, Watchdog::default());
        let deploy = tokio::spawn(std::future::pending());
        let mut scene = SlowImage { targets, engine, image, spec, deploy, _seen: seen };
        scene.deploy = scene.deploys();
        while scene.engine.pulled().is_empty() {
            assert!(!scene.deploy.is_finished(), "{:?}", scene.deploy.await);
            sleep(Duration::from_millis(10)).await;
        }
        scene
    }

    /// Asks for another image than is there.
    fn deploys(&self) -> tokio::task::JoinHandle<PrepareReport> {
        let image = Some("10.0.0.1:5000/vhost:1".to_string());
        let spec = TargetSpec { kind: TargetKind::Zbs, image, ..self.spec.clone() };
        let wish = EnsureOptions { recreate: true, force: true, ..EnsureOptions::default() };
        let (targets, wish) = (self.targets.clone(), TargetChange::Ensure(spec, wish));
        let deploy = async move { targets.reconcile(WorkId::next(), wish, false).await.unwrap() };
        tokio::spawn(deploy)
    }

    async fn destroy(&self, force: bool) -> PrepareReport {
        let wish = TargetChange::Destroy { spec: self.spec.clone(), force };
        at_once(self.targets.reconcile(WorkId::next(), wish, false)).await.unwrap()
    }
}

async fn at_once<T>(done: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), done)
        .await
        .expect("it does not wait for an image")
}

#[tokio::test(start_paused = true)]
async fn destroy_gives_up_deploys_of_before_whose_image_is_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let scene = SlowImage::new(&folder, true).await;
    let second = scene.deploys();
    sleep(Duration::from_millis(10)).await;
    scene.engine.take_away();
    assert_eq!(scene.destroy(false).await.errors, []);
    let (first, second) = (at_once(scene.deploy).await.unwrap(), at_once(second).await.unwrap());
    for report in [&first, &second] {
        assert_eq!(report.errors[0].code, Code::TargetNotConverging, "{report:?}");
        assert!(report.errors[0].text.contains("a destroy"), "{report:?}");
    }
    assert_eq!(first.steps.len(), 1, "the image that did not come: {first:?}");
    scene.image.add_permits(9);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.targets.desired.get(&scene.spec.name), None);
    assert_eq!(scene.engine.pulled().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn destroy_that_is_refused_leaves_the_deploy_whose_image_is_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = SlowImage::new(&folder, true).await;
    assert_eq!(scene.destroy(false).await.errors[0].code, Code::ContainerNotOurs);
    let ends = tokio::time::timeout(Duration::from_secs(30), &mut scene.deploy);
    assert!(ends.await.is_err(), "it goes on");
}

#[tokio::test(start_paused = true)]
async fn target_that_cannot_be_stopped_stays_desired_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let scene = SlowImage::new(&folder, true).await;
    scene.engine.change(|one| (one.running, one.pid) = (true, Some(1)));
    scene.image.add_permits(9);
    let report = at_once(scene.deploy).await.unwrap();
    assert_eq!(report.errors[0].code, Code::TargetNotStopped, "{report:?}");
    let desired = &scene.targets.desired;
    assert_eq!(desired.trial(&scene.spec.name), None, "nothing is left to be judged");
    assert_eq!(desired.get(&scene.spec.name), Some(scene.spec));
    assert_eq!(scene.engine.made(), [""; 0], "nor of its successor");
}

#[tokio::test(start_paused = true)]
async fn target_is_not_stopped_where_its_successor_cannot_be_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let scene = SlowImage::new(&folder, true).await;
    scene.engine.change(|one| (one.running, one.pid) = (true, Some(1)));
    let state = folder.path().join("state/targets");
    std::fs::remove_dir_all(&state).unwrap();
    std::os::unix::fs::symlink("/nowhere/else", &state).unwrap();
    scene.image.add_permits(9);
    let report = at_once(scene.deploy).await.unwrap();
    assert_eq!(report.errors[0].code, Code::StateUnwritable, "{report:?}");
    assert_eq!(report.steps.len(), 1, "the image: {report:?}");
    assert_eq!(scene.targets.desired.get(&scene.spec.name), Some(scene.spec));
}

#[tokio::test(start_paused = true)]
async fn image_of_a_start_is_given_up_once_another_target_is_desired() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&folder).await;
    let parts = scene.task.parts.clone();
    let name = scene.task.name().clone();
    let (image, from) = ("vhost:1".to_string(), Vec::new());
    let begins = || {
        let step = Step::LoadImage { image: image.clone(), from: from.clone() };
        IncomingImage::begin(step, parts.clone(), &parts.progress)
    };
    let spec = parts.desired.get(&name).unwrap();
    scene.task.start_image = Some((spec.clone(), begins()));
    scene.task.status.change(|known| known.at_work = Some(OwnerWork::BringUp));
    scene.task.reconcile();
    assert!(scene.task.start_image.is_some());
    let other = TargetSpec { image: Some("vhost:2".to_string()), ..spec };
    parts.desired.want(&other, None).await.unwrap();
    scene.task.reconcile();
    assert!(scene.task.start_image.is_none());
    assert_eq!(scene.task.status.read(|known| known.at_work), None);
}

#[tokio::test(start_paused = true)]
async fn volumes_of_a_target_that_does_not_serve_wait_for_no_image() {
    let folder = tempfile::tempdir().unwrap();
    let scene = SlowImage::new(&folder, true).await;
    let (targets, spec) = (&scene.targets, &scene.spec);
    let volume = VolumeSpec::example("v");
    let key = VolumeKey::Name(volume.name.clone());
    let resized = at_once(targets.resize(spec, key.clone(), 1)).await;
    assert_eq!(resized.unwrap_err().code, Code::VolumeUnknown);
    let activated = at_once(targets.activate(spec, vec![volume], true)).await;
    assert_eq!(activated.unwrap_err().code, Code::TargetNotServing);
    at_once(targets.deactivate(spec, vec![key], None)).await.unwrap();
    assert!(!scene.deploy.is_finished());
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

#[tokio::test(start_paused = true)]
async fn volume_of_a_target_that_is_deployed_for_the_first_time_waits_for_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let scene = SlowImage::new(&folder, false).await;
    let (targets, spec) = (scene.targets.clone(), scene.spec.clone());
    let activated =
        tokio::spawn(
            async move { targets.activate(&spec, vec![VolumeSpec::example("v")], true).await },
        );
    sleep(Duration::from_secs(30)).await;
    assert!(!activated.is_finished());
    let wish = TargetChange::Destroy { spec: scene.spec.clone(), force: true };
    let looks = at_once(scene.targets.reconcile(WorkId::next(), wish, true)).await.unwrap();
    assert_eq!((looks.errors, looks.steps.len()), (vec![], 1), "a dry run waits for none of them");
    scene.engine.take_away();
    assert_eq!(scene.destroy(false).await.errors, []);
}

#[tokio::test(start_paused = true)]
async fn destroy_waits_for_none_of_the_requests_that_fill_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let scene = SlowImage::new(&folder, false).await;
    let activate = || {
        let (targets, spec) = (scene.targets.clone(), scene.spec.clone());
        tokio::spawn(
            async move { targets.activate(&spec, vec![VolumeSpec::example("v")], true).await },
        )
    };
    let waiting: Vec<_> = (0..QUEUE).map(|_| activate()).collect();
    sleep(Duration::from_millis(10)).await;
    let refused = at_once(activate()).await.unwrap().unwrap_err();
    assert_eq!(refused.code, Code::TargetBusy);
    let second = at_once(scene.deploys()).await.unwrap();
    assert_eq!(second.errors[0].code, Code::TargetBusy, "{second:?}");
    assert!(waiting.iter().all(|it| !it.is_finished()));
    scene.engine.take_away();
    assert_eq!(scene.destroy(false).await.errors, []);
    let first = at_once(scene.deploy).await.unwrap();
    assert!(first.errors[0].text.contains("a destroy"), "{first:?}");
    for one in waiting {
        at_once(one).await.unwrap().unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn destroy_that_cannot_stop_a_target_leaves_its_volumes_desired() {
    let folder = tempfile::tempdir().unwrap();
    let scene = SlowImage::new(&folder, false).await;
    let (desired, name) = (scene.targets.desired.clone(), scene.spec.name.clone());
    desired.want_volumes(&name, &[VolumeSpec::example("v")]).await.unwrap();
    scene.engine.change(|one| (one.running, one.pid) = (true, Some(1)));
    let report = scene.destroy(true).await;
    assert_eq!(report.errors[0].code, Code::TargetNotStopped, "{report:?}");
    assert_eq!(desired.volumes(&name).len(), 1);
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
