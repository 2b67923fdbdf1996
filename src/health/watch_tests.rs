//! The watch of a target whose engine and control socket are played, and whose process is a real one.
#![allow(clippy::disallowed_methods)]

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::docker::fake::FakeContainers;
use crate::health::probe::EngineDaemon;
use crate::host::Root;
use crate::model::policy::TargetPolicy;
use crate::model::target::{TargetSpec, Work};
use crate::spdk::Sockets;

/// What the kernel calls this process.
fn own_name() -> String {
    std::fs::read_to_string("/proc/self/comm").unwrap().trim().to_string()
}

/// How the played target is.
#[derive(Default)]
struct Mood {
    frozen: watch::Sender<bool>,
    /// Whether one of its reactors is.
    reactor_frozen: watch::Sender<bool>,
    answers: AtomicUsize,
}

/// A target that is played, and who watches it.
struct Scene {
    process: Child,
    mood: Arc<Mood>,
    engine: Arc<FakeContainers>,
    watchers: Watchers<FakeContainers>,
    desired: watch::Sender<Desired>,
    changes: Arc<Mutex<Vec<TargetState>>>,
    forgotten: watch::Receiver<Option<TargetName>>,
    name: TargetName,
    control: CleanPath,
    _folder: tempfile::TempDir,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Scene {
    /// With answers that are good for `max_age`, and half a second for each.
    fn new(max_age: Duration) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let control: CleanPath =
            folder.path().join("vhost.sock").to_str().unwrap().parse().unwrap();
        let mood = Arc::<Mood>::default();
        tokio::spawn(serve(UnixListener::bind(control.as_str()).unwrap(), mood.clone()));
        let process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let engine = Arc::new(FakeContainers::running(process.id()));
        let policy = TargetPolicy {
            max_age,
            answer_timeout: Duration::from_millis(500),
            probe_interval: Duration::from_millis(100),
            // Nobody here is still starting.
            ready_timeout: Duration::ZERO,
            ..TargetPolicy::example()
        };
        let probe = Probe::new(
            &Root::new("/"),
            engine.clone(),
            Sockets::default(),
            policy,
            // Somebody who always runs: these tests are about an engine that does.
            EngineDaemon { binary: own_name(), ..EngineDaemon::default() },
        );
        let desired = watch::Sender::new(Desired::default());
        let changes = Arc::<Mutex<Vec<TargetState>>>::default();
        let told = changes.clone();
        let changed = move |health: &TargetHealth| told.lock().unwrap().push(health.state);
        let (tells, forgotten) = watch::channel(None);
        let tell = move |name: &TargetName| drop(tells.send_replace(Some(name.clone())));
        let news = EngineNews::default();
        let watchers = Watchers::new(probe, news, desired.subscribe(), changed, tell);
        let name = TargetName::usual();
        Scene {
            process,
            mood,
            engine,
            watchers,
            desired,
            changes,
            forgotten,
            name,
            control,
            _folder: folder,
        }
    }

    async fn health(&self) -> TargetHealth {
        self.watchers.health(&self.name, &self.control).await
    }

    async fn becomes(&self, state: TargetState) -> TargetHealth {
        let told = self.watchers.watched(&self.name, &self.control).1;
        let waits =
            async { told.clone().wait_for(|told| told.health.state == state).await.is_ok() };
        assert!(tokio::time::timeout(Duration::from_secs(10), waits).await.unwrap());
        told.borrow().health.clone()
    }

    fn want(&self) {
        self.desired.send_modify(|desired| {
            let control_sock = self.control.clone();
            let spec = TargetSpec { control_sock, ..TargetSpec::example(self.name.as_str()) };
            desired.targets.insert(self.name.clone(), spec);
        });
    }

    fn follow_engine(&self) {
        tokio::spawn(self.watchers.follow_engine(Duration::from_secs(1)));
    }
}

async fn serve(listener: UnixListener, mood: Arc<Mood>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer_all(stream, mood.clone()));
    }
}

async fn answer_all(mut stream: UnixStream, mood: Arc<Mood>) {
    let mut bytes = Vec::new();
    while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
        mood.frozen.subscribe().wait_for(|frozen| !frozen).await.unwrap();
        let mut requests = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        let mut replies = String::new();
        while let Some(Ok(request)) = requests.next() {
            let result = match request["method"].as_str().unwrap() {
                "spdk_get_version" => json!({"version": "SPDK v26.05"}),
                "framework_wait_init" => json!(true),
                _ if *mood.reactor_frozen.borrow() => continue,
                _ => json!({"reactors": [{}, {}]}),
            };
            mood.answers.fetch_add(1, Ordering::Relaxed);
            replies += &format!("{}\n", json!({"id": request["id"], "result": result}));
        }
        let taken = requests.byte_offset();
        bytes.drain(..taken);
        if stream.write_all(replies.as_bytes()).await.is_err() {
            return;
        }
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn ages_of_answers_are_told_of_the_control_socket_that_is_wanted_without_asking_anybody() {
    let scene = Scene::new(LONG);
    assert!(scene.watchers.last_answers().is_empty());
    scene.health().await;
    let ages = scene.watchers.last_answers();
    assert!(ages.len() == 1 && ages[0].0 == scene.name && ages[0].1 < LONG, "{ages:?}");
    // Under its name another control socket is wanted now, which has never answered.
    let control_sock = "/nobody/listens.sock".parse().unwrap();
    let spec = TargetSpec { control_sock, ..TargetSpec::example(scene.name.as_str()) };
    scene.desired.send_modify(|desired| drop(desired.targets.insert(scene.name.clone(), spec)));
    let asked = scene.engine.asked();
    assert!(scene.watchers.last_answers().is_empty());
    assert_eq!(scene.engine.asked(), asked);
}

#[tokio::test]
async fn what_is_known_is_told_without_asking_and_with_its_age() {
    let scene = Scene::new(LONG);
    let first = scene.health().await;
    assert_eq!((first.state, first.pid), (TargetState::Serving, Some(scene.process.id())));
    assert_eq!(first.version.as_deref(), Some("SPDK v26.05"));
    // Neither of them could tell any more.
    scene.engine.hang();
    scene.mood.frozen.send_replace(true);
    let asked = scene.engine.asked();
    let known = scene.health().await;
    assert_eq!((known.state, known.since), (TargetState::Serving, first.since));
    assert!(known.age_ms.is_some());
    assert_eq!(scene.engine.asked(), asked);
}

#[tokio::test]
async fn a_hundred_callers_share_a_round_where_nothing_may_be_remembered() {
    let scene = Scene::new(Duration::ZERO);
    scene.health().await;
    let before = scene.mood.answers.load(Ordering::Relaxed);
    let all = futures_util::future::join_all((0..100).map(|_| scene.health())).await;
    assert!(all.iter().all(|health| health.state == TargetState::Serving));
    let asked = scene.mood.answers.load(Ordering::Relaxed) - before;
    assert!((2..=20).contains(&asked), "{asked} answers for 100 callers");
}

#[tokio::test]
async fn the_end_of_its_process_is_published_by_itself_and_the_engine_need_not_answer() {
    let mut scene = Scene::new(LONG);
    scene.health().await;
    scene.engine.hang();
    scene.process.kill().unwrap();
    let health = scene.becomes(TargetState::Failed).await;
    assert!(health.reason.contains("ended") && health.pid.is_none(), "{health:?}");
    assert_eq!(*scene.changes.lock().unwrap().last().unwrap(), TargetState::Failed);
}

#[tokio::test]
async fn a_frozen_target_is_found_by_itself_and_so_is_its_recovery() {
    let scene = Scene::new(Duration::from_millis(200));
    scene.health().await;
    scene.mood.frozen.send_replace(true);
    let health = scene.becomes(TargetState::Degraded).await;
    assert!(health.reason.contains("did not answer"), "{}", health.reason);
    assert_eq!(scene.health().await.state, TargetState::Degraded);
    scene.mood.frozen.send_replace(false);
    scene.becomes(TargetState::Serving).await;
    // What it said while it was frozen does not flap.
    let changes = scene.changes.lock().unwrap().clone();
    let tail: Vec<_> =
        changes.into_iter().skip_while(|state| *state != TargetState::Serving).collect();
    use TargetState::{Degraded, Serving};
    assert_eq!(tail, [Serving, Degraded, Serving]);
}

#[tokio::test]
async fn one_frozen_reactor_of_several_is_found_though_the_control_socket_answers() {
    let scene = Scene::new(Duration::ZERO);
    assert_eq!(scene.health().await.state, TargetState::Serving);
    scene.mood.reactor_frozen.send_replace(true);
    let health = scene.health().await;
    assert_eq!(health.state, TargetState::Degraded);
    assert!(health.reason.contains("a reactor is frozen"), "{}", health.reason);
}

#[tokio::test]
async fn a_hanging_engine_neither_delays_nor_falsifies_what_process_and_answers_tell() {
    let scene = Scene::new(Duration::ZERO);
    scene.health().await;
    scene.engine.hang();
    let asked = scene.engine.asked();
    assert_eq!(scene.health().await.state, TargetState::Serving);
    assert_eq!(scene.engine.asked(), asked, "it was not even asked");
}

#[tokio::test]
async fn an_agent_that_starts_beside_a_hanging_engine_sees_the_process_that_answers() {
    let scene = Scene::new(Duration::ZERO);
    scene.engine.hang();
    let health = scene.health().await;
    // The target is played by this process itself.
    assert_eq!((health.state, health.pid), (TargetState::Serving, Some(std::process::id())));
    scene.mood.frozen.send_replace(true);
    assert_eq!(scene.health().await.state, TargetState::Degraded);
}

#[tokio::test]
async fn a_container_that_is_taken_away_and_comes_back_is_told_by_the_engine() {
    let scene = Scene::new(LONG);
    scene.follow_engine();
    scene.health().await;
    scene.want();
    scene.engine.take_away();
    assert!(scene.becomes(TargetState::Failed).await.reason.contains("wanted"));
    scene.desired.send_replace(Desired::default());
    scene.becomes(TargetState::Absent).await;
    let asked = scene.engine.asked();
    for _ in 0..100 {
        assert_eq!(scene.health().await.state, TargetState::Absent);
    }
    // What it told before may still be looked into.
    let more = scene.engine.asked() - asked;
    assert!(more <= 2, "asked {more} times, though it would have told");
}

#[tokio::test]
async fn a_target_at_work_is_starting_and_not_failed() {
    let scene = Scene::new(LONG);
    scene.follow_engine();
    scene.want();
    let work = (scene.name.clone(), Work::BringUp);
    scene.desired.send_modify(|desired| desired.at_work.extend([work]));
    scene.health().await;
    scene.engine.take_away();
    assert!(scene.becomes(TargetState::Starting).await.reason.contains("brought up"));
    scene.desired.send_modify(|desired| desired.at_work.clear());
    scene.becomes(TargetState::Failed).await;
}

#[tokio::test]
async fn another_control_socket_than_the_targets_is_no_news_of_it() {
    let scene = Scene::new(LONG);
    scene.want();
    assert_eq!(scene.health().await.state, TargetState::Serving);
    let elsewhere: CleanPath = "/nowhere/vhost.sock".parse().unwrap();
    let other = scene.watchers.health(&scene.name, &elsewhere).await;
    assert_eq!(other.state, TargetState::Degraded);
    assert_eq!(*scene.changes.lock().unwrap().last().unwrap(), TargetState::Serving);
}

#[tokio::test]
async fn no_more_targets_are_watched_than_there_is_room_for_and_those_wanted_stay() {
    let scene = Scene::new(LONG);
    scene.want();
    scene.health().await;
    for number in 0..3 * MOST_WATCHED {
        let name = format!("other-{number}").parse().unwrap();
        drop(scene.watchers.watch(&name, &scene.control));
    }
    let watched = scene.watchers.watched.lock().unwrap();
    assert_eq!(watched.len(), MOST_WATCHED);
    assert!(watched.contains_key(&(scene.name.clone(), scene.control.clone())));
}

#[tokio::test]
async fn who_is_watched_no_more_is_forgotten_unless_it_is_wanted() {
    let mut scene = Scene::new(LONG);
    scene.want();
    scene.health().await;
    let other: TargetName = "other".parse().unwrap();
    scene.watchers.health(&other, &scene.control).await;
    scene.watchers.watched.lock().unwrap().retain(|(name, _), _| *name == other);
    assert!(scene.forgotten.borrow_and_update().is_none());
    scene.watchers.watched.lock().unwrap().clear();
    let forgotten = scene.forgotten.wait_for(Option::is_some);
    let forgotten = tokio::time::timeout(Duration::from_secs(10), forgotten).await.unwrap();
    assert_eq!(*forgotten.unwrap(), Some(other));
}
