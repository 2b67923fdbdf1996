//! Task that owns the connection to a target: it sends queued requests, and passes each reply to its caller, by id.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::methods::GET_VERSION;
use super::reply::{Reply, ReplyBuffer};
use super::{
    Heard, MOST_BYTES, MOST_UNANSWERED, Method, Questions, QueuedRequest, RawResult, SpdkError,
    shortened,
};

/// Maximum bytes of requests that are sent together.
const BATCH: usize = 256 * 1024;

/// Request whose reply is pending.
struct PendingReply {
    method: Method,
    reply: oneshot::Sender<Result<RawResult, SpdkError>>,
}

/// Runs the connection: connects on the first request, and again for the first request after a connection has ended.
/// Ends when all its handles are dropped.
///
/// `heard` receives the facts about the target that the connection shows.
pub(super) async fn run(
    socket: Arc<Path>,
    mut queue: mpsc::Receiver<QueuedRequest>,
    heard: Arc<Heard>,
) {
    // Request that the previous connection left to the next one.
    let mut left = None;
    loop {
        let first = match left.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        match UnixStream::connect(&socket).await {
            Ok(stream) => {
                heard.peer.store(listener(&stream), Ordering::Relaxed);
                let (read, write) = stream.into_split();
                let unanswered = HashMap::new();
                let mut open =
                    Open { socket: &socket, write, heard: &heard, next_id: 1, unanswered };
                let ended = open.serve(first, read, &mut queue).await;
                heard.peer.store(0, Ordering::Relaxed);
                open.give_up(&ended);
                if let CloseReason::Stale(request) = ended {
                    left = Some(request);
                }
            }
            Err(e) => {
                heard.questions.send_replace(Questions::default());
                let _ = first.reply.send(Err(not_connected(&socket, e)));
            }
        }
    }
}

/// Pid of the process that listens at the other end of `stream` (unix(7), `SO_PEERCRED`); 0 if unknown.
fn listener(stream: &UnixStream) -> u32 {
    let pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
    pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default()
}

fn not_connected(socket: &Path, error: io::Error) -> SpdkError {
    let socket = socket.to_path_buf();
    match error.kind() {
        // connect(2) reports this when the listener's queue of connections is full.
        io::ErrorKind::WouldBlock => SpdkError::QueueFull { socket },
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            SpdkError::Absent { socket, source: Arc::new(error) }
        }
        _ => SpdkError::Unreachable { socket, source: Arc::new(error) },
    }
}

/// Open connection.
struct Open<'a> {
    socket: &'a Path,
    write: OwnedWriteHalf,
    heard: &'a Heard,
    next_id: u64,
    unanswered: HashMap<u64, PendingReply>,
}

/// Reason why a connection is no longer used.
enum CloseReason {
    /// The connection broke.
    Broken(Arc<io::Error>),
    /// The target sent an invalid reply.
    Garbage(String),
    /// The target stopped in the middle of a reply that no caller waits for: this request needs a new connection.
    Stale(QueuedRequest),
    /// Every handle was dropped.
    Done,
}

impl Open<'_> {
    async fn serve(
        &mut self,
        first: QueuedRequest,
        mut read: OwnedReadHalf,
        queue: &mut mpsc::Receiver<QueuedRequest>,
    ) -> CloseReason {
        let mut incoming = ReplyBuffer::default();
        let mut outgoing = Vec::new();
        self.encode(first, &mut outgoing);
        loop {
            if self.unanswered.len() >= MOST_UNANSWERED {
                // Requests whose callers timed out are dropped, so that an unresponsive target does not block further
                // ones.
                self.unanswered.retain(|_, waiting| !waiting.reply.is_closed());
                self.count_questions(0);
            }
            // Queued requests are sent together, unless the connection is to be replaced.
            let stale = incoming.is_half() && self.nobody_waits();
            while self.unanswered.len() < MOST_UNANSWERED
                && outgoing.len() < BATCH
                && !stale
                && let Ok(request) = queue.try_recv()
            {
                self.encode(request, &mut outgoing);
            }
            let may_take = self.unanswered.len() < MOST_UNANSWERED && outgoing.is_empty();
            tokio::select! {
                // Cancel-safe: each byte is either in the buffer or still in the socket.
                read = read.read_buf(incoming.buffer()) => match read {
                    Ok(0) => return broken(io::ErrorKind::UnexpectedEof.into()),
                    Err(e) => return broken(e),
                    Ok(_) => match incoming.replies(|reply| self.deliver(reply)) {
                        Ok(()) => {}
                        Err(why) => return CloseReason::Garbage(shortened(why)),
                    },
                },
                // Cancel-safe: `write` reports the bytes written, and the rest is written later.
                written = self.write.write(&outgoing), if !outgoing.is_empty() => match written {
                    Ok(count) => drop(outgoing.drain(..count)),
                    Err(e) => return broken(e),
                },
                // Cancel-safe: a request stays queued.
                request = queue.recv(), if may_take => match request {
                    // Checked again here: the last caller may have timed out since the round began.
                    Some(request) if incoming.is_half() && self.nobody_waits() => {
                        return CloseReason::Stale(request);
                    }
                    Some(request) => self.encode(request, &mut outgoing),
                    None => return CloseReason::Done,
                },
            }
        }
    }

    fn encode(&mut self, request: QueuedRequest, outgoing: &mut Vec<u8>) {
        let QueuedRequest { method, params, reply } = request;
        // The caller timed out before the request could be sent.
        if reply.is_closed() {
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut call = json!({"jsonrpc": "2.0", "method": method, "id": id});
        if let (Some(params), Some(members)) = (params, call.as_object_mut()) {
            members.insert("params".to_string(), params);
        }
        let bytes = call.to_string();
        if bytes.len() > MOST_BYTES {
            let why = "it is larger than targets take";
            let socket = self.socket.to_path_buf();
            let _ = reply.send(Err(SpdkError::NotSent { socket, method, why }));
            return;
        }
        outgoing.extend_from_slice(bytes.as_bytes());
        self.unanswered.insert(id, PendingReply { method, reply });
    }

    /// Counts the open version requests with an id above `answered`. A target answers them in order, so a request that
    /// it skipped is lost.
    fn count_questions(&self, answered: u64) {
        let is_open = |(id, waiting): &(&u64, &PendingReply)| {
            **id > answered && waiting.method == GET_VERSION
        };
        let open = self.unanswered.iter().filter(is_open).count();
        self.heard.questions.send_modify(|it| it.open = u32::try_from(open).unwrap_or(u32::MAX));
    }

    fn nobody_waits(&self) -> bool {
        self.unanswered.values().all(|waiting| waiting.reply.is_closed())
    }

    fn deliver(&mut self, reply: Reply) {
        // No request matches this reply: it is late, or not for this client. If there was a caller, it has a deadline
        // of its own.
        let id = reply.id.as_u64().unwrap_or_default();
        let Some(waiting) = self.unanswered.remove(&id) else {
            tracing::debug!(
                socket = %self.socket.display(), id = %reply.id,
                "reply {} from {} was dropped: no request with this id is pending",
                reply.id, self.socket.display()
            );
            return;
        };
        if waiting.method == GET_VERSION {
            self.count_questions(id);
        }
        if waiting.reply.is_closed() {
            let mut late = self.heard.late_reply.lock().unwrap_or_else(PoisonError::into_inner);
            *late = Some(Instant::now());
        }
        let (socket, method) = (self.socket.to_path_buf(), waiting.method);
        let result = match (reply.result, reply.error) {
            (_, Some(error)) => {
                let (code, message) = (error.code, shortened(error.message));
                Err(SpdkError::Refused { socket, method, code, message })
            }
            // `null` is a valid result.
            (result, None) => Ok(result.unwrap_or_else(|| RawValue::NULL.to_owned())),
        };
        let _ = waiting.reply.send(result);
    }

    fn give_up(&mut self, ended: &CloseReason) {
        self.heard.questions.send_replace(Questions::default());
        for (_, waiting) in self.unanswered.drain() {
            let (socket, method) = (self.socket.to_path_buf(), waiting.method);
            let error = match ended {
                CloseReason::Broken(source) => {
                    SpdkError::Broken { socket, method, source: source.clone() }
                }
                CloseReason::Garbage(why) => {
                    SpdkError::Garbage { socket, method, why: why.clone() }
                }
                CloseReason::Stale(_) | CloseReason::Done => continue,
            };
            let _ = waiting.reply.send(Err(error));
        }
    }
}

fn broken(error: io::Error) -> CloseReason {
    CloseReason::Broken(Arc::new(error))
}
