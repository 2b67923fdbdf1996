//! Task that owns the connection: it sends queued requests, and routes each reply by id to its caller.

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

/// Maximum bytes sent together.
const BATCH: usize = 256 * 1024;

/// Request whose reply is pending.
struct PendingReply {
    method: Method,
    reply: oneshot::Sender<Result<RawResult, SpdkError>>,
}

/// Connects on the first request, and again after a connection ended; ends when its handles are dropped.
///
/// `heard` receives the connection's facts about the target.
pub(super) async fn run(
    socket: Arc<Path>,
    mut queue: mpsc::Receiver<QueuedRequest>,
    heard: Arc<Heard>,
) {
    // A request that a replaced connection left to the next one.
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

/// Pid of the listening process (unix(7), `SO_PEERCRED`); 0 if unknown.
fn listener(stream: &UnixStream) -> u32 {
    let pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
    pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default()
}

fn not_connected(socket: &Path, error: io::Error) -> SpdkError {
    let socket = socket.to_path_buf();
    match error.kind() {
        // connect(2) on a Unix socket: its queue is full.
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
    /// The target stopped within a reply that no caller waits for: the next request needs a new connection.
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
                // An unresponsive target must not block further requests: those whose caller timed out are dropped.
                self.unanswered.retain(|_, waiting| !waiting.reply.is_closed());
                self.count_questions(0);
            }
            // Queued requests go out in one piece.
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
                // Cancel-safe: bytes are either in the buffer or still in the socket.
                read = read.read_buf(incoming.buffer()) => match read {
                    Ok(0) => return broken(io::ErrorKind::UnexpectedEof.into()),
                    Err(e) => return broken(e),
                    Ok(_) => match incoming.replies(|reply| self.deliver(reply)) {
                        Ok(()) => {}
                        Err(why) => return CloseReason::Garbage(shortened(why)),
                    },
                },
                // Cancel-safe: written bytes are reported, the rest is tried again.
                written = self.write.write(&outgoing), if !outgoing.is_empty() => match written {
                    Ok(count) => drop(outgoing.drain(..count)),
                    Err(e) => return broken(e),
                },
                // Cancel-safe: a request stays queued.
                request = queue.recv(), if may_take => match request {
                    // Checked now: the last caller may have timed out since.
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
        // Its caller timed out before it could be sent.
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

    /// Counts the open version requests that were sent after the answered one: they are answered in order, and a
    /// skipped one is lost.
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
        // A reply that no request matches: late, or not to this client. Its caller has a deadline of its own.
        let id = reply.id.as_u64().unwrap_or_default();
        let Some(waiting) = self.unanswered.remove(&id) else {
            tracing::debug!(socket = %self.socket.display(), id = %reply.id, "a reply that nobody waits for");
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
