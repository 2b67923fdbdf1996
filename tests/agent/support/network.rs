//! A network of a test's own: loopback, and addresses of which one can be the node's and the others those of
//! machines elsewhere.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Uid, setfsuid};
use tokio::net::{TcpSocket, TcpStream};

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
    let stream = soon("connected", socket.connect(to)).await.unwrap();
    call_on(stream, "POST", path, headers, body).await
}

/// The node, as the other machine of [`Far`] sees it.
pub(crate) const NEAR: &str = "10.8.0.1";
/// That other machine.
pub(crate) const FAR: &str = "10.8.0.2";

/// Another machine: a network namespace of its own, with a cable to the one that a test is in.
pub(crate) struct Far {
    holder: Child,
    own: File,
    there: File,
}

impl Far {
    /// Lays the cable; the test has to be alone in its namespace.
    pub(crate) fn new() -> Far {
        let holder = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let namespace = format!("/proc/{}/ns/net", holder.id());
        let own = File::open("/proc/thread-self/ns/net").unwrap();
        // It is in the namespace of this thread until it has left it.
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        while std::fs::read_link(&namespace).unwrap() == here {
            std::thread::yield_now();
        }
        let pid = holder.id().to_string();
        ip(&["link", "add", "near", "type", "veth", "peer", "name", "far", "netns", &pid]);
        ip(&["address", "add", &format!("{NEAR}/24"), "dev", "near"]);
        ip(&["link", "set", "near", "up"]);
        let far = Far { holder, own, there: File::open(namespace).unwrap() };
        far.inside(|| {
            ip(&["link", "set", "lo", "up"]);
            ip(&["address", "add", &format!("{FAR}/24"), "dev", "far"]);
            ip(&["link", "set", "far", "up"]);
        });
        far
    }

    fn inside<T>(&self, done: impl FnOnce() -> T) -> T {
        setns(&self.there, CloneFlags::CLONE_NEWNET).unwrap();
        let result = done();
        setns(&self.own, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    /// A connection from there to that port of the node.
    pub(crate) async fn connect(&self, port: u16) -> TcpStream {
        self.connect_from(0, port).await
    }

    /// The same from a port of its choice; from any with 0.
    pub(crate) async fn connect_from(&self, own: u16, port: u16) -> TcpStream {
        // A socket stays in the namespace in which it was made.
        let socket = self.inside(|| TcpSocket::new_v4().unwrap());
        socket.bind(SocketAddr::new(FAR.parse().unwrap(), own)).unwrap();
        let to = SocketAddr::new(NEAR.parse().unwrap(), port);
        soon("connected", socket.connect(to)).await.unwrap()
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Does something as another user: sockets that are made then are that user's.
pub(crate) fn as_user<T>(uid: u32, done: impl FnOnce() -> T) -> T {
    let before = setfsuid(Uid::from_raw(uid));
    let result = done();
    setfsuid(before);
    result
}

/// One call on a connection.
pub(crate) async fn call_on(
    mut stream: TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut all = vec![("Connection", "close")];
    all.extend(headers);
    let bytes = request(method, path, &all, body);
    soon("sent", tokio::io::AsyncWriteExt::write_all(&mut stream, bytes.as_bytes())).await.unwrap();
    receive(&mut stream).await
}
