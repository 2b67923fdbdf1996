//! Connections to an engine that closes them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// Engine that answers pings and keeps its connections or closes each after one answer; `connections` counts them.
fn answers_pings(socket: &std::path::Path, keeps: bool, connections: Arc<AtomicUsize>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
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
            let asked = asked.clone();
            Box::pin(async move { asked.load(Ordering::SeqCst) })
        });
        let docker = DockerClient::new(socket.display().to_string(), answer);
        let within = Duration::from_secs(5);
        docker.ping(within).await.unwrap();
        docker.ping(within).await.unwrap();
        assert_eq!(connections.load(Ordering::SeqCst), expected);
        consent.store(false, Ordering::SeqCst);
        for _ in 0..3 {
            let refused = docker.ping(within).await.unwrap_err();
            assert!(matches!(refused, EngineError::Absent { .. }), "{refused:?}");
        }
        assert_eq!(connections.load(Ordering::SeqCst), expected, "none without consent");
        consent.store(true, Ordering::SeqCst);
        docker.ping(within).await.unwrap();
    }
}
