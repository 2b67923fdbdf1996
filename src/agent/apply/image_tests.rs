//! Pulls by an engine that is played.

use std::sync::Mutex;

use tokio::sync::Semaphore;

use super::*;
use crate::docker::fake::{FakeContainers, FakeRegistry};
use crate::model::policy::EnginePolicy;
use crate::model::registry::{RegistryLogin, RegistryPolicy, Secret};
use crate::outgoing::SendError;

const IMAGE: &str = "10.0.0.1:5000/vhost:1";

fn images(registry: FakeRegistry, registries: RegistryPolicy) -> Images<FakeContainers> {
    let containers = Arc::new(FakeContainers::with_registry(registry));
    Images::new(
        &Root::new("/nowhere"),
        containers,
        &TargetPolicy { registries, ..TargetPolicy::example() },
    )
}

fn trusting() -> RegistryPolicy {
    let engine = EnginePolicy { insecure_registries: true, ..EnginePolicy::default() };
    RegistryPolicy { engine, ..RegistryPolicy::default() }
}

async fn pull(images: &Images<FakeContainers>) -> Result<String, Fault> {
    images.load(IMAGE, &[ImageSource::Registry], &|_| {}).await
}

#[tokio::test]
async fn many_who_want_the_same_image_at_once_share_one_pull() {
    let permits = Arc::new(Semaphore::new(0));
    let images = images(FakeRegistry::Gives(permits.clone()), RegistryPolicy::default());
    let lines = Mutex::new(Vec::new());
    let line = |text: String| lines.lock().unwrap().push(text);
    let registry = [ImageSource::Registry];
    let opened = async {
        // By now all three wait.
        tokio::task::yield_now().await;
        permits.add_permits(1);
    };
    let (first, second, third, ()) = tokio::join!(
        images.load(IMAGE, &registry, &line),
        images.load(IMAGE, &registry, &line),
        images.load(IMAGE, &registry, &line),
        opened
    );
    for outcome in [first, second, third] {
        assert_eq!(outcome.unwrap(), "sha256:1");
    }
    assert_eq!(images.containers.pulled(), [IMAGE]);
    assert_eq!(lines.lock().unwrap().len(), 2, "who waits is told: {lines:?}");
    permits.add_permits(1);
    pull(&images).await.unwrap();
    assert_eq!(images.containers.pulled().len(), 2, "a later one pulls anew");
}

#[tokio::test]
async fn a_pull_that_fails_fails_for_all_who_wait_for_it() {
    let images = images(FakeRegistry::Refuses("no such image"), RegistryPolicy::default());
    let (first, second) = tokio::join!(pull(&images), pull(&images));
    for outcome in [first, second] {
        let fault = outcome.unwrap_err();
        assert_eq!(fault.code, Code::ImageLoadFailed);
        assert!(fault.text.contains("no such image"), "{fault}");
    }
}

#[tokio::test]
async fn registry_credentials_are_used_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let here = RegistryLogin {
        username: "node".into(),
        password: Secret::new("hunter2"),
        ..RegistryLogin::default()
    };
    let refused = "unauthorized: authentication required";
    for (host, login) in [("10.0.0.1:5000", true), ("10.0.0.2:5000", false)] {
        let logins = [(host.to_string(), here.clone())].into();
        let policy = RegistryPolicy { logins, ..RegistryPolicy::default() };
        let images = images(FakeRegistry::Refuses(refused), policy);
        let fault = pull(&images).await.unwrap_err();
        let who = if login { " node:hunter2" } else { "" };
        assert_eq!(images.containers.pulled(), [format!("{IMAGE}{who}")]);
        assert!(fault.text.contains("[registry.\"10.0.0.1:5000\"]"), "{fault}");
        assert!(!fault.text.contains("hunter2") && !format!("{images:?}").contains(": \"hunter2"));
    }
    let file = folder.path().join("absent").display().to_string();
    let absent = RegistryLogin { password_file: file, ..here };
    let logins = [("10.0.0.1:5000".to_string(), absent)].into();
    let policy = RegistryPolicy { logins, ..RegistryPolicy::default() };
    let images = images(FakeRegistry::Refuses(refused), policy);
    let fault = pull(&images).await.unwrap_err();
    assert!(fault.text.contains("no password for 10.0.0.1:5000: cannot read"), "{fault}");
    assert_eq!(images.containers.pulled(), [""; 0]);
}

#[tokio::test]
async fn a_registry_that_cannot_prove_who_it_is_is_trusted_only_when_that_is_allowed() {
    for words in [
        "http: server gave HTTP response to HTTPS client",
        "x509: certificate signed by unknown authority",
        "x509: certificate is valid for a, not b",
        "x509: certificate has expired or is not yet valid",
        "x509: certificate is not valid for any names, but wanted to match b",
    ] {
        let text = pull(&images(FakeRegistry::Refuses(words), RegistryPolicy::default()))
            .await
            .unwrap_err();
        assert!(text.text.contains("engine.insecure_registries = true"), "{text}");
        let allowed = trusting();
        let text = pull(&images(FakeRegistry::Refuses(words), allowed)).await.unwrap_err();
        assert!(text.text.contains("cannot be told to trust 10.0.0.1:5000"), "{text}");
    }
    for words in ["dial tcp 10.0.0.1:5000: connect: connection refused", "something new"] {
        let images = images(FakeRegistry::Refuses(words), trusting());
        let text = pull(&images).await.unwrap_err();
        assert!(text.text.contains(words) && !text.text.contains("trust"), "{text}");
    }
    // Docker's own registry has no name that could stand in daemon.json.
    let images =
        images(FakeRegistry::Refuses("x509: certificate signed by unknown authority"), trusting());
    let text = images.load("vhost:1", &[ImageSource::Registry], &|_| {}).await.unwrap_err();
    assert!(text.text.contains("certs.d/docker.io/") && !text.text.contains("trust"), "{text}");
}

#[test]
fn a_full_disk_and_a_refused_certificate_come_with_advice() {
    // Text of Docker 20.10 for an image that does not fit.
    let message =
        "write /var/lib/docker/tmp/docker-import-1/layer.tar: no space left on device".to_string();
    let (socket, call) = ("/run/docker.sock".to_string(), "load");
    let text = not_loaded(&EngineError::Refused { socket, call, status: 500, message });
    assert!(text.contains("docker info"), "{text}");
    // Texts of rustls 0.23, src/error.rs.
    for (words, advice) in [
        (
            "certificate expired: verification time 1 (UNIX), but certificate is not valid after 0",
            "clock",
        ),
        (
            "certificate not valid yet: verification time 0 (UNIX), but certificate is not valid before 1",
            "clock",
        ),
        (
            "certificate not valid for name \"a\"; certificate is only valid for b",
            "name the server",
        ),
        ("UnknownIssuer", "update-ca-certificates"),
    ] {
        let source = std::io::Error::other(format!("invalid peer certificate: {words}"));
        let source = SendError::Certificates(source);
        let text = not_fetched(&DownloadError::Unreachable { url: "https://a".into(), source });
        assert!(text.contains(words) && text.contains(advice), "{text}");
    }
}
