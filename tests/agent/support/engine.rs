//! An engine that has every image and no container, notes what it is asked to change, and starts nothing.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::Place;

/// Requests that would have changed something: method, path, body.
pub(crate) type Changes = Arc<Mutex<Vec<(String, String, Vec<u8>)>>>;

/// Listens on the node's `/run/docker.sock`.
pub(crate) fn noting_engine(place: &Place) -> Changes {
    listen(place, "Server: Docker/24.0.0 (linux)\r\n")
}

/// Listens there as podman, which names itself in the head of every answer (`apiWrapper` in
/// pkg/api/server/handler_api.go of podman 4.9).
pub(crate) fn noting_podman(place: &Place) -> Changes {
    listen(place, "Libpod-API-Version: 4.9.4\r\nServer: Libpod/4.9.4 (linux)\r\n")
}

fn listen(place: &Place, headers: &'static str) -> Changes {
    std::fs::create_dir_all(place.path("run")).unwrap();
    let engine = UnixListener::bind(place.path("run/docker.sock")).unwrap();
    let changes = Changes::default();
    let noted = changes.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = engine.accept().await {
            tokio::spawn(serve(stream, noted.clone(), headers));
        }
    });
    changes
}

async fn serve(mut stream: UnixStream, changes: Changes, headers: &str) {
    let mut bytes = Vec::new();
    loop {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let whole = end + 4 + length.unwrap_or(0);
        while bytes.len() < whole {
            if matches!(stream.read_buf(&mut bytes).await, Ok(0) | Err(_)) {
                return;
            }
        }
        let body = bytes[end + 4..whole].to_vec();
        bytes.drain(..whole);
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if path.contains("/events") {
            // Nothing ever happens.
            let head = format!("HTTP/1.1 200 OK\r\n{headers}Transfer-Encoding: chunked\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            return std::future::pending().await;
        }
        let (status, answer) = answer(method, path);
        if method != "GET" {
            changes.lock().unwrap().push((method.to_string(), path.to_string(), body));
        }
        let head = format!(
            "HTTP/1.1 {status} X\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        if stream.write_all((head + &answer).as_bytes()).await.is_err() {
            return;
        }
    }
}

fn answer(method: &str, path: &str) -> (u16, String) {
    let json = |value: Value| value.to_string();
    let id = "ab".repeat(32);
    match method {
        "GET" if path.contains("/containers/") => {
            (404, json(serde_json::json!({"message": "none"})))
        }
        "GET" if path.contains("/images/") => {
            (200, json(serde_json::json!({"Id": format!("sha256:{id}")})))
        }
        "GET" if path.ends_with("/version") => {
            (200, json(serde_json::json!({"Version": "24.0.0", "ApiVersion": "1.43"})))
        }
        "GET" => (200, "{}".to_string()),
        "POST" if path.contains("/containers/create") => {
            (201, json(serde_json::json!({"Id": id, "Warnings": []})))
        }
        "DELETE" => (204, String::new()),
        _ => (500, json(serde_json::json!({"message": "nothing is started here"}))),
    }
}
