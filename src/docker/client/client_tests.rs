//! Connections to an engine that closes them, and replies of engines that this agent does not know.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::model::fault::chain;

const WITHIN: Duration = Duration::from_secs(5);

/// Engine that answers pings and keeps its connections or closes each after one answer; `connections` counts them.
fn answers_pings(socket: &Path, keeps: bool, connections: Arc<AtomicUsize>) {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK";
                    let sent = stream.write_all(answer).await;
                    if sent.is_err() || !keeps {
                        return;
                    }
                }
            });
        }
    });
}

#[tokio::test]
async fn every_request_needs_consent_also_on_a_kept_connection_or_after_a_broken_one() {
    for (keeps, expected) in [(true, 1), (false, 2)] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let connections = Arc::new(AtomicUsize::new(0));
        answers_pings(&socket, keeps, connections.clone());
        let consent = Arc::new(AtomicBool::new(true));
        let asked = consent.clone();
        let answer: Consent = Arc::new(move |_| {
            let allowed = asked.load(Ordering::SeqCst);
            Box::pin(ready(allowed.then_some(()).ok_or(Refusal::StartsEngine)))
        });
        let docker = DockerClient::new(socket.display().to_string(), answer);
        docker.ping(WITHIN).await.unwrap();
        docker.ping(WITHIN).await.unwrap();
        assert_eq!(connections.load(Ordering::SeqCst), expected);
        consent.store(false, Ordering::SeqCst);
        for _ in 0..3 {
            let refused = docker.ping(WITHIN).await.unwrap_err();
            assert!(matches!(refused, EngineError::Absent { .. }), "{refused:?}");
        }
        assert_eq!(connections.load(Ordering::SeqCst), expected, "none without consent");
        consent.store(true, Ordering::SeqCst);
        docker.ping(WITHIN).await.unwrap();
    }
}

/// Client of an engine that gives to every request the head `headers` and the pieces of `body`, one after the other.
fn engine(headers: &str, body: &[&str]) -> (DockerClient, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let length: usize = body.iter().map(|piece| piece.len()).sum();
    let head = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {length}\r\n\r\n");
    let body: Vec<String> = body.iter().map(ToString::to_string).collect();
    let pieces = [vec![head], body].concat();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, pieces.clone()));
        }
    });
    let consent: Consent = Arc::new(|_| Box::pin(ready(Ok(()))));
    (DockerClient::new(socket.display().to_string(), consent), folder)
}

/// Reads a request without its body, which fits into the socket's buffer, and writes `pieces`.
async fn answer(mut stream: UnixStream, pieces: Vec<String>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        if !stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
            return;
        }
    }
    for piece in pieces {
        let _ = stream.write_all(piece.as_bytes()).await;
        tokio::task::yield_now().await;
    }
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut request).await;
}

/// Container of an engine that is newer than this agent: values and types of the sort that clients generated from the
/// API's description choke on (bollard's issue 293, pop-os/tensorman's pull request 23).
fn container_of_tomorrow() -> serde_json::Value {
    json!({
        "Id": "c0ffee", "Name": "/zbs-vhost", "Created": 1_700_000_000, "Image": "sha256:1",
        "State": {
            "Status": "hibernated", "Running": true, "Paused": null, "Pid": 77, "ExitCode": "none",
            "OOMKilled": null, "Error": null, "Health": {"Status": "dozing", "Log": {"0": "x"}},
            "FinishedAt": 0,
        },
        "Config": {"Labels": {"a": "b", "odd": 7}, "Healthcheck": "none", "ExposedPorts": []},
        "HostConfig": {
            "RestartPolicy": {"Name": "on-tuesdays", "MaximumRetryCount": 3},
            "CgroupnsMode": "shared", "Isolation": 5, "LogConfig": {"Type": "cloud", "Config": []},
        },
        "Mounts": [{"Type": "wormhole", "Propagation": 1}], "GraphDriver": [], "NetworkSettings": 0,
    })
}

#[tokio::test]
async fn container_is_read_in_spite_of_values_that_the_agent_does_not_know() {
    let (docker, _folder) = engine("", &[&container_of_tomorrow().to_string()]);
    let seen = docker.container("zbs-vhost", WITHIN).await.unwrap().unwrap();
    let restarts = Some(Restarts { policy: "on-tuesdays".into(), most: Some(3) });
    let expected = ContainerSeen {
        id: "c0ffee".into(),
        running: true,
        pid: Some(77),
        image_id: "sha256:1".into(),
        labels: [("a".to_string(), "b".to_string())].into(),
        restarts,
        ..ContainerSeen::default()
    };
    assert_eq!(seen, expected);
    assert_eq!(docker.container("c0ff", WITHIN).await.unwrap(), None, "the beginning of an id");
    let refused = docker.set_restarts("c0ffee", seen.restarts.as_ref(), WITHIN).await.unwrap_err();
    assert!(chain(&refused).contains("on-tuesdays"), "{refused:?}");
}

#[tokio::test]
async fn container_of_which_nobody_says_whether_it_runs_is_not_taken_for_stopped() {
    for state in [json!({}), json!(null), json!({"Running": "yes"})] {
        let reply = json!({"Id": "c0ffee", "Name": "/zbs-vhost", "State": state}).to_string();
        let (docker, _folder) = engine("", &[&reply]);
        let error = docker.container("zbs-vhost", WITHIN).await.unwrap_err();
        assert!(chain(&error).contains("no State.Running"), "{error:?}");
    }
}

#[tokio::test]
async fn other_replies_are_read_by_what_the_agent_needs_of_them() {
    let version = json!({
        "Version": "99.1", "ApiVersion": "1.99", "Components": [null, {"Name": 5}, {"Name": "Engine"}],
        "Experimental": "no", "BuildTime": 0, "Platform": "x",
    });
    let (docker, _folder) = engine("", &[&version.to_string()]);
    let expected = EngineVersion { version: "99.1".into(), api: "1.99".parse().unwrap() };
    assert_eq!(docker.version(WITHIN).await.unwrap(), expected);

    let info = json!({
        "CgroupDriver": "quantum", "CgroupVersion": 3, "Isolation": "total", "Plugins": [], "Swarm": "off",
        "Containers": "many", "Runtimes": [], "FirewallBackend": "fog",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": {}, "Mirrors": "none",
            "IndexConfigs": {"odd:1": null, "10.0.0.1:5000": {"Secure": false, "Mirrors": 1}, "b": {"Secure": "no"}},
        },
    });
    let (docker, _folder) = engine("", &[&info.to_string()]);
    for (registry, trusted) in
        [("10.0.0.1:5000", true), ("b", false), ("odd:1", false), ("c", false)]
    {
        assert_eq!(docker.trusts_blindly(registry, WITHIN).await.unwrap(), trusted, "{registry}");
    }

    let image = json!({"Id": "sha256:1", "Created": 0, "Size": "big", "RootFS": 1, "Config": []});
    let (docker, _folder) = engine("", &[&image.to_string()]);
    assert_eq!(docker.image("a:1", WITHIN).await.unwrap(), Some("sha256:1".into()));

    let made = json!({"Id": "c0ffee", "Warnings": "none at all"});
    let (docker, _folder) = engine("", &[&made.to_string()]);
    let spec = ContainerSpec {
        name: "zbs-vhost".into(),
        image: "a:1".into(),
        command: Vec::new(),
        env: Vec::new(),
        binds: Vec::new(),
        isolation: None,
        devices: Vec::new(),
        capabilities: Vec::new(),
        privileged: false,
        cpus: None,
        memory_nodes: None,
        labels: std::collections::BTreeMap::new(),
        cgroup_parent: None,
    };
    assert_eq!(docker.create(&spec, WITHIN).await.unwrap(), "c0ffee");
}

#[tokio::test]
async fn events_and_progress_are_read_across_pieces_and_without_line_ends() {
    let events = [
        r#"{"Type":"wormhole","Action":"start","scope":"galaxy","time":"now","Actor":{"Attributes":{"name":"a","x":1}}}"#,
        "\n{\"Action\":\"exec_create: sh\",\"Actor\":{\"Attributes\":{\"name\":\"b\"}}}{\"Act",
        r#"ion":"rename","Actor":{"Attributes":{"name":"d","oldName":"/c"}}} {"Actor":null} 7 "#,
    ];
    let (docker, _folder) = engine("", &events);
    let named = Mutex::new(Vec::new());
    let told = |event| {
        if let EngineEvent::Container(name) = event {
            named.lock().unwrap().push(name);
        }
    };
    docker.events(told, WITHIN).await.unwrap();
    assert_eq!(*named.lock().unwrap(), ["a", "d", "c"]);

    let progress = [
        "{\"id\":7,\"status\":\"Trying\"}\r\n{\"id\":\"l\",\"status\":\"Downl",
        "oading\",\"progressDetail\":{\"current\":1048576,\"total\":\"?\",\"units\":\"s\"}}\r\n{\"aux\":[]}",
    ];
    let (docker, _folder) = engine("", &progress);
    let lines = Mutex::new(Vec::new());
    let line = |text: String| lines.lock().unwrap().push(text);
    docker.pull("a:1", None, line, WITHIN).await.unwrap();
    let expected = ["Trying", "l: Downloading", "1.0 of 1.0 MiB downloaded"];
    assert_eq!(*lines.lock().unwrap(), expected);

    let failed =
        r#"{"status":"x"}{"errorDetail":{"code":"?","message":"no space"},"error":"no space"}"#;
    let (docker, _folder) = engine("", &[failed]);
    let error = docker.pull("a:1", None, |_| {}, WITHIN).await.unwrap_err();
    assert!(chain(&error).contains("no space"), "{error:?}");
    let tar = || -> Tar { Box::new(std::io::Cursor::new(b"tar".to_vec())) };
    let (docker, _folder) = engine("", &[failed]);
    let error = docker.load(tar(), WITHIN).await.unwrap_err();
    assert!(chain(&error).contains("no space"), "{error:?}");
    let (docker, _folder) = engine("", &[r#"{"stream":["Loaded"],"progressDetail":7}"#]);
    docker.load(tar(), WITHIN).await.unwrap();
    let (docker, _folder) = engine("", &[r#"{"status":"cut o"#]);
    let error = docker.pull("a:1", None, |_| {}, WITHIN).await.unwrap_err();
    assert!(matches!(error, EngineError::Call { call: "pull", .. }), "{error:?}");
}

#[tokio::test]
async fn podman_is_told_by_its_headers_its_components_and_its_socket() {
    // The headers as in pkg/api/server/handler_api.go of podman, the body as in pkg/api/handlers/compat/version.go.
    let components = json!([{"Name": "Podman Engine", "Version": "4.9.4"}, {"Name": "Conmon"}]);
    let version = json!({"Version": "4.9.4", "ApiVersion": "1.41", "Components": components});
    for headers in [
        "Libpod-API-Version: 4.9.4\r\n",
        "Server: Libpod/4.9.4 (linux)\r\n",
        "Server: Docker/24.0.7 (linux)\r\n",
    ] {
        let (docker, _folder) = engine(headers, &[&version.to_string()]);
        let error = docker.version(WITHIN).await.unwrap_err();
        assert!(matches!(error, EngineError::NotDocker { .. }), "{headers}: {error:?}");
        assert!(chain(&error).starts_with("podman"), "{headers}: {error:?}");
        let pinged = docker.ping(WITHIN).await;
        assert_eq!(pinged.is_ok(), headers.contains("Docker"), "{headers}: {pinged:?}");
    }
    let podman = Refusal::NotDocker("podman (/run/podman/podman.sock)".into());
    let consent: Consent = Arc::new(move |_| Box::pin(ready(Err(podman.clone()))));
    let docker = DockerClient::new("/nowhere/docker.sock", consent);
    let error = docker.container("zbs-vhost", WITHIN).await.unwrap_err();
    assert!(matches!(error, EngineError::NotDocker { .. }), "{error:?}");
    assert!(chain(&error).contains("/run/podman/podman.sock"), "{error:?}");
}
