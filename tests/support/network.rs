//! A network of a test's own: loopback, and addresses of which one can be the node's and the others those of
//! machines elsewhere.

use std::net::SocketAddr;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use tokio::net::TcpSocket;

use super::http::{Reply, receive, request};
use super::soon;

/// The node, as others see it.
pub(crate) const NODE: &str = "10.9.0.1";
/// A machine elsewhere …
pub(crate) const ELSEWHERE: &str = "10.9.0.2";
/// … and another one.
pub(crate) const THIRD: &str = "10.9.0.3";

/// Runs a test in a network namespace of its own, with what it starts.
pub(crate) fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    // The namespace is the thread's; threads and commands that it starts are in there too.
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip(&["link", "set", "lo", "up"]);
        for address in [NODE, ELSEWHERE, THIRD] {
            ip(&["address", "add", address, "dev", "lo"]);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

/// One call from an address to the node's.
pub(crate) async fn call_from(
    from: &str,
    port: u16,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let to = SocketAddr::new(NODE.parse().unwrap(), port);
    let mut stream = soon("connected", socket.connect(to)).await.unwrap();
    let mut all = vec![("Connection", "close")];
    all.extend(headers);
    let bytes = request("POST", path, &all, body);
    soon("sent", tokio::io::AsyncWriteExt::write_all(&mut stream, bytes.as_bytes())).await.unwrap();
    receive(&mut stream).await
}
