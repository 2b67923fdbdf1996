//! Installations of the engine that a package manager refuses, or that need a second look.

use super::*;
use crate::host::spawn_fake::put_package;
use crate::model::prepare::StepOutcome;

#[tokio::test(start_paused = true)]
async fn package_lists_that_were_never_fetched_are_fetched_once() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| machine.lists = false);
    assert_eq!(node.prepare().await.errors, []);
    assert_eq!(node.calls()[..5], [CE, IO, "update", CE, IO]);
}

#[tokio::test(start_paused = true)]
async fn engine_with_containers_of_an_earlier_one_keeps_its_bridge() {
    for (file, containers, is_new) in [
        ("{}", None, true),
        ("{}", Some("/var/lib/docker/containers"), false),
        (r#"{"data-root": "/data"}"#, Some("/data/containers"), false),
        (r#"{"graph": "/data"}"#, Some("/data/containers"), false),
        (r#"{"data-root": "/data"}"#, Some("/var/lib/docker/containers"), true),
    ] {
        let node = node(Mood::Answers);
        let root = Root::new(node.folder.path());
        daemon_json::replace(&root, "/etc/docker/daemon.json", file, &DaemonJson::Absent).unwrap();
        if let Some(path) = containers {
            make_folder(&root.path(path).join("0123")).unwrap();
        }
        assert_eq!(node.prepare().await.errors, []);
        let seen = node.spawner.machine(|machine| machine.daemon_json.clone()).unwrap();
        assert_eq!(seen.contains(r#""bridge": "none""#), is_new, "{file} {containers:?}: {seen}");
    }
}

#[tokio::test(start_paused = true)]
async fn packages_that_nobody_has_are_all_named_after_one_look_for_newer_lists() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| machine.archive.clear());
    let fault = node.fault().await;
    says(&fault, Code::PackagesNotAvailable, &["docker-ce containerd.io, nor docker.io"]);
    says(&fault, Code::PackagesNotAvailable, &["engine.packages", "/log/apt-get.log"]);
    assert_eq!(node.calls(), [CE, IO, "update", CE, IO]);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_mirror_is_not_reported_as_a_missing_package() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| (machine.lists, machine.reachable) = (false, false));
    says(&node.fault().await, Code::PackagesNotFetched, &["http://mirror.invalid"]);
}

#[tokio::test(start_paused = true)]
async fn a_repository_that_is_refused_is_not_reported_as_a_missing_package() {
    // apt's own words; the second docker/for-linux issue 1474.
    let early = "E: Release file for http://a/InRelease is not valid yet (invalid for another 5h 41min 53s). Updates for \
                 this repository will not be applied.";
    let unsigned = "W: GPG error: https://a InRelease: The following signatures couldn't be verified because the public \
                    key is not available: NO_PUBKEY 7EA0A9C3F273FCD8\nE: The repository 'https://a InRelease' is not signed.";
    for (refused, code, advice) in [
        (early, Code::PackagesNotFetched, "clock"),
        (unsigned, Code::PackagesNotTrusted, "key of the repository"),
    ] {
        let node = node(Mood::Answers);
        node.spawner.machine(|machine| {
            (machine.lists, machine.refused) = (false, Some(refused.to_string()));
        });
        let first = refused.lines().next().unwrap();
        says(&node.fault().await, code, &["Unable to locate package docker.io", first, advice]);
        assert_eq!(node.calls(), [CE, IO, "update", CE, IO]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_reported_with_the_package_in_the_way() {
    let node = node(Mood::Answers);
    // goharbor/harbor issue 18236, made shorter.
    let words = "The following packages have unmet dependencies:\n containerd.io : Conflicts: containerd\n                 \
                 Conflicts: runc\nE: Unable to correct problems, you have held broken packages.";
    node.spawner.machine(|machine| machine.broken = Some(words.to_string()));
    let named = ["containerd.io : Conflicts: containerd | Conflicts: runc", "engine.packages"];
    says(&node.fault().await, Code::PackagesConflict, &named);
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_waited_for() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| (machine.lists, machine.locked) = (false, 3));
    assert_eq!(node.prepare().await.errors, []);
    assert_eq!(node.calls()[..6], [CE, CE, CE, CE, IO, "update"]);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_not_let_go_ends_the_wait_with_its_holder_named() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| machine.locked = usize::MAX);
    let began = tokio::time::Instant::now();
    says(&node.fault().await, Code::PackageManagerLocked, &["held by process 7 (apt)"]);
    let took = began.elapsed().as_secs();
    assert!((56..=62).contains(&took), "as long as the settings say, not {took} s");
}

#[tokio::test(start_paused = true)]
async fn an_installation_that_was_cut_off_is_finished_first() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| machine.interrupted = 1);
    assert_eq!(node.prepare().await.errors, []);
    assert_eq!(node.calls()[..5], [CE, "dpkg --configure -a", "fix-broken", CE, IO]);
}

#[tokio::test(start_paused = true)]
async fn an_impossible_repair_is_tried_once_and_explained() {
    let node = node(Mood::Answers);
    node.spawner.machine(|machine| machine.interrupted = usize::MAX);
    let commands = ["dpkg --configure -a", "apt-get --fix-broken install"];
    says(&node.fault().await, Code::PackageManagerInterrupted, &commands);
    assert_eq!(node.calls(), [CE, "dpkg --configure -a", "fix-broken", CE]);
}

#[tokio::test(start_paused = true)]
async fn an_engine_whose_packages_were_left_half_way_is_not_taken_for_installed() {
    let node = node(Mood::Answers);
    let root = Root::new(node.folder.path());
    put_executable(&root, "/usr/sbin/dockerd");
    put_package(&root, "docker.io", "ok unpacked");
    assert_eq!(node.prepare().await.errors, []);
    assert_eq!(node.calls()[..2], [CE, IO]);
}

#[tokio::test(start_paused = true)]
async fn a_package_that_apt_takes_for_installed_and_dpkg_does_not_is_unpacked_anew() {
    let node = node(Mood::Answers);
    let root = Root::new(node.folder.path());
    put_executable(&root, "/usr/sbin/dockerd");
    put_package(&root, "docker.io", "reinstreq half-installed");
    assert_eq!(node.prepare().await.errors, []);
    let mended = ["dpkg --configure -a", "fix-broken", "reinstall docker.io"];
    assert_eq!(node.calls()[..5], [&mended[..], &[CE, IO]].concat());
}

#[tokio::test(start_paused = true)]
async fn a_failed_installation_is_reported_in_the_package_managers_words() {
    let node = node(Mood::Answers);
    let words = "E: Sub-process /usr/bin/dpkg returned an error code (1)";
    node.spawner.machine(|machine| machine.broken = Some(words.to_string()));
    let report = node.prepare().await;
    says(&report.errors[0], Code::PackageManagerFailed, &[words, "exit code 100"]);
    assert_eq!(report.steps.last().unwrap().outcome, StepOutcome::Failed);
    assert_eq!(node.calls(), [CE, IO], "no engine is started");
}

#[tokio::test(start_paused = true)]
async fn packages_that_would_go_for_the_engine_stay_and_are_named() {
    let node = node(Mood::Answers);
    let words = "The following packages will be REMOVED:\n  containerd runc\n\
                 E: Packages need to be removed but remove is disabled.";
    node.spawner.machine(|machine| machine.broken = Some(words.to_string()));
    let fault = node.fault().await;
    says(&fault, Code::PackagesConflict, &["containerd, runc", "engine.packages"]);
}
