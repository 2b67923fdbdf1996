//! Requests to real listeners on this machine's loopback addresses.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::model::egress_policy::EgressPolicy;

/// A listener that answers every request on its connections with 200, and keeps them open.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

async fn server(address: &str) -> Server {
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, heads) =
        (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<String>>>::default());
    let (count, seen) = (connections.clone(), heads.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        let head = String::from_utf8(std::mem::take(&mut head)).unwrap();
                        seen.lock().unwrap().push(head);
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        stream.write_all(answer).await.unwrap();
                    }
                }
            });
        }
    });
    Server { port, connections, heads }
}

async fn get(client: &HttpClient, url: &str, reach: &Reach) -> Result<u16, SendError> {
    let request = Request::get(url).body(Full::default()).unwrap();
    let response = client.send(request, reach).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    // The connection goes back to those that are kept when the answer is read.
    tokio::task::yield_now().await;
    Ok(status)
}

fn within(networks: &[&str]) -> Reach {
    let networks: Vec<_> = networks.iter().map(|network| network.parse().unwrap()).collect();
    EgressPolicy::To(networks.into()).reach(None, None)
}

#[tokio::test]
async fn the_server_sees_the_name_and_nothing_of_the_policy() {
    let server = server("127.0.0.1:0").await;
    let url = format!("http://user:word@localhost:{}/a/b?c=d", server.port);
    // The name leads to ::1 too on most machines, which may not be called here.
    let reach = within(&["127.0.0.1"]);
    assert_eq!(get(&HttpClient::default(), &url, &reach).await.unwrap(), 200);
    let head = server.heads.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("get /a/b?c=d http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: localhost:{}\r\n", server.port)), "{head}");
    assert!(!head.contains("word") && !head.contains("7f000001"), "{head}");
}

#[tokio::test]
async fn what_may_not_be_called_is_not_even_connected_to() {
    let server = server("127.0.0.1:0").await;
    let remote = EgressPolicy::Any.reach(Some("10.0.0.9".parse().unwrap()), None);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.1", "0"] {
        let url = format!("http://{host}:{}/", server.port);
        match get(&HttpClient::default(), &url, &remote).await {
            Err(SendError::Refused { .. }) => {}
            other => panic!("{host}: {other:?}"),
        }
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_kept_connection_is_used_again_but_never_for_who_may_not_call_its_address() {
    let server = server("127.0.0.1:0").await;
    let (client, url) = (HttpClient::default(), format!("http://localhost:{}/", server.port));
    let local = within(&["127.0.0.1"]);
    for _ in 0..3 {
        get(&client, &url, &local).await.unwrap();
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    let remote = EgressPolicy::Any.reach(Some("10.0.0.9".parse().unwrap()), None);
    let refused = get(&client, &url, &remote).await;
    assert!(matches!(refused, Err(SendError::Refused { .. })), "{refused:?}");
    assert_eq!(server.heads.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn an_address_at_which_nobody_listens_is_passed_over_for_the_next() {
    let server = server("127.0.0.1:0").await;
    let target = format!("http://host:{}/x", server.port).parse::<Uri>().unwrap();
    let addresses = ["127.0.0.2", "::1", "127.0.0.1"].map(|a| a.parse().unwrap());
    let written = written::uri(&target, &addresses).unwrap();
    let request = Request::get(written).body(Full::default()).unwrap();
    assert_eq!(HttpClient::default().http.request(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_named() {
    let error = get(&HttpClient::default(), "http://nowhere.invalid/x", &Reach::Anywhere).await;
    match error {
        Err(SendError::Unresolved { host, .. }) => assert_eq!(host, "nowhere.invalid"),
        other => panic!("{other:?}"),
    }
}
