//! Health of a target whose engine and control socket are played, and whose process is a real one.
#![allow(clippy::disallowed_methods)]

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::observer::EngineNews;
use super::*;
use crate::agent::events::Events;
use crate::docker::fake::FakeContainers;
use crate::host::Root;
use crate::model::event::{EventId, What};
use crate::model::policy::{EnginePolicy, HealthPolicy, TargetPolicy, TargetSettings};
use crate::model::registry::RegistryPolicy;
use crate::model::status::TargetStatuses;
use crate::model::target::{TargetSpec, TargetState};
use crate::spdk::Sockets;
use crate::store::Store;

/// An engine that always runs, this process: these tests are about one that does.
fn running_engine() -> EnginePolicy {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let (pid_file, socket) = (String::new(), String::new());
    EnginePolicy { binary: name.trim().to_string(), pid_file, socket, ..EnginePolicy::default() }
}

/// How the played target is.
#[derive(Default)]
struct Mood {
    unresponsive: watch::Sender<bool>,
    /// Whether one of its reactors is.
    reactor_unresponsive: watch::Sender<bool>,
    answers: AtomicUsize,
    /// Requests for the counters of its buffers, which it never answers.
    counts: AtomicUsize,
}

/// A target that is played, and who watches it.
struct Scene {
    process: Child,
    mood: Arc<Mood>,
    engine: Arc<FakeContainers>,
    targets: Targets,
    probe: Arc<Probe<FakeContainers>>,
    sockets: Sockets,
    news: EngineNews,
    events: Events,
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
            health: HealthPolicy {
                max_age,
                timeout: Duration::from_millis(500),
                interval: Duration::from_millis(100),
                ..HealthPolicy::default()
            },
            // Nobody here is still starting.
            target: TargetSettings { ready_timeout: Duration::ZERO, ..TargetSettings::example() },
            registries: RegistryPolicy { engine: running_engine(), ..RegistryPolicy::default() },
            ..TargetPolicy::default()
        };
        let (root, sockets) = (Root::new("/"), Sockets::default());
        let probe = Probe::new(&root, engine.clone(), sockets.clone(), policy.clone());
        let (probe, news, events) = (Arc::new(probe), EngineNews::default(), Events::default());
        let store = Store::open(folder.path().join("state"), folder.path().join("run")).unwrap();
        let desired = DesiredTargets::open(store.clone(), &TargetSettings::example()).unwrap();
        let volumes = policy.volumes.clone();
        let parts = Parts {
            observer: TargetObserver::new(&root, engine.clone(), sockets.clone(), policy.clone()),
            applier: TargetApplier::new(&root, engine.clone(), sockets.clone(), policy.clone()),
            volume_observer: VolumeObserver::new(&root, sockets.clone(), volumes),
            volume_applier: VolumeApplier::new(&root, sockets.clone(), policy.clone()),
            policy,
            desired: desired.clone(),
            exits: Exits::new(store),
            probe: probe.clone(),
            observers: Observers::new(probe.clone(), news.clone(), desired.watch()),
            statuses: Statuses::new(events.clone()),
            progress: ProgressSink::default(),
            pages: watch::channel(Default::default()).1,
            guests: watch::channel(Arc::default()).1,
            engine: None,
            deep: DeepProbe::new(&root, sockets.clone(), Duration::from_secs(1)),
        };
        let targets = Targets::new(parts, Watchdog::default());
        let name = TargetName::usual();
        Scene {
            process,
            mood,
            engine,
            targets,
            probe,
            sockets,
            news,
            events,
            name,
            control,
            _folder: folder,
        }
    }

    async fn health(&self) -> TargetHealth {
        self.targets.health(&self.name, &self.control).await
    }

    async fn becomes(&self, state: TargetState) -> TargetHealth {
        let mut statuses = self.targets.statuses.watch();
        let health = |all: &TargetStatuses| all.get(&self.name)?.health.clone();
        let reported = |all: &TargetStatuses| health(all).is_some_and(|it| it.state == state);
        let waits = tokio::time::timeout(Duration::from_secs(10), statuses.wait_for(reported));
        health(&waits.await.unwrap().unwrap()).unwrap()
    }

    /// States that events have reported.
    fn changes(&self) -> Vec<TargetState> {
        let reported = self.events.follow(Some(EventId { run: 0, number: 0 })).0;
        let state = |what| match what {
            What::Target(health) => Some(health.state),
            What::Work(_) | What::Overdue(_) | What::Finding(_) => None,
        };
        reported.into_iter().filter_map(|event| state(event.what)).collect()
    }

    async fn want(&self, control_sock: &CleanPath) {
        let control_sock = control_sock.clone();
        let spec = TargetSpec { control_sock, ..TargetSpec::example(self.name.as_str()) };
        self.targets.desired.want(&spec, None).await.unwrap();
    }

    fn follow_engine(&self) {
        tokio::spawn(self.news.clone().follow(self.probe.clone(), Duration::from_secs(1)));
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
        mood.unresponsive.subscribe().wait_for(|unresponsive| !unresponsive).await.unwrap();
        let mut requests = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        let mut replies = String::new();
        while let Some(Ok(request)) = requests.next() {
            let result = match request["method"].as_str().unwrap() {
                "spdk_get_version" => json!({"version": "SPDK v26.05"}),
                "framework_wait_init" => json!(true),
                "iobuf_get_stats" => {
                    mood.counts.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                _ if *mood.reactor_unresponsive.borrow() => continue,
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
async fn reply_ages_of_the_desired_socket_are_known_without_a_probe() {
    let scene = Scene::new(LONG);
    assert!(scene.targets.last_answers().is_empty());
    scene.health().await;
    let ages = scene.targets.last_answers();
    assert!(ages.len() == 1 && ages[0].0 == scene.name && ages[0].1 < LONG, "{ages:?}");
    // Under its name another control socket is wanted now, which has never answered.
    scene.want(&"/nobody/listens.sock".parse().unwrap()).await;
    let asked = scene.engine.asked();
    assert!(scene.targets.last_answers().is_empty());
    assert_eq!(scene.engine.asked(), asked);
}

#[tokio::test]
async fn known_health_is_returned_with_its_age_and_without_a_probe() {
    let scene = Scene::new(LONG);
    let first = scene.health().await;
    assert_eq!((first.state, first.pid), (TargetState::Serving, Some(scene.process.id())));
    assert_eq!(first.version.as_deref(), Some("SPDK v26.05"));
    // Neither of them could answer any more.
    scene.engine.hang();
    scene.mood.unresponsive.send_replace(true);
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
    assert_eq!(*scene.changes().last().unwrap(), TargetState::Failed);
}

#[tokio::test]
async fn an_unresponsive_target_is_found_by_itself_and_so_is_its_recovery() {
    let scene = Scene::new(Duration::from_millis(200));
    scene.health().await;
    scene.mood.unresponsive.send_replace(true);
    let health = scene.becomes(TargetState::Degraded).await;
    assert!(health.reason.contains("did not answer"), "{}", health.reason);
    assert_eq!(scene.health().await.state, TargetState::Degraded);
    scene.mood.unresponsive.send_replace(false);
    scene.becomes(TargetState::Serving).await;
    // What it said while it was unresponsive does not flap.
    let tail: Vec<_> =
        scene.changes().into_iter().skip_while(|state| *state != TargetState::Serving).collect();
    use TargetState::{Degraded, Serving};
    assert_eq!(tail, [Serving, Degraded, Serving]);
}

#[tokio::test]
async fn change_that_ended_while_a_probe_waited_explains_its_silence() {
    let scene = Scene::new(LONG);
    scene.mood.unresponsive.send_replace(true);
    let spdk = scene.sockets.at(std::path::Path::new(scene.control.as_str()));
    let change = spdk.change("bdev_malloc_create", json!({}), LONG);
    let ends = tokio::time::timeout(Duration::from_millis(100), change);
    let probe = scene.probe.probe(&scene.control, Some(scene.process.id()));
    let (ended, probed) = tokio::join!(ends, probe);
    assert!(ended.is_err() && probed.answer.is_err());
    let (_, method) = probed.evidence.unwrap().busy.unwrap();
    assert_eq!(method, "bdev_malloc_create");
    let probed = scene.probe.probe(&scene.control, Some(scene.process.id())).await;
    assert_eq!(probed.evidence.unwrap().busy, None, "it was over when this one was sent");
}

#[tokio::test]
async fn one_unresponsive_reactor_of_several_is_found_though_the_control_socket_answers() {
    let scene = Scene::new(Duration::ZERO);
    assert_eq!(scene.health().await.state, TargetState::Serving);
    scene.mood.reactor_unresponsive.send_replace(true);
    let health = scene.health().await;
    assert_eq!(health.state, TargetState::Degraded);
    assert!(health.reason.contains("a reactor is unresponsive"), "{}", health.reason);
}

#[tokio::test]
async fn counters_that_never_come_are_asked_for_once_and_no_health_waits_for_them() {
    let scene = Scene::new(Duration::ZERO);
    scene.health().await;
    while scene.mood.counts.load(Ordering::Relaxed) == 0 {
        assert_eq!(scene.health().await.state, TargetState::Serving);
    }
    let answers = || scene.mood.answers.load(Ordering::Relaxed);
    let before = answers();
    while answers() < before + 100 {
        assert_eq!(scene.health().await.state, TargetState::Serving);
    }
    assert_eq!(scene.mood.counts.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_hanging_engine_neither_delays_nor_falsifies_health() {
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
    scene.mood.unresponsive.send_replace(true);
    assert_eq!(scene.health().await.state, TargetState::Degraded);
}

#[tokio::test]
async fn engine_events_report_a_container_removed_and_restored() {
    let scene = Scene::new(LONG);
    scene.follow_engine();
    scene.health().await;
    scene.want(&scene.control).await;
    scene.engine.take_away();
    assert!(scene.becomes(TargetState::Failed).await.reason.contains("wanted"));
    scene.targets.desired.forget(&scene.name).await.unwrap();
    scene.becomes(TargetState::Absent).await;
    let asked = scene.engine.asked();
    for _ in 0..100 {
        assert_eq!(scene.health().await.state, TargetState::Absent);
    }
    // What it reported before may still be looked into.
    let more = scene.engine.asked() - asked;
    assert!(more <= 2, "asked {more} times, though it would have reported");
}

#[tokio::test]
async fn another_control_socket_than_the_targets_is_no_news_of_it() {
    let scene = Scene::new(LONG);
    scene.want(&scene.control).await;
    assert_eq!(scene.health().await.state, TargetState::Serving);
    let elsewhere: CleanPath = "/nowhere/vhost.sock".parse().unwrap();
    let other = scene.targets.health(&scene.name, &elsewhere).await;
    assert_eq!(other.state, TargetState::Degraded);
    assert_eq!(*scene.changes().last().unwrap(), TargetState::Serving);
}

#[tokio::test]
async fn no_more_targets_are_observed_than_there_is_room_for_and_those_desired_stay() {
    let scene = Scene::new(LONG);
    scene.want(&scene.control).await;
    scene.health().await;
    for number in 0..200 {
        let name = format!("other-{number}").parse().unwrap();
        drop(scene.targets.observers.observe(&name, &scene.control));
    }
    let observed = scene.targets.observers.observed();
    assert_eq!(observed.len(), 64);
    assert!(observed.contains(&(scene.name.clone(), scene.control.clone())));
}

#[tokio::test]
async fn target_that_is_observed_no_more_is_forgotten_unless_it_is_desired() {
    let scene = Scene::new(LONG);
    scene.want(&scene.control).await;
    scene.health().await;
    let other: TargetName = "other".parse().unwrap();
    scene.targets.health(&other, &scene.control).await;
    let mut statuses = scene.targets.statuses.watch();
    assert!(statuses.borrow().contains_key(&other));
    scene.targets.observers.forget_all();
    let gone = statuses.wait_for(|all| !all.contains_key(&other));
    let gone = tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    assert!(gone.unwrap().contains_key(&scene.name));
}
