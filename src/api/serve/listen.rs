//! Listening sockets: dual stack where the machine has it, IPv4 alone where not.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

/// Limit of connections that the kernel queues until they are accepted.
const BACKLOG: u32 = 4096;
/// Seconds of silence after which a peer is probed by TCP keep-alive.
const KEEP_IDLE: u32 = 60;
/// Seconds between probes, of which there are nine (tcp(7)).
const KEEP_INTERVAL: u32 = 10;

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Accepted connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Accepts the next connection, with its peer's address; `None` at a Unix socket. Cancel-safe: a connection that
    /// was not accepted stays in the backlog.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Some(peer)))
            }
            Listener::Unix(listener) => Ok((Stream::Unix(listener.accept().await?.0), None)),
        }
    }
}

impl Stream {
    /// Sends `answer`, the reason, to a connection that is not served. Does not wait until it is sent.
    pub(super) fn refuse(&self, answer: &[u8]) {
        let _ = match self {
            Stream::Tcp(stream) => stream.try_write(answer),
            Stream::Unix(stream) => stream.try_write(answer),
        };
    }
}

/// Listens on `address`. With `[::]`, accepts IPv4, too; IPv4 alone, if the machine has no IPv6.
///
/// # Errors
/// When the address is in use or not this machine's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match bind(address) {
        Err(e) if address.ip().is_unspecified() && address.is_ipv6() && no_ipv6(&e) => {
            tracing::warn!("this machine has no IPv6: listening on IPv4 alone");
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        bound => bound,
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if address.is_ipv6() {
        // The machine's net.ipv6.bindv6only may say otherwise.
        let v6_only = !address.ip().is_unspecified();
        setsockopt(&socket.as_fd(), sockopt::Ipv6V6Only, &v6_only)?;
    }
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit these options, by which a peer that lost its power is detected.
    setsockopt(&socket.as_fd(), sockopt::KeepAlive, &true)?;
    setsockopt(&socket.as_fd(), sockopt::TcpKeepIdle, &KEEP_IDLE)?;
    setsockopt(&socket.as_fd(), sockopt::TcpKeepInterval, &KEEP_INTERVAL)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn no_ipv6(error: &io::Error) -> bool {
    let known = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| known.contains(&Errno::from_raw(code)))
}
