//! Client of a target's control socket: JSON-RPC 2.0 as SPDK speaks it.
//!
//! ```text
//! Spdk (handle) ──request──▶ connection task ──bytes──▶ socket
//!        ◀──reply by id──          │ one connection, kept; many requests in flight at once
//! ```
//!
//! A target reads requests in a poller that runs every 4 ms. So one connection is kept, and many requests are sent
//! without waiting for replies. [`methods`] has one typed function for each method. The health of a target is evaluated
//! elsewhere.

mod connection;
pub mod disks;
pub mod methods;
pub mod reply;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{timeout, timeout_at};

use self::methods::GET_VERSION;

/// Name of a method: one that the agent knows, or one that an operator configured.
pub type Method = Cow<'static, str>;

/// Maximum requests in flight to one target.
const MOST_UNANSWERED: usize = 1024;
/// Maximum bytes of one request. A request that fills the target's receive buffer (32 KiB in older releases of SPDK,
/// 256 KiB in newer ones) makes the target close the connection, and everything pending on it is lost.
const MOST_BYTES: usize = 32 * 1024 - 1;

/// Maximum characters kept of a target's message.
const MOST_WORDS: usize = 300;

/// Failure of a call to a target.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpdkError {
    /// No process listens at the control socket.
    #[error("nobody listens on {socket}: the target does not run, or has another control socket")]
    Absent { socket: PathBuf, source: Arc<std::io::Error> },
    /// The connection failed for another reason: a process may listen, or not.
    #[error("cannot connect to {socket}")]
    Unreachable { socket: PathBuf, source: Arc<std::io::Error> },
    /// A process listens, but its queue of connections is full.
    #[error(
        "{socket} takes no more connections: the target there is unresponsive, or others fill its queue"
    )]
    QueueFull { socket: PathBuf },
    /// The connection broke before the answer arrived.
    #[error("the target at {socket} closed the connection before it answered {method}")]
    Broken { socket: PathBuf, method: Method, source: Arc<std::io::Error> },
    /// No answer came in time: the target is unresponsive, overloaded or still starting.
    #[error("the target at {socket} did not answer {method} within {within:?}")]
    Timeout { socket: PathBuf, method: Method, within: Duration },
    /// The target answered with an error.
    #[error("{method} was refused by the target at {socket}: {message} ({code})")]
    Refused {
        socket: PathBuf,
        method: Method,
        /// JSON-RPC code or negative errno (meanings: packaging/doc/facts.md, "Errors").
        code: i64,
        /// Message of the target.
        message: String,
    },
    /// The target sent an invalid answer.
    #[error(
        "the target at {socket} answered {method} with something else than was expected: {why}"
    )]
    Garbage {
        socket: PathBuf,
        method: Method,
        /// Reason why the answer is invalid.
        why: String,
    },
    /// The request was not sent: too many are in flight already, or it is too large.
    #[error("{method} was not sent to {socket}: {why}")]
    NotSent { socket: PathBuf, method: Method, why: &'static str },
}

impl SpdkError {
    /// `true` if the target reports that a bdev or controller does not exist. The message is compared, because the
    /// codes differ between methods.
    pub fn is_not_found(&self) -> bool {
        self.says("No such device")
    }

    /// `true` if the target reports that a bdev or controller exists already.
    pub fn is_exists(&self) -> bool {
        self.says("File exists")
    }

    /// `true` if the call was refused or never sent, so that it was certainly not carried out. After any other error it
    /// may have been.
    pub fn is_refusal(&self) -> bool {
        matches!(self, SpdkError::Refused { .. } | SpdkError::NotSent { .. })
    }

    /// `true` if the target does not know the method.
    pub fn is_unknown_method(&self) -> bool {
        /// JSON-RPC code for an unknown method.
        const UNKNOWN_METHOD: i64 = -32601;
        matches!(self, SpdkError::Refused { code: UNKNOWN_METHOD, .. })
    }

    /// `true` if the target reports that a controller is still in use.
    pub fn is_busy(&self) -> bool {
        self.says("Device or resource busy")
    }

    /// `true` if the target could not create a controller: it lacks memory or descriptors, or the path of the socket is
    /// not usable.
    pub fn is_exhausted(&self) -> bool {
        /// JSON-RPC code for parameters that cannot be satisfied.
        const INVALID_PARAMS: i64 = -32602;
        matches!(self, SpdkError::Refused { code: INVALID_PARAMS, .. })
            && self.says("Input/output error")
    }

    fn says(&self, words: &str) -> bool {
        matches!(self, SpdkError::Refused { message, .. } if message.contains(words))
    }
}

/// Truncates a target's message to [`MOST_WORDS`] characters, because it ends up in answers and logs.
fn shortened(mut words: String) -> String {
    if let Some((at, _)) = words.char_indices().nth(MOST_WORDS) {
        words.truncate(at);
        words.push('…');
    }
    words
}

/// Result of a call as unparsed JSON; the caller deserializes it.
pub type RawResult = Box<RawValue>;

/// Request that is queued for the connection task.
#[derive(Debug)]
struct QueuedRequest {
    method: Method,
    params: Option<Value>,
    reply: oneshot::Sender<Result<RawResult, SpdkError>>,
}

/// Client of a target's control socket; clones share one connection.
#[derive(Debug, Clone)]
pub struct Spdk {
    socket: Arc<Path>,
    requests: mpsc::Sender<QueuedRequest>,
    /// Facts about the target that the connection shows.
    heard: Arc<Heard>,
    /// Registry of open requests that change something on the target.
    changes: OpenChanges,
}

/// Facts about the target at the other end of a connection.
#[derive(Debug, Default)]
struct Heard {
    /// Pid of the process that listens, while connected; otherwise 0.
    peer: AtomicU32,
    /// Time of the last reply that came after its caller had timed out.
    late_reply: Mutex<Option<Instant>>,
    /// Version requests that the target has not answered, whether a caller still waits or not.
    questions: watch::Sender<Questions>,
}

/// Open requests for a target's version.
#[derive(Debug, Clone, Copy, Default)]
struct Questions {
    /// Number of requests sent since the last one that was answered.
    open: u32,
    /// Time of the last request.
    sent: Option<Instant>,
}

impl Spdk {
    /// Client of the control socket at `socket`, which connects when first needed.
    pub fn new(socket: impl Into<PathBuf>) -> Spdk {
        Spdk::noting(socket.into(), OpenChanges::default())
    }

    fn noting(socket: PathBuf, changes: OpenChanges) -> Spdk {
        let socket: Arc<Path> = socket.into();
        let (requests, queue) = mpsc::channel(MOST_UNANSWERED);
        let heard = Arc::<Heard>::default();
        tokio::spawn(connection::run(socket.clone(), queue, heard.clone()));
        Spdk { socket, requests, heard, changes }
    }

    /// Time of the last reply that came after its caller had timed out; such replies are the sign of a target that is
    /// only slow.
    pub fn late_reply(&self) -> Option<Instant> {
        *self.heard.late_reply.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, at most `within`, until another version request is permitted, and counts that request as open.
    ///
    /// A request is permitted if fewer than `most` are open, so that a slow target is not queried faster than it
    /// answers. Otherwise it is permitted once `within` times the number of open requests has passed since the last
    /// one, because the target may have lost them.
    ///
    /// # Errors
    /// [`SpdkError::Timeout`] when no request was permitted within `within`.
    pub async fn takes_questions(&self, most: u32, within: Duration) -> Result<(), SpdkError> {
        let mut questions = self.heard.questions.subscribe();
        let deadline = Instant::now() + within;
        loop {
            let now = Instant::now();
            let again = |it: &Questions| it.sent.map_or(now, |sent| sent + within * it.open);
            // Check and count are one atomic step, so that of all waiting callers only as many proceed as are
            // permitted.
            let takes = self.heard.questions.send_if_modified(|it| {
                let takes = it.open < most || again(it) <= now;
                if takes {
                    (it.open, it.sent) = (it.open.saturating_add(1), Some(now));
                }
                takes
            });
            if takes {
                return Ok(());
            }
            if deadline <= now {
                let (socket, method) = (self.socket.to_path_buf(), GET_VERSION.into());
                return Err(SpdkError::Timeout { socket, method, within });
            }
            let next = again(&questions.borrow_and_update()).min(deadline);
            // Cancel-safe: a change that was not observed stays marked as new.
            let _ = timeout_at(next.into(), questions.changed()).await;
        }
    }

    /// Calls a method that changes something, and registers the call while it is open ([`Sockets::open_change`]): the
    /// target may answer nothing else during it.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn change(
        &self,
        method: impl Into<Method>,
        params: Value,
        within: Duration,
    ) -> Result<RawResult, SpdkError> {
        let method = method.into();
        let _open = self.changes.open(&self.socket, method.clone(), within);
        self.call(method, Some(params), within).await
    }

    /// Pid of the process that listens; `None` without a connection to it.
    pub fn peer(&self) -> Option<u32> {
        Some(self.heard.peer.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    /// Path of the control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls a method and waits for its result, at most `within`. Concurrent calls are sent together.
    ///
    /// `params` must be `None` for a method without parameters: some methods refuse an empty object.
    ///
    /// # Errors
    /// Each kind of [`SpdkError`]. After [`SpdkError::Timeout`] and [`SpdkError::Broken`] the target may have carried
    /// out the call, or may do so later.
    pub async fn call(
        &self,
        method: impl Into<Method>,
        params: Option<Value>,
        within: Duration,
    ) -> Result<RawResult, SpdkError> {
        let method = method.into();
        let (reply, answer) = oneshot::channel();
        let request = QueuedRequest { method: method.clone(), params, reply };
        if self.requests.try_send(request).is_err() {
            let why = "too many requests wait for its answers";
            return Err(SpdkError::NotSent { socket: self.socket.to_path_buf(), method, why });
        }
        match timeout(within, answer).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(_)) => Err(self.broken(method, "the runtime ended")),
            Err(_) => Err(SpdkError::Timeout { socket: self.socket.to_path_buf(), method, within }),
        }
    }

    fn broken(&self, method: Method, why: &str) -> SpdkError {
        let source = Arc::new(std::io::Error::other(why.to_string()));
        SpdkError::Broken { socket: self.socket.to_path_buf(), method, source }
    }
}

/// Request that changes something and is not answered yet, with its deadline.
#[derive(Debug, Clone)]
pub struct OpenChange {
    pub method: Method,
    pub until: Instant,
}

/// Open requests that change something, for each control socket; clones share one registry.
#[derive(Debug, Clone, Default)]
struct OpenChanges(Arc<Mutex<BySocket>>);

/// Numbered open requests of each control socket, in the order in which they were sent.
type BySocket = BTreeMap<PathBuf, Vec<(u64, OpenChange)>>;

/// Registration of an open request; dropping it removes the request from the registry.
struct OpenRequest<'a> {
    changes: &'a OpenChanges,
    socket: &'a Path,
    number: u64,
}

impl OpenChanges {
    fn open<'a>(&'a self, socket: &'a Path, method: Method, within: Duration) -> OpenRequest<'a> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_socket = open.entry(socket.to_owned()).or_default();
        let number = of_socket.last().map_or(0, |(last, _)| last + 1);
        of_socket.push((number, OpenChange { method, until: Instant::now() + within }));
        OpenRequest { changes: self, socket, number }
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        let mut open = self.changes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_socket) = open.get_mut(self.socket) {
            of_socket.retain(|(number, _)| *number != self.number);
            if of_socket.is_empty() {
                open.remove(self.socket);
            }
        }
    }
}

/// Clients of all control sockets in use, each with its connection.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    known: Arc<Mutex<BTreeMap<PathBuf, Spdk>>>,
    changes: OpenChanges,
}

impl Sockets {
    /// Maximum number of clients kept; a node has only a few targets.
    const MOST: usize = 64;

    /// Clients with connections of their own and the same registry of open changes: probes over them do not wait behind
    /// requests that change something.
    pub fn apart(&self) -> Sockets {
        Sockets { known: Arc::default(), changes: self.changes.clone() }
    }

    /// Client of the control socket at `path`.
    pub fn at(&self, path: &Path) -> Spdk {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Sockets::MOST && !known.contains_key(path) {
            known.clear();
        }
        let make = || Spdk::noting(path.to_owned(), self.changes.clone());
        known.entry(path.to_owned()).or_insert_with(make).clone()
    }

    /// Open request of the agent that changes something on the target at `path`; of several the one with the latest
    /// deadline.
    pub fn open_change(&self, path: &Path) -> Option<OpenChange> {
        let open = self.changes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_socket = open.get(path)?.iter().map(|(_, change)| change);
        of_socket.max_by_key(|change| change.until).cloned()
    }
}

#[cfg(test)]
#[path = "spdk_tests.rs"]
mod tests;
