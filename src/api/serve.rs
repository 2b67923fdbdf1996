//! The listener: dual stack, bounded, with deadlines for slow heads, drained at the end.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower::util::MapRequest;
use tower_http::normalize_path::NormalizePath;
use tracing::Instrument;

use crate::model::caller::Caller;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// A request's head, in bytes; what is longer is answered 431.
const HEAD_BYTES: usize = 64 * 1024;
/// What a connection too many is told.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\
    Content-Type: application/problem+json\r\nContent-Length: 120\r\n\r\n\
    {\"status\":503,\"code\":\"too-many-connections\",\"detail\":\"http.max_connections are open already: close some, or call later\"}";

/// Limits of the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time.
    pub connections: usize,
    /// How long a head may take, and how long a connection may lie idle.
    pub head: Duration,
    /// How long connections may go on after the stop was asked for.
    pub drain: Duration,
}

/// Listens on `address`; `[::]` takes IPv4 too, and where the machine has no IPv6, IPv4 alone.
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
        // net.ipv6.bindv6only may say otherwise for the machine.
        let v6_only = !address.ip().is_unspecified();
        setsockopt(&socket.as_fd(), sockopt::Ipv6V6Only, &v6_only)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn no_ipv6(error: &io::Error) -> bool {
    let known = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| known.contains(&Errno::from_raw(code)))
}

/// Serves until `stop` is done, then lets the connections at work end within the drain limit.
pub async fn serve(
    listener: TcpListener,
    router: NormalizePath<Router>,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD_BYTES);
    tokio::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            // Cancel-safe: a connection that was not accepted stays in the backlog.
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of descriptors, mostly: trying again at once would only burn the CPU.
                    tracing::warn!(error = %e, "a connection could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            refuse(stream);
            continue;
        };
        let _ = stream.set_nodelay(true);
        let caller = Caller::from(peer.ip());
        let told = move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller);
            request
        };
        let service = TowerToHyperService::new(MapRequest::new(router.clone(), told));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let connection = async move {
            // How a connection ends is its peer's business.
            let _ = connection.await;
            drop(place);
        };
        tokio::spawn(connection.instrument(tracing::info_span!("connection", %peer)));
    }
    drop(listener);
    if timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(within = ?limits.drain, "connections were still open when their time was up");
    }
}

/// Tells a connection too many so, without waiting for it.
fn refuse(stream: TcpStream) {
    let _ = stream.try_write(FULL);
}

#[cfg(test)]
mod tests {
    use super::FULL;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
