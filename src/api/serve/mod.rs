//! Listeners: admission of connections and requests, and the limits of each connection.
//!
//! ```text
//! accept ─▶ address allowed? ─▶ limiter ─▶ TLS ─▶ head ─▶ token? ─▶ router ─▶ answer
//!              └─ no: 403          └─ full: 503     └─ each with a limit of time ─┘
//! ```
//! A listener has a router and guards: the TLS configuration and the tokens as their files were last read. When the
//! guards change, new connections and requests are authorized by the new ones. Connections that were made under another
//! TLS configuration are closed after the request in progress, and endless replies are authorized again (`AuthorizedUnder`).

mod certificate;
mod connection_limit;
mod listen;
mod request_handler;
mod root;
mod tls;
mod write_timeout;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use futures_util::future::join_all;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tower_http::normalize_path::NormalizePath;
use tracing::Instrument;

pub use self::certificate::{CertificatePatterns, Clients};
use self::connection_limit::{ConnectionAdmission, ConnectionLimiter, Id};
use self::listen::Stream;
pub use self::listen::{Listener, listen};
pub use self::request_handler::AuthorizedUnder;
use self::request_handler::RequestHandler;
pub use self::root::Inodes;
use self::root::{RootLooks, RootVerification};
pub use self::tls::{Material, TlsError, guard as tls_guard};
use self::write_timeout::WriteTimeout;
use super::audit::{self, RefusedCaller};
use super::bearer_tokens::Tokens;
use super::refusals::Refusals;
use crate::model::access::{Peer, Rules};
use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::policy::HttpPolicy;

/// Limit of a request's head, in bytes; a longer one is answered 431, as is one with more than the 100 fields that
/// hyper reads without allocating.
const HEAD_BYTES: usize = 64 * 1024;
/// Shortest time for connections to end once the listeners are closed: an idle one is closed within it.
const LAST_ANSWERS: Duration = Duration::from_millis(250);
/// Reason of a failed TLS handshake, in metrics and log.
const TLS_REASON: &str = "tls-handshake";
/// Answer to a connection beyond the limit, or beyond the quota of its peer.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\
    Content-Type: application/problem+json\r\nContent-Length: 130\r\n\r\n\
    {\"status\":503,\"code\":\"too-many-connections\",\"detail\":\"http.max_connections, or your share of them, are at work: call again later\"}";
/// Answer to a connection from an address that is not allowed.
const NOT_ALLOWED: &[u8] = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\
    Content-Type: application/problem+json\r\nContent-Length: 102\r\n\r\n\
    {\"status\":403,\"code\":\"address-not-allowed\",\"detail\":\"access.allow does not have the address you have\"}";

/// TLS of a listener, and the rules for client certificates.
pub struct TlsGuard {
    pub config: Arc<ServerConfig>,
    /// Rules that give roles to the certificates of clients.
    pub clients: Clients,
    /// Time by which the revocation list is to be replaced, if the list states one.
    pub crl_until: Option<SystemTime>,
}

impl TlsGuard {
    /// Warning for the operator about an outdated revocation list.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let until = self.crl_until.filter(|until| *until < now)?;
        Some(format!(
            "the list of revoked certificates was to be replaced by {} and is still in force: write a new one to tls.client_crl",
            humantime::format_rfc3339_seconds(until)
        ))
    }
}

/// Credentials required at a listener.
#[derive(Clone, Default)]
pub struct Guards {
    /// TLS, with a client certificate where the configuration requires one.
    pub tls: Option<Arc<TlsGuard>>,
    /// Tokens, one of which each request has to carry.
    pub tokens: Option<Tokens>,
}

impl Guards {
    /// `true` if `self` and `other` require the same credentials.
    pub fn is_as(&self, other: &Guards) -> bool {
        same(&self.tls, &other.tls) && self.tokens == other.tokens
    }
}

/// Lookup of the local processes at the other ends of connections.
pub trait KnowsPeers: Send + Sync {
    /// Owner of the socket at `peer` that is connected to `own`.
    fn whose(&self, peer: SocketAddr, own: SocketAddr) -> PeerOwner;

    /// Returns those of `sockets` that only root has open, and only outside of containers. Blocks for some 10 ms on a
    /// large node.
    fn are_held_here(&self, sockets: &Inodes) -> Inodes;
}

/// Owner of the peer's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerOwner {
    /// Socket of another machine.
    Elsewhere,
    /// Socket of this node, of no known process.
    Nobodys,
    /// Socket of a process of this node: its user ID, and the inode of the socket.
    Users(u32, u32),
}

/// Listener with its router and guards.
pub struct Endpoint {
    pub listener: Listener,
    pub router: NormalizePath<Router>,
    /// Permitted callers and their roles.
    pub rules: Arc<Rules>,
    /// Credentials required now.
    pub guards: watch::Receiver<Guards>,
    pub node: Arc<dyn KnowsPeers>,
    pub refusals: Refusals,
    /// Set if the spelling of header names is kept, for forwarded requests.
    pub header_case: bool,
}

/// End of serving: until then connections may go on once the listeners are closed; `None` while they are open.
type Ending = watch::Receiver<Option<Instant>>;

/// Serves until `stop` completes, then waits for the requests in progress, up to the deadline that `stop` returns.
pub async fn serve(
    endpoints: Vec<Endpoint>,
    limits: HttpPolicy,
    stop: impl Future<Output = Instant>,
) {
    let (ending, ended) = watch::channel(None);
    let open = join_all(endpoints.into_iter().map(|endpoint| endpoint.open(limits, ended.clone())));
    let stopped = async {
        ending.send_replace(Some(stop.await));
    };
    tokio::join!(open, stopped);
}

/// Connection limiter, with the means to close its connections.
struct OpenConnections {
    limiter: ConnectionLimiter,
    /// Abort handles of the connections, for a connection that is closed in favour of another.
    closes: HashMap<Id, AbortHandle>,
}

/// Slot of a connection; freed on drop.
struct ConnectionSlot {
    connections: Arc<Mutex<OpenConnections>>,
    id: Id,
}

fn lock(connections: &Mutex<OpenConnections>) -> MutexGuard<'_, OpenConnections> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut connections = lock(&self.connections);
        connections.limiter.leave(self.id);
        connections.closes.remove(&self.id);
    }
}

impl Endpoint {
    async fn open(self, limits: HttpPolicy, ended: Ending) {
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        let limiter = ConnectionLimiter::new(limits.max_connections);
        let connections = Arc::new(Mutex::new(OpenConnections { limiter, closes: HashMap::new() }));
        let looks = Arc::new(RootLooks::new(self.node.clone()));
        let mut ending = ended.clone();
        loop {
            let (stream, peer) = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Out of descriptors, mostly: retrying at once would only burn the CPU.
                        tracing::warn!(
                            error = %e,
                            "a connection to the agent's API could not be accepted: {e}; trying again in 100 ms"
                        );
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                // Cancel-safe: the value stays set.
                _ = ending.wait_for(Option::is_some) => break,
            };
            self.let_in((stream, peer), (&connections, &looks), limits, &ended, &alive);
        }
        drop((self, alive));
        let deadline = *ended.borrow();
        let soon = Instant::now() + LAST_ANSWERS;
        if timeout_at(deadline.unwrap_or(soon).max(soon), all_gone.recv()).await.is_err() {
            tracing::warn!(
                within = ?limits.drain_timeout,
                "connections are still open {:?} after the stop (http.drain_timeout), and are closed at the exit",
                limits.drain_timeout
            );
        }
    }

    /// Peer of a connection, as far as the kernel knows it. Returned with the inode of the peer's socket, if root on
    /// this node has it.
    fn known(&self, stream: &Stream, peer: Option<SocketAddr>) -> (Peer, Option<u32>) {
        let known = match (stream, peer) {
            (Stream::Tcp(stream), Some(peer)) => {
                let caller = Caller::from(peer.ip());
                let own = stream.local_addr().ok();
                match own.map_or(PeerOwner::Elsewhere, |own| self.node.whose(peer, own)) {
                    PeerOwner::Elsewhere => Peer::elsewhere(caller),
                    PeerOwner::Nobodys => Peer::local(caller, None),
                    PeerOwner::Users(uid, inode) => {
                        return (Peer::local(caller, Some(uid)), (uid == 0).then_some(inode));
                    }
                }
            }
            (Stream::Unix(stream), _) => {
                let user = stream.peer_cred().ok();
                Peer::local(Caller::Here, user.map(|user| user.uid()))
            }
            (Stream::Tcp(_), None) => Peer::local(Caller::Here, None),
        };
        (known, None)
    }

    /// Serves a connection in a task of its own, or refuses it.
    fn let_in(
        &self,
        (stream, peer): (Stream, Option<SocketAddr>),
        (connections, looks): (&Arc<Mutex<OpenConnections>>, &Arc<RootLooks>),
        limits: HttpPolicy,
        ended: &Ending,
        alive: &mpsc::Sender<()>,
    ) {
        let (known, root_socket) = self.known(&stream, peer);
        let caller = known.caller;
        let plain = self.guards.borrow().tls.is_none();
        let refuse = |answer| {
            // A TLS client cannot read an answer in plain text.
            if plain {
                stream.refuse(answer);
            }
        };
        if !self.rules.let_in(&known) {
            let reason = Code::AddressNotAllowed.as_str();
            note_refused(&known, "a connection", reason, &self.refusals);
            return refuse(NOT_ALLOWED);
        }
        let mut inside = lock(connections);
        let id = match inside.limiter.enter(caller.into()) {
            ConnectionAdmission::Free(id) => id,
            ConnectionAdmission::InPlaceOf(id, leaves) => {
                if let Some(close) = inside.closes.remove(&leaves) {
                    close.abort();
                }
                id
            }
            ConnectionAdmission::Full => return refuse(FULL),
        };
        let connection = ServedConnection {
            place: Arc::new(ConnectionSlot { connections: connections.clone(), id }),
            router: self.router.clone(),
            guards: self.guards.clone(),
            rules: self.rules.clone(),
            refusals: self.refusals.clone(),
            root: root_socket.map(|inode| RootVerification::new(looks.clone(), inode)),
            peer: known,
            limits,
            header_case: self.header_case,
            ended: ended.clone(),
            _alive: alive.clone(),
        };
        let span = match peer {
            Some(peer) => tracing::info_span!("connection", %peer),
            None => tracing::info_span!("connection", peer = %caller),
        };
        // Under the lock: otherwise the task could end, and remove its handle, before the handle is inserted.
        let task = tokio::spawn(connection.serve(stream).instrument(span));
        inside.closes.insert(id, task.abort_handle());
    }
}

fn note_refused(peer: &Peer, what: &str, reason: &'static str, refusals: &Refusals) {
    let Peer { caller, uid, .. } = *peer;
    let refused = RefusedCaller { by: &peer.to_string(), caller, uid, what };
    audit::refused(refusals, refused, reason);
}

/// Connection that was admitted, with the dependencies of its requests.
struct ServedConnection {
    place: Arc<ConnectionSlot>,
    router: NormalizePath<Router>,
    guards: watch::Receiver<Guards>,
    rules: Arc<Rules>,
    refusals: Refusals,
    /// Verification of a peer that is root on this node.
    root: Option<RootVerification>,
    peer: Peer,
    limits: HttpPolicy,
    header_case: bool,
    ended: Ending,
    /// Sender that is dropped when the connection ends. The listener waits until all of them are dropped.
    _alive: mpsc::Sender<()>,
}

impl ServedConnection {
    async fn serve(mut self, stream: Stream) {
        let tls = self.guards.borrow().tls.clone();
        // Boxed: otherwise the task of a plain connection is as large as that of a TLS connection.
        match (stream, tls) {
            (Stream::Unix(stream), _) => Box::pin(self.talk(stream, None)).await,
            (Stream::Tcp(stream), None) => Box::pin(self.talk(stream, None)).await,
            (Stream::Tcp(stream), Some(tls)) => {
                let shaken = TlsAcceptor::from(tls.config.clone()).accept(stream);
                match timeout(self.limits.header_timeout, shaken).await {
                    Ok(Ok(stream)) => {
                        let shown = stream.get_ref().1.peer_certificates();
                        let shown = shown.and_then(|all| all.first());
                        self.peer.certificate = shown.and_then(|it| tls.clients.credential(it));
                        Box::pin(self.talk(stream, Some(tls))).await;
                    }
                    Ok(Err(e)) => self.no_handshake(&e.to_string()),
                    Err(_) => self.no_handshake("it took too long"),
                }
            }
        }
    }

    fn no_handshake(&self, why: &str) {
        tracing::debug!(error = why, "the TLS handshake with {} failed: {why}", self.peer.caller);
        note_refused(&self.peer, "a TLS handshake", TLS_REASON, &self.refusals);
    }

    async fn talk<S>(self, stream: S, tls: Option<Arc<TlsGuard>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ServedConnection {
            place, router, mut guards, rules, refusals, root, peer, limits, ..
        } = self;
        let (header_case, mut ended, _alive) = (self.header_case, self.ended, self._alive);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .preserve_header_case(header_case)
            .max_header_size(HEAD_BYTES)
            .max_buf_size(HEAD_BYTES);
        let handler =
            RequestHandler { router, guards: guards.clone(), rules, refusals, root, peer, place };
        let stream = TokioIo::new(WriteTimeout::new(stream, limits.write_timeout));
        let connection = http.serve_connection(stream, handler);
        tokio::pin!(connection);
        let last_request = async {
            tokio::select! {
                // Both are cancel-safe; the second is disabled once the sender of the guards is gone.
                _ = ended.wait_for(Option::is_some) => {}
                Ok(_) = guards.wait_for(|guards| !same(&guards.tls, &tls)) => {}
            }
        };
        tokio::select! {
            // An error concerns the peer alone.
            _ = &mut connection => return,
            () = last_request => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

fn same(one: &Option<Arc<TlsGuard>>, other: &Option<Arc<TlsGuard>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::{FULL, NOT_ALLOWED};
    use crate::model::code::Code;

    #[test]
    fn refusals_have_the_length_and_status_that_they_state() {
        for (refusal, code) in
            [(FULL, Code::TooManyConnections), (NOT_ALLOWED, Code::AddressNotAllowed)]
        {
            let text = std::str::from_utf8(refusal).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
            assert!(head.starts_with(&format!("HTTP/1.1 {} ", code.status())), "{head}");
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(
                (&body["code"], &body["status"]),
                (&code.as_str().into(), &code.status().into())
            );
        }
    }
}
