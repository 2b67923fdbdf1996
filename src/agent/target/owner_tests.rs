//! Owners on a node that is only played: its engine refuses every change, and the test says how targets stand.

use tempfile::TempDir;
use tokio::time::{Duration, Instant, advance, sleep};

use super::*;
use crate::docker::fake::FakeContainers;
use crate::health::backoff::Failures;
use crate::host::Root;
use crate::model::target::TargetState;
use crate::spdk::Sockets;
use crate::store::Store;

/// Nobody watches.
struct NoHealth;

impl TellsHealth for NoHealth {
    fn health<'a>(
        &'a self,
        name: &'a TargetName,
        _: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>> {
        let health = TargetHealth {
            name: name.clone(),
            state: TargetState::Absent,
            reason: String::new(),
            since: String::new(),
            version: None,
            age_ms: None,
            pid: None,
        };
        Box::pin(std::future::ready(health))
    }

    fn watch(&self, _: &TargetName, _: &CleanPath) {}

    fn look_again<'a>(
        &'a self,
        name: &'a TargetName,
        control: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>> {
        self.health(name, control)
    }
}

/// Nothing else is there.
struct NoNode;

impl LooksAfterNode for NoNode {
    fn engine_runs(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(std::future::ready(true))
    }

    fn raise_engine(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(std::future::ready(false))
    }

    fn no_volumes_left(&self) {}
}

/// What owners on such a node share.
fn parts(folder: &TempDir) -> Parts<FakeContainers> {
    let root = Root::new(folder.path());
    crate::host::spawn_fake::put_cpu(&root);
    let (policy, sockets) = (TargetPolicy::example(), Sockets::default());
    let containers = Arc::new(FakeContainers::with_one(&[]));
    let store = Store::open(folder.path().join("state"), folder.path().join("run")).unwrap();
    Parts {
        observer: TargetObserver::new(&root, containers.clone(), sockets.clone(), policy.clone()),
        applier: TargetApplier::new(&root, containers, sockets.clone(), policy.clone()),
        volume_observer: VolumeObserver::new(&root, sockets.clone(), policy.volumes.clone()),
        volume_applier: VolumeApplier::new(&root, sockets, policy.volumes.clone()),
        policy,
        desired: DesiredTargets::open(store.clone()).unwrap(),
        falls: Falls::new(store),
        health: Arc::new(NoHealth),
        stands: Stands::default(),
        progress: ProgressSink::default(),
        node: Arc::new(NoNode),
    }
}

/// The owner of a target that is wanted, with what it remembers.
async fn owner(folder: &TempDir) -> Owner<FakeContainers> {
    let parts = parts(folder);
    let spec = TargetSpec::example("a");
    parts.desired.want(&spec).await.unwrap();
    let mut owner = Owner::new(spec.name, Arc::new(parts), Board::default());
    owner.recall();
    owner
}

/// From now on it stands so: as the process `pid`, which answers or not.
fn stands(owner: &Owner<FakeContainers>, state: TargetState, pid: Option<u32>, answers: bool) {
    owner.parts.stands.health(&TargetHealth {
        name: owner.name.clone(),
        state,
        reason: "told by the test".to_string(),
        since: String::new(),
        version: answers.then(|| "25.01".to_string()),
        age_ms: None,
        pid,
    });
}

/// In how many seconds something is due.
fn due(owner: &Owner<FakeContainers>) -> Option<f64> {
    let due = owner.next_due()?;
    Some(due.saturating_duration_since(Instant::now()).as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn what_fell_is_tried_at_once_and_then_ever_more_rarely() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = owner(&folder).await;
    stands(&owner, TargetState::Serving, Some(7), true);
    owner.tend().await;
    assert_eq!((owner.fallen, due(&owner)), (false, None));
    stands(&owner, TargetState::Failed, None, false);
    let mut waits = Vec::new();
    for failures in 2..8 {
        owner.tend().await;
        assert_eq!((owner.fallen, owner.backoff.failures()), (true, failures));
        waits.push(due(&owner).unwrap());
        advance(Duration::from_millis(100)).await;
        owner.tend().await;
        assert_eq!(owner.backoff.failures(), failures, "nothing was due yet");
        advance(Duration::from_secs_f64(waits.last().unwrap().to_owned())).await;
    }
    for (wait, most) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]) {
        assert!((0.8 * most..=most).contains(wait), "{waits:?}");
    }
    assert!(owner.parts.desired.has_trouble(&owner.name));
    let standing = owner.parts.stands.watch().borrow()[&owner.name].clone();
    assert_eq!((standing.falls, standing.restarts), (1, 0), "attempts that fail are no falls");
}

#[tokio::test(start_paused = true)]
async fn what_may_still_come_and_what_is_not_there_at_all_has_not_fallen() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = owner(&folder).await;
    owner.tend().await;
    for state in [TargetState::Starting, TargetState::Absent, TargetState::Degraded] {
        stands(&owner, state, None, false);
        owner.tend().await;
        assert_eq!((owner.fallen, due(&owner)), (false, None), "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_heard_may_be_frozen_for_a_short_time_and_who_never_was_for_a_long_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = owner(&folder).await;
    let heal = owner.parts.policy.heal.clone();
    stands(&owner, TargetState::Failed, Some(7), false);
    owner.tend().await;
    assert_eq!(due(&owner), Some(heal.frozen_after.max(heal.clear_after).as_secs_f64()));
    stands(&owner, TargetState::Serving, Some(7), true);
    owner.tend().await;
    assert_eq!((owner.frozen, due(&owner)), (None, None));
    stands(&owner, TargetState::Failed, Some(7), false);
    owner.tend().await;
    assert_eq!(due(&owner), Some(heal.frozen_after.as_secs_f64()));
    assert!(!owner.fallen);
}

#[tokio::test(start_paused = true)]
async fn falls_of_before_count_on_until_enough_service_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let before = Failures { failures: 2, waits: 1 };
    parts(&folder).falls.keep(&"a".parse().unwrap(), before).await;
    let mut owner = owner(&folder).await;
    assert!(owner.backoff.must_prove());
    stands(&owner, TargetState::Serving, Some(7), true);
    owner.tend().await;
    let clear_after = owner.parts.policy.heal.clear_after;
    assert_eq!(due(&owner), Some(clear_after.as_secs_f64()));
    owner.write_falls().await;
    assert_eq!(owner.parts.falls.of(&owner.name), before);
    advance(clear_after).await;
    owner.tend().await;
    owner.write_falls().await;
    assert_eq!((due(&owner), owner.parts.falls.of(&owner.name)), (None, Failures::default()));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_any_more_is_forgotten_with_its_falls() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = owner(&folder).await;
    stands(&owner, TargetState::Failed, None, false);
    owner.tend().await;
    assert_eq!(owner.parts.falls.of(&owner.name).failures, 1, "before it was tried");
    owner.write_falls().await;
    assert_eq!(owner.parts.falls.of(&owner.name).failures, 2);
    owner.parts.desired.forget(&owner.name).await.unwrap();
    owner.tend().await;
    owner.write_falls().await;
    assert_eq!((owner.fallen, due(&owner)), (false, None));
    assert_eq!(owner.parts.falls.of(&owner.name), Failures::default());
}

#[tokio::test(start_paused = true)]
async fn one_that_falls_again_and_again_is_in_place_only_once_it_has_stood() {
    let folder = tempfile::tempdir().unwrap();
    let often = Failures { failures: 5, waits: 4 };
    parts(&folder).falls.keep(&"a".parse().unwrap(), often).await;
    let mut owner = owner(&folder).await;
    let prove = owner.parts.policy.heal.prove;
    let told = owner.parts.stands.clone();
    stands(&owner, TargetState::Serving, Some(7), true);
    let falls = async {
        sleep(prove / 2).await;
        told.forget(&"a".parse().unwrap());
    };
    tokio::join!(owner.tend(), falls);
    assert!(!owner.in_place);
    stands(&owner, TargetState::Serving, Some(8), true);
    let began = Instant::now();
    owner.tend().await;
    assert!(owner.in_place && began.elapsed() >= prove);
}

#[tokio::test]
async fn names_that_were_asked_for_once_do_not_shut_out_others() {
    let folder = tempfile::tempdir().unwrap();
    let targets = Targets::new(parts(&folder), Pulse::default());
    for number in 0..=MOST_TARGETS {
        let spec = TargetSpec::example(&format!("target-{number}"));
        let report = targets.bring_about(TargetWish::Destroy { spec, force: false }, true).await;
        assert_eq!(report.unwrap().errors[0].code, Code::ContainerNotOurs);
    }
}
