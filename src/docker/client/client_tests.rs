//! Connections to an engine that closes them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// Engine that answers one ping on each connection and then closes it; `connections` counts them.
fn closes_after_each_answer(socket: &std::path::Path, connections: Arc<AtomicUsize>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK";
            let _ = stream.write_all(answer).await;
        }
    });
}

#[tokio::test]
async fn every_connection_needs_consent_also_in_place_of_a_broken_one() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let connections = Arc::new(AtomicUsize::new(0));
    closes_after_each_answer(&socket, connections.clone());
    let consent = Arc::new(AtomicBool::new(true));
    let asked = consent.clone();
    let may_connect = Arc::new(move || asked.load(Ordering::SeqCst));
    let docker = DockerClient::new(socket.display().to_string(), may_connect);
    let within = Duration::from_secs(5);
    docker.ping(within).await.unwrap();
    docker.ping(within).await.unwrap();
    let before = connections.load(Ordering::SeqCst);
    consent.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        let refused = docker.ping(within).await.unwrap_err();
        assert!(matches!(refused, EngineError::Absent { .. }), "{refused:?}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), before, "none without consent");
    consent.store(true, Ordering::SeqCst);
    docker.ping(within).await.unwrap();
}
