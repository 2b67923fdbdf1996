//! The owner with a played package manager, a played daemon and a played engine; files are real.

use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;

use super::super::observe::engine::Needed;
use super::*;
use crate::docker::fake::{FakeEngine, Mood};
use crate::host::spawn_fake::{FakeSpawner, put_daemon, put_executable, put_living_daemon};
use crate::host::systemd::Systemd;
use crate::host::{Root, daemon_json, pidfd};
use crate::model::engine::{
    ApiVersion, DaemonJson, EngineProcess, PackageManager, PackageSets, UnitState,
};
use crate::model::identity::HostIdentity;
use crate::store::{Durability, make_folder, replace_file};

struct Node {
    engine: FakeEngine,
    spawner: FakeSpawner,
    owner: EngineHandle,
    folder: TempDir,
}

/// A node without an engine; the one that its daemon brings up will be in `mood`.
fn node(mood: Mood) -> Node {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    std::fs::create_dir(folder.path().join("run")).unwrap();
    let spawner = FakeSpawner::new(&root);
    let engine = FakeEngine::new(Mood::Absent);
    let (comes_up, its_root) = (engine.clone(), root.clone());
    spawner.machine(|machine| {
        machine.daemon = Box::new(move || {
            comes_up.set(mood.clone());
            put_daemon(&its_root, 7);
            None
        });
    });
    let (shared, systemd) = (Arc::new(engine.clone()), Arc::new(Systemd::new()));
    let observer = EngineObserver::new(&root, policy(), shared.clone(), systemd.clone());
    let applier = EngineApplier::new(&root, policy(), shared, systemd, spawner.clone());
    let (progress, heartbeat) = (ProgressSink::default(), crate::watchdog::Watchdog::default());
    let owner =
        EngineHandle::start(Arc::new(observer), applier, policy(), progress, heartbeat.register());
    Node { engine, spawner, owner, folder }
}

fn policy() -> EnginePolicy {
    let ce = vec!["docker-ce".to_string(), "containerd.io".to_string()];
    let sets = vec![ce, vec!["docker.io".to_string()]];
    EnginePolicy {
        socket: "/run/docker.sock".into(),
        pid_file: "/run/docker.pid".into(),
        lock_timeout: Duration::from_secs(60),
        packages: PackageSets::from([(PackageManager::Apt, sets)]),
        ..EnginePolicy::default()
    }
}

/// An applier, and what it was given to look at.
fn applier(engine: &FakeEngine) -> (EngineApplier<FakeEngine, FakeSpawner>, EngineSeen, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    let (spawner, systemd) = (FakeSpawner::new(&root), Arc::new(Systemd::new()));
    let applier = EngineApplier::new(&root, policy(), Arc::new(engine.clone()), systemd, spawner);
    (applier, EngineSeen::bare(), folder)
}

const CE: &str = "install docker-ce containerd.io";
const IO: &str = "install docker.io";

impl Node {
    async fn prepare(&self) -> PartReport {
        self.owner.prepare(WorkId::next(), false).await
    }

    fn calls(&self) -> Vec<String> {
        self.spawner.machine(|machine| machine.calls.clone())
    }

    /// Prepares, and returns the one fault that comes of it.
    async fn fault(&self) -> Fault {
        let mut report = self.prepare().await;
        assert_eq!(report.errors.len(), 1, "{report:?}");
        report.errors.remove(0)
    }
}

fn steps(report: &PartReport) -> Vec<&str> {
    report.steps.iter().map(|step| step.step.as_str()).collect()
}

#[track_caller]
fn says(fault: &Fault, code: Code, words: &[&str]) {
    assert_eq!(fault.code, code, "{}", fault.text);
    for word in words {
        assert!(fault.text.contains(word), "'{}' does not say '{word}'", fault.text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bare_node_gets_debians_engine_where_dockers_own_is_not_to_be_had() {
    let node = node(Mood::Answers);
    let report = node.prepare().await;
    assert_eq!(report.errors, []);
    assert_eq!(steps(&report), ["writeDaemonJson", "install", "startDaemon", "awaitEngine"]);
    assert_eq!(report.steps[1].after, "docker.io");
    assert_eq!(report.engine_version.as_deref(), Some("20.10.24"));
    assert_eq!(node.calls(), [CE, IO, "/usr/sbin/dockerd"]);
    let seen_by_packages = node.spawner.machine(|machine| machine.daemon_json.clone()).unwrap();
    assert!(seen_by_packages.contains("\"iptables\": false"), "{seen_by_packages}");
    let again = node.prepare().await;
    assert_eq!((again.errors, again.steps, again.findings), (vec![], vec![], vec![]));
    assert_eq!(node.calls().len(), 3, "nothing is done twice");
}

#[tokio::test(start_paused = true)]
async fn dockers_own_engine_is_preferred() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| {
        machine.archive.extend(["docker-ce", "containerd.io"].map(String::from));
    });
    assert_eq!(node.prepare().await.errors, []);
    assert_eq!(node.calls()[0], CE);
    assert_eq!(node.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_plan_starts_nothing_and_writes_nothing() {
    let node = node(Mood::Answers);
    let report = node.owner.prepare(WorkId::next(), true).await;
    assert_eq!(steps(&report), ["writeDaemonJson", "install", "startDaemon", "awaitEngine"]);
    assert_eq!(node.calls(), [] as [&str; 0]);
    assert!(!node.folder.path().join("etc").exists());
}

#[tokio::test(start_paused = true)]
async fn an_installation_that_never_ends_is_left_running_when_its_time_is_up() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| machine.ends = false);
    let began = tokio::time::Instant::now();
    says(&node.fault().await, Code::PackageManagerTimeout, &["engine.install_timeout", "900s"]);
    assert_eq!(began.elapsed().as_secs(), 900);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_exit_is_reported_at_once_with_its_last_lines() {
    let node = node(Mood::Answers);
    let words = "level=info msg=\"x\"\nfailed to start daemon: Devices cgroup isn't mounted\nlevel=warning msg=\"y\"\n";
    let end = Some((Some(1), words.to_string()));
    node.spawner.machine(|machine| machine.daemon = Box::new(move || end.clone()));
    let began = tokio::time::Instant::now();
    let wanted = ["ended with 1", "Devices cgroup isn't mounted", "/log/dockerd.log"];
    says(&node.fault().await, Code::EngineStartFailed, &wanted);
    assert!(began.elapsed() < Duration::from_secs(1), "the deadline is not waited for");
}

#[tokio::test(start_paused = true)]
async fn what_was_written_for_an_engine_that_does_not_start_with_it_is_taken_back() {
    const FILE: &str = "/etc/docker/daemon.json";
    for before in [None, Some("{\"debug\": true}")] {
        let node = node(Mood::Answers);
        let root = Root::new(node.folder.path());
        put_executable(&root, "/usr/sbin/dockerd");
        if let Some(text) = before {
            daemon_json::replace(&root, FILE, text, &DaemonJson::Absent).unwrap();
        }
        let end = Some((
            Some(1),
            "unable to configure the Docker daemon with file /etc/docker/daemon.json: x"
                .to_string(),
        ));
        node.spawner.machine(|machine| machine.daemon = Box::new(move || end.clone()));
        says(&node.fault().await, Code::EngineStartFailed, &["daemon.json is as it was before"]);
        let after = match daemon_json::read(&root, FILE) {
            DaemonJson::Object { text, .. } => Some(text),
            _ => None,
        };
        assert_eq!(after.as_deref(), before);
    }
    let node = node(Mood::Answers);
    let end = Some((Some(1), "no cgroups".to_string()));
    node.spawner.machine(|machine| machine.daemon = Box::new(move || end.clone()));
    says(&node.fault().await, Code::EngineStartFailed, &["no cgroups"]);
    assert!(
        Root::new(node.folder.path()).path(FILE).exists(),
        "it was written for the first start"
    );
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_dies_because_another_came_first_is_no_failure() {
    let node = node(Mood::Answers);
    let engine = node.engine.clone();
    node.spawner.machine(|machine| {
        machine.daemon = Box::new(move || {
            engine.set(Mood::Answers);
            Some((Some(1), "failed to start daemon: pid file found".to_string()))
        });
    });
    assert_eq!(node.prepare().await.errors, []);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_comes_up_and_never_answers_is_given_its_time_and_no_more() {
    for mood in [Mood::Hangs, Mood::Absent] {
        let node = node(mood);
        let began = tokio::time::Instant::now();
        says(&node.fault().await, Code::EngineNotReady, &["/run/docker.sock", "/log/dockerd.log"]);
        assert_eq!(began.elapsed().as_secs(), 60);
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_too_old_is_reported_with_a_remedy() {
    let engine = FakeEngine::new(Mood::Answers);
    let (mut applier, seen, _folder) = applier(&engine);
    let (socket, within) = ("/run/docker.sock".to_string(), Duration::from_secs(60));
    let step = Step::AwaitEngine { socket, min_api: ApiVersion(9, 0), within };
    let fault = applier.apply(&step, &seen, drop).await.unwrap_err();
    says(&fault, Code::EngineTooOld, &["9.0", "/run/docker.sock", "engine.min_api"]);
}

#[tokio::test(start_paused = true)]
async fn log_of_an_engine_is_that_of_its_own_unit() {
    let unit = |name: &str| Some(UnitState { name: name.to_string(), ..UnitState::default() });
    let process = |unit: &str| EngineProcess {
        pid: 7,
        started_at: 0,
        args: Vec::new(),
        unit: Some(unit.to_string()),
    };
    for (process, unit, named) in [
        (None, None, "docker.service"),
        (None, unit("snap.docker.dockerd.service"), "snap.docker.dockerd.service"),
        (Some(process("other.service")), unit("docker.service"), "other.service"),
    ] {
        let (mut applier, seen, _folder) = applier(&FakeEngine::new(Mood::Hangs));
        let seen = EngineSeen { process, unit, ..seen };
        let socket = "/run/docker.sock".to_string();
        let within = Duration::from_secs(60);
        let step = Step::AwaitEngine { socket, min_api: ApiVersion(1, 41), within };
        let fault = applier.apply(&step, &seen, drop).await.unwrap_err();
        assert!(fault.text.ends_with(&format!("journalctl -u {named}")), "{fault}");
    }
}

#[tokio::test]
async fn a_daemon_json_that_changed_after_the_plan_is_not_overwritten() {
    let (mut applier, seen, folder) = applier(&FakeEngine::new(Mood::Absent));
    let root = Root::new(folder.path());
    put_executable(&root, "/etc/docker/daemon.json");
    let there = daemon_json::read(&root, "/etc/docker/daemon.json");
    let path = policy().daemon_json;
    let step = Step::WriteDaemonJson {
        path,
        text: r#"{"iptables": false}"#.into(),
        adds: String::new(),
        replaces: false,
    };
    let fault = applier.apply(&step, &seen, drop).await.unwrap_err();
    says(&fault, Code::DaemonJsonChanged, &["/etc/docker/daemon.json", "prepare again"]);
    assert_eq!(daemon_json::read(&root, "/etc/docker/daemon.json"), there);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_good_for_its_age_while_its_process_lives() {
    let node = node(Mood::Answers);
    let root = Root::new(node.folder.path());
    put_daemon(&root, 7);
    let answers = async || node.owner.prepare(WorkId::next(), true).await.engine_version.is_some();
    node.engine.set(Mood::Answers);
    assert!(answers().await);
    node.engine.set(Mood::Hangs);
    assert!(answers().await, "it did, a moment ago");
    tokio::time::advance(Duration::from_millis(1001)).await;
    assert!(!answers().await, "an answer is not good for ever");
    node.engine.set(Mood::Answers);
    assert!(answers().await);
    node.engine.set(Mood::Hangs);
    put_daemon(&root, 8);
    assert!(!answers().await, "it was another process that answered");
}

#[tokio::test]
async fn what_is_kept_of_the_files_is_given_up_when_one_changes_or_the_process_ends() {
    if !pidfd::is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    let mut process = put_living_daemon(&root);
    let (engine, systemd) = (FakeEngine::new(Mood::Answers), Arc::new(Systemd::new()));
    let observer = EngineObserver::new(&root, policy(), Arc::new(engine), systemd);
    let seen = observer.look().await.unwrap();
    assert_eq!(seen.daemon_json, DaemonJson::Absent);
    assert_eq!(seen.process.as_ref().unwrap().pid, process.id());
    assert!(observer.keeps_files(), "nothing has happened");
    daemon_json::replace(&root, "/etc/docker/daemon.json", "{}", &DaemonJson::Absent).unwrap();
    assert!(!observer.keeps_files());
    let seen = observer.look().await.unwrap();
    assert!(matches!(seen.daemon_json, DaemonJson::Object { .. }), "{seen:?}");
    assert!(observer.keeps_files());
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(!observer.keeps_files());
}

#[tokio::test]
async fn addresses_that_the_node_needs_are_those_of_the_moment() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    let mut process = put_living_daemon(&root);
    let conf = root.path("/etc/zbs/client.conf");
    make_folder(&conf).unwrap();
    let identity = watch::Sender::new(HostIdentity::default());
    let of_settings = vec![("a registry".to_string(), "10.0.0.3".parse().unwrap())];
    let client_conf = "/etc/zbs/client.conf".parse().unwrap();
    let needed = Needed::new(of_settings, identity.subscribe(), client_conf);
    let (engine, systemd) = (FakeEngine::new(Mood::Answers), Arc::new(Systemd::new()));
    let observer = EngineObserver::new(&root, policy(), Arc::new(engine), systemd);
    let observer = observer.with_needed(needed);
    let needed = async || {
        let needed = observer.look().await.unwrap().network.needed.into_iter();
        needed.map(|(what, address)| format!("{address}, {what}")).collect::<Vec<_>>()
    };
    assert_eq!(needed().await, ["10.0.0.3, a registry"]);
    identity.send_modify(|it| it.send_command_url = "http://10.0.0.1:8080/zstack".to_string());
    let text = b"mds.listen.addr=10.0.0.4:6666,[fd00::5]:6666\n";
    replace_file(&conf, text, 0o644, None, Durability::Boot).unwrap();
    // It is read again with the engine's own files, at the latest after a minute.
    daemon_json::replace(&root, "/etc/docker/daemon.json", "{}", &DaemonJson::Absent).unwrap();
    let expected = [
        "10.0.0.1, the controller",
        "10.0.0.3, a registry",
        "10.0.0.4, the storage (target.client_conf)",
        "fd00::5, the storage (target.client_conf)",
    ];
    for _ in 0..2 {
        assert_eq!(needed().await, expected);
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

#[tokio::test(start_paused = true)]
async fn podman_is_reported_and_nothing_is_installed_beside_it() {
    let node = node(Mood::Answers);
    node.engine.set(Mood::Podman);
    says(&node.fault().await, Code::EngineNotDocker, &["podman listens at", "engine.socket"]);
    assert_eq!(node.calls(), [] as [&str; 0]);
    assert!(!node.folder.path().join("etc").exists());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_is_reported_and_left_alone() {
    let node = node(Mood::Answers);
    node.engine.set(Mood::Hangs);
    let began = tokio::time::Instant::now();
    says(&node.fault().await, Code::EngineNotAnswering, &["/run/docker.sock"]);
    assert_eq!(began.elapsed().as_secs(), 5);
    assert_eq!(node.calls(), [] as [&str; 0]);
    assert!(!node.folder.path().join("etc").exists());
}

#[path = "engine_package_tests.rs"]
mod packages;
