//! The control socket of a target: JSON-RPC 2.0 as SPDK speaks it.
//!
//! ```text
//! Spdk (handle) ──request──▶ connection task ──bytes──▶ socket
//!        ◀──reply by id──          │ one connection, kept; many requests on their way at once
//! ```
//!
//! A target answers out of a poller that looks every 4 ms, so one connection is kept and requests are
//! sent without waiting for each other. [`methods`] has one typed function for each method. What an
//! answer means for a target's health is not judged here.

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

/// A method's name: the agent's own, or what an operator named.
pub type Method = Cow<'static, str>;

/// Requests that may be on their way to one target.
const MOST_UNANSWERED: usize = 1024;
/// Bytes of one request. A target whose receive buffer that fills closes the connection, with all that others
/// wait for on it: 32 KiB in older releases of SPDK, 256 KiB in newer ones.
const MOST_BYTES: usize = 32 * 1024 - 1;

/// Characters of what a target says.
const MOST_WORDS: usize = 300;

/// A call that was not answered with a result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpdkError {
    /// Nobody listens.
    #[error("nobody listens on {socket}: the target does not run, or has another control socket")]
    Absent {
        /// The control socket.
        socket: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// It cannot be told whether somebody listens.
    #[error("cannot connect to {socket}")]
    Unreachable {
        /// The control socket.
        socket: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// Something listens and takes no connection.
    #[error(
        "{socket} takes no more connections: the target there is frozen, or others fill its queue"
    )]
    Crowded {
        /// The control socket.
        socket: PathBuf,
    },
    /// The connection broke before the answer came.
    #[error("the target at {socket} closed the connection before it answered {method}")]
    Broken {
        /// The control socket.
        socket: PathBuf,
        /// The method.
        method: Method,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// No answer in time: a target that is frozen, overloaded or only just starting.
    #[error("the target at {socket} did not answer {method} within {within:?}")]
    Timeout {
        /// The control socket.
        socket: PathBuf,
        /// The method.
        method: Method,
        /// The deadline.
        within: Duration,
    },
    /// It answered with an error.
    #[error("{method} was refused by the target at {socket}: {message} ({code})")]
    Refused {
        /// The control socket.
        socket: PathBuf,
        /// The method.
        method: Method,
        /// JSON-RPC's or a negative errno (`reference/spdk-rpc.md` has which means what).
        code: i64,
        /// The target's words.
        message: String,
    },
    /// What it answered is no answer.
    #[error(
        "the target at {socket} answered {method} with something else than was expected: {why}"
    )]
    Garbage {
        /// The control socket.
        socket: PathBuf,
        /// The method.
        method: Method,
        /// In which way.
        why: String,
    },
    /// Too many requests are on their way already, or one is too large.
    #[error("{method} was not sent to {socket}: {why}")]
    NotSent {
        /// The control socket.
        socket: PathBuf,
        /// The method.
        method: Method,
        /// Why.
        why: &'static str,
    },
}

impl SpdkError {
    /// Whether the target says that a bdev or controller is not there: one cause, several codes.
    pub fn is_not_found(&self) -> bool {
        self.says("No such device")
    }

    /// Whether the target says that a bdev or controller is there already.
    pub fn is_exists(&self) -> bool {
        self.says("File exists")
    }

    /// Whether it was the target's word; after anything else it may have done it, or not.
    pub fn is_refusal(&self) -> bool {
        matches!(self, SpdkError::Refused { .. } | SpdkError::NotSent { .. })
    }

    /// Whether the target does not know the method.
    pub fn is_unknown_method(&self) -> bool {
        /// JSON-RPC's code for it.
        const UNKNOWN_METHOD: i64 = -32601;
        matches!(self, SpdkError::Refused { code: UNKNOWN_METHOD, .. })
    }

    /// Whether the target says that somebody still uses a controller.
    pub fn is_busy(&self) -> bool {
        self.says("Device or resource busy")
    }

    /// Whether the target could not make a controller for want of memory or descriptors, or of a path for its socket.
    pub fn is_exhausted(&self) -> bool {
        /// JSON-RPC's code for what cannot be done with these parameters.
        const INVALID_PARAMS: i64 = -32602;
        matches!(self, SpdkError::Refused { code: INVALID_PARAMS, .. })
            && self.says("Input/output error")
    }

    fn says(&self, words: &str) -> bool {
        matches!(self, SpdkError::Refused { message, .. } if message.contains(words))
    }
}

/// What a target said, as far as it is kept and shown: its words end up in answers and logs.
fn shortened(mut words: String) -> String {
    if let Some((at, _)) = words.char_indices().nth(MOST_WORDS) {
        words.truncate(at);
        words.push('…');
    }
    words
}

/// A result as it came; who knows its form reads it out of the text.
pub type Answer = Box<RawValue>;

/// One request on its way to the connection.
#[derive(Debug)]
struct Request {
    method: Method,
    params: Option<Value>,
    reply: oneshot::Sender<Result<Answer, SpdkError>>,
}

/// A target's control socket; clones share one connection.
#[derive(Debug, Clone)]
pub struct Spdk {
    socket: Arc<Path>,
    requests: mpsc::Sender<Request>,
    /// What its connection tells of the target.
    heard: Arc<Heard>,
    /// Where requests that change something are noted while they are open.
    changes: OpenChanges,
}

/// What a connection tells of the target at its other end.
#[derive(Debug, Default)]
struct Heard {
    /// The pid of the process that listens, while there is a connection; else 0.
    peer: AtomicU32,
    /// When a reply came last that nobody waited for any more.
    late_reply: Mutex<Option<Instant>>,
    /// How many questions for its version are open at the other end, whether somebody still waits or not.
    questions: watch::Sender<Questions>,
}

/// Questions for a target's version.
#[derive(Debug, Clone, Copy, Default)]
struct Questions {
    /// Not answered, nor any that was sent after them.
    open: u32,
    /// When one was sent last.
    sent: Option<Instant>,
}

impl Spdk {
    /// A client for the control socket at `socket`, connected when it is first needed.
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

    /// When a reply came last that nobody waited for any more: the sign of a target that is only slow.
    pub fn late_reply(&self) -> Option<Instant> {
        *self.heard.late_reply.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, within that time, until it may be asked for its version once more, which is counted then.
    ///
    /// Where that many questions are open, a target that is slow must not be asked faster than it answers, and
    /// one that has lost them must be asked again: that is done the later, the more are open.
    ///
    /// # Errors
    /// [`SpdkError::Timeout`] where it answers none of them.
    pub async fn takes_questions(&self, most: u32, within: Duration) -> Result<(), SpdkError> {
        let mut questions = self.heard.questions.subscribe();
        let deadline = Instant::now() + within;
        loop {
            let now = Instant::now();
            let again = |it: &Questions| it.sent.map_or(now, |sent| sent + within * it.open);
            // Taken at once: of all who wait only as many may ask as there is room for.
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
            // Cancel-safe: what was not seen stays new.
            let _ = timeout_at(next.into(), questions.changed()).await;
        }
    }

    /// Calls a method that changes something, which is known while it is open ([`Sockets::open_change`]): the
    /// target may answer nothing else meanwhile.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn change(
        &self,
        method: impl Into<Method>,
        params: Value,
        within: Duration,
    ) -> Result<Answer, SpdkError> {
        let method = method.into();
        let _open = self.changes.open(&self.socket, method.clone(), within);
        self.call(method, Some(params), within).await
    }

    /// The process that listens there, as long as there is a connection to it.
    pub fn peer(&self) -> Option<u32> {
        Some(self.heard.peer.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    /// Where the target listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls a method and waits for its result. Calls made at the same time are sent together.
    ///
    /// `params` must be `None` where the method takes none: an empty object is refused by some.
    ///
    /// # Errors
    /// Each kind of [`SpdkError`]. After [`SpdkError::Timeout`] and [`SpdkError::Broken`] the target
    /// may have done it, or may do it later.
    pub async fn call(
        &self,
        method: impl Into<Method>,
        params: Option<Value>,
        within: Duration,
    ) -> Result<Answer, SpdkError> {
        let method = method.into();
        let (reply, answer) = oneshot::channel();
        let request = Request { method: method.clone(), params, reply };
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

/// A request that changes something and is not answered yet.
#[derive(Debug, Clone)]
pub struct OpenChange {
    /// Its method.
    pub method: Method,
    /// Its deadline.
    pub until: Instant,
}

/// The requests that change something and are open, by control socket; clones are one.
#[derive(Debug, Clone, Default)]
struct OpenChanges(Arc<Mutex<BySocket>>);

/// Each with its number, in the order in which they were opened.
type BySocket = BTreeMap<PathBuf, Vec<(u64, OpenChange)>>;

/// One of them, until it is dropped.
struct Noted<'a> {
    changes: &'a OpenChanges,
    socket: &'a Path,
    number: u64,
}

impl OpenChanges {
    fn open<'a>(&'a self, socket: &'a Path, method: Method, within: Duration) -> Noted<'a> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_socket = open.entry(socket.to_owned()).or_default();
        let number = of_socket.last().map_or(0, |(last, _)| last + 1);
        of_socket.push((number, OpenChange { method, until: Instant::now() + within }));
        Noted { changes: self, socket, number }
    }
}

impl Drop for Noted<'_> {
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

/// The control sockets that were asked, with their connections.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    known: Arc<Mutex<BTreeMap<PathBuf, Spdk>>>,
    changes: OpenChanges,
}

impl Sockets {
    /// Sockets that are kept; a node has a few targets.
    const MOST: usize = 64;

    /// The same with connections of their own, so that probes do not wait behind what changes something.
    pub fn apart(&self) -> Sockets {
        Sockets { known: Arc::default(), changes: self.changes.clone() }
    }

    /// The client of the control socket at `path`.
    pub fn at(&self, path: &Path) -> Spdk {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Sockets::MOST && !known.contains_key(path) {
            known.clear();
        }
        let make = || Spdk::noting(path.to_owned(), self.changes.clone());
        known.entry(path.to_owned()).or_insert_with(make).clone()
    }

    /// The agent's own request at that socket that changes something and may be open for the longest.
    pub fn open_change(&self, path: &Path) -> Option<OpenChange> {
        let open = self.changes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_socket = open.get(path)?.iter().map(|(_, change)| change);
        of_socket.max_by_key(|change| change.until).cloned()
    }
}

#[cfg(test)]
#[path = "spdk_tests.rs"]
mod tests;
