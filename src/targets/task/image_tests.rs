//! Requests for a target while an image is on its way.

use tempfile::TempDir;
use tokio::time::{Duration, sleep};

use super::task_tests::*;
use super::*;
use crate::docker::fake::{FakeContainers, FakeRegistry};
use crate::model::observation::Observation;
use crate::model::step::Step;
use crate::model::target::{EnsureOptions, OwnerWork, TargetKind, TargetSpec};
use crate::model::volume::{VolumeKey, VolumeSpec};
use crate::targets::*;

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
