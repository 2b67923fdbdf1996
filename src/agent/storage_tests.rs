//! Packages of the storage's client, with a played package manager; dpkg's records are real files.

use tempfile::TempDir;

use super::*;
use crate::host::Root;
use crate::host::spawn_fake::FakeSpawner;
use crate::model::policy::EnginePolicy;

/// A node with apt, and the client of its storage in the archive.
fn node(policy: StoragePolicy) -> (StorageClient<FakeSpawner>, FakeSpawner, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    let spawner = FakeSpawner::new(&root);
    spawner.machine(|machine| machine.archive.insert("libcbd".to_string()));
    let conf = "/etc/zbs/client.conf".parse().unwrap();
    let observer = StorageObserver::new(&root, spawner.clone(), conf);
    // With these arguments the played apt would refresh its lists instead.
    let engine = EnginePolicy { install_args: vec!["update".into()], ..EnginePolicy::default() };
    let applier = DependencyApplier::new(&root, spawner.clone(), engine);
    (StorageClient::new(observer, applier, policy), spawner, folder)
}

fn wanted(packages: &str) -> Dependencies {
    Dependencies::parse(packages, "").unwrap()
}

fn calls(spawner: &FakeSpawner) -> Vec<String> {
    spawner.machine(|machine| machine.calls.clone())
}

#[tokio::test]
async fn client_that_is_missing_is_installed_and_then_left_as_it_is() {
    let (client, spawner, _folder) = node(StoragePolicy::default());
    assert_eq!(client.provide(wanted("libcbd")).await, Ok(Outcome::Changed));
    assert_eq!(client.provide(wanted("libcbd")).await, Ok(Outcome::Holds));
    assert_eq!(calls(&spawner), ["install libcbd"]);
}

#[tokio::test]
async fn equal_requests_at_the_same_time_are_one_installation() {
    let (client, spawner, _folder) = node(StoragePolicy::default());
    let (one, other) =
        tokio::join!(client.provide(wanted("libcbd")), client.provide(wanted("libcbd")));
    assert_eq!((one, other), (Ok(Outcome::Changed), Ok(Outcome::Changed)));
    assert_eq!(calls(&spawner), ["install libcbd"]);
}

#[tokio::test]
async fn update_without_a_newer_version_is_no_change() {
    let policy = StoragePolicy { update: true, ..StoragePolicy::default() };
    let (client, spawner, _folder) = node(policy);
    assert_eq!(client.provide(wanted("libcbd")).await, Ok(Outcome::Changed));
    assert_eq!(client.provide(wanted("libcbd")).await, Ok(Outcome::Holds));
    assert_eq!(calls(&spawner), ["install libcbd", "install libcbd"]);
}

#[tokio::test]
async fn packages_that_are_there_need_no_turn_and_missing_ones_wait_for_theirs() {
    let policy = StoragePolicy {
        packages: vec!["libcbd".into(), "libcbd-dev".into()],
        ..StoragePolicy::default()
    };
    let (client, spawner, _folder) = node(policy);
    assert_eq!(client.provide(wanted("libcbd")).await, Ok(Outcome::Changed));
    spawner.machine(|machine| {
        machine.archive.insert("libcbd-dev".to_string());
        machine.locked = 2;
    });
    let (held, new) =
        tokio::join!(client.provide(wanted("libcbd")), client.provide(wanted("libcbd-dev")));
    assert_eq!((held, new), (Ok(Outcome::Holds), Ok(Outcome::Changed)));
}

#[tokio::test]
async fn packages_that_the_settings_do_not_list_are_not_installed() {
    let closed = StoragePolicy { packages: Vec::new(), ..StoragePolicy::default() };
    for (policy, packages) in [(closed, "libcbd"), (StoragePolicy::default(), "libcbd,docker.io")] {
        let (client, spawner, _folder) = node(policy);
        let refused = client.provide(wanted(packages)).await.unwrap_err();
        assert_eq!(refused.code, Code::DependencyNotInstalled, "{refused}");
        assert!(refused.text.contains("storage.packages"), "{refused}");
        assert_eq!(calls(&spawner), [] as [&str; 0]);
    }
}

#[tokio::test]
async fn packages_that_no_repository_has_are_named_with_what_to_do() {
    let (client, spawner, _folder) = node(StoragePolicy::default());
    spawner.machine(|machine| machine.archive.clear());
    let failed = client.provide(wanted("libcbd")).await.unwrap_err();
    assert_eq!(failed.code, Code::PackagesNotAvailable, "{failed}");
    assert!(
        failed.text.contains("libcbd") && failed.text.contains("add the repository"),
        "{failed}"
    );
    assert!(
        failed.text.contains("then call again") && !failed.text.contains("engine."),
        "{failed}"
    );
}

#[tokio::test]
async fn a_success_without_the_package_is_a_failure() {
    let policy = StoragePolicy {
        packages: vec!["libcbd".into(), "libcbd-dev".into()],
        ..StoragePolicy::default()
    };
    let (client, spawner, _folder) = node(policy);
    spawner.machine(|machine| machine.archive.insert("libcbd-dev".to_string()));
    // The played package manager records the first one alone.
    let failed = client.provide(wanted("libcbd,libcbd-dev")).await.unwrap_err();
    assert_eq!(failed.code, Code::PackageManagerFailed, "{failed}");
}
