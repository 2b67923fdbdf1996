//! The task that owns the connection: it sends what comes, and hands each reply to who waits for its id.

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
use super::reply::{Incoming, Reply};
use super::{
    Answer, Heard, MOST_BYTES, MOST_UNANSWERED, Method, Questions, Request, SpdkError, shortened,
};

/// Bytes that are sent together.
const BATCH: usize = 256 * 1024;

/// A reply that is waited for.
struct Waiting {
    method: Method,
    reply: oneshot::Sender<Result<Answer, SpdkError>>,
}

/// Connects when the first request comes, and anew after a connection ended; ends with its handles.
///
/// `heard` tells what the connection says of the target.
pub(super) async fn run(socket: Arc<Path>, mut queue: mpsc::Receiver<Request>, heard: Arc<Heard>) {
    // What an exchanged connection left to the next one.
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
                if let Ended::Stale(request) = ended {
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

/// The pid of the process that listens (unix(7), `SO_PEERCRED`); 0 when it is not to be known.
fn listener(stream: &UnixStream) -> u32 {
    let pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
    pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default()
}

fn not_connected(socket: &Path, error: io::Error) -> SpdkError {
    let socket = socket.to_path_buf();
    match error.kind() {
        // connect(2) on a Unix socket: its queue is full.
        io::ErrorKind::WouldBlock => SpdkError::Crowded { socket },
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            SpdkError::Absent { socket, source: Arc::new(error) }
        }
        _ => SpdkError::Unreachable { socket, source: Arc::new(error) },
    }
}

/// An open connection.
struct Open<'a> {
    socket: &'a Path,
    write: OwnedWriteHalf,
    heard: &'a Heard,
    next_id: u64,
    unanswered: HashMap<u64, Waiting>,
}

/// Why a connection is used no more.
enum Ended {
    /// It broke.
    Broken(Arc<io::Error>),
    /// The target sent what is no reply.
    Garbage(String),
    /// It stopped within a reply that nobody waits for any more: the next request has a new one.
    Stale(Request),
    /// Nobody wants it any more.
    Done,
}

impl Open<'_> {
    async fn serve(
        &mut self,
        first: Request,
        mut read: OwnedReadHalf,
        queue: &mut mpsc::Receiver<Request>,
    ) -> Ended {
        let mut incoming = Incoming::default();
        let mut outgoing = Vec::new();
        self.encode(first, &mut outgoing);
        loop {
            if self.unanswered.len() >= MOST_UNANSWERED {
                // A frozen target must not keep us from asking it again: who gave up is forgotten.
                self.unanswered.retain(|_, waiting| !waiting.reply.is_closed());
                self.count_questions(0);
            }
            // What waits already goes out in one piece.
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
                        Err(why) => return Ended::Garbage(shortened(why)),
                    },
                },
                // Cancel-safe: what was written is told, the rest is tried again.
                written = self.write.write(&outgoing), if !outgoing.is_empty() => match written {
                    Ok(count) => drop(outgoing.drain(..count)),
                    Err(e) => return broken(e),
                },
                // Cancel-safe: a request stays queued.
                request = queue.recv(), if may_take => match request {
                    // Looked at now: who waited may have given up since.
                    Some(request) if incoming.is_half() && self.nobody_waits() => {
                        return Ended::Stale(request);
                    }
                    Some(request) => self.encode(request, &mut outgoing),
                    None => return Ended::Done,
                },
            }
        }
    }

    fn encode(&mut self, request: Request, outgoing: &mut Vec<u8>) {
        let Request { method, params, reply } = request;
        // Its caller's time was up before it could be sent.
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
        self.unanswered.insert(id, Waiting { method, reply });
    }

    /// Counts the questions that are open, of those that were sent after the one that was answered: they are
    /// answered in the order in which they come, and what was left out is lost.
    fn count_questions(&self, answered: u64) {
        let is_open =
            |(id, waiting): &(&u64, &Waiting)| **id > answered && waiting.method == GET_VERSION;
        let open = self.unanswered.iter().filter(is_open).count();
        self.heard.questions.send_modify(|it| it.open = u32::try_from(open).unwrap_or(u32::MAX));
    }

    fn nobody_waits(&self) -> bool {
        self.unanswered.values().all(|waiting| waiting.reply.is_closed())
    }

    fn deliver(&mut self, reply: Reply) {
        // A reply to nobody: late, or not to us. Who asked has his deadline.
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
            // `null` is a result too.
            (result, None) => Ok(result.unwrap_or_else(|| RawValue::NULL.to_owned())),
        };
        let _ = waiting.reply.send(result);
    }

    fn give_up(&mut self, ended: &Ended) {
        self.heard.questions.send_replace(Questions::default());
        for (_, waiting) in self.unanswered.drain() {
            let (socket, method) = (self.socket.to_path_buf(), waiting.method);
            let error = match ended {
                Ended::Broken(source) => {
                    SpdkError::Broken { socket, method, source: source.clone() }
                }
                Ended::Garbage(why) => SpdkError::Garbage { socket, method, why: why.clone() },
                Ended::Stale(_) | Ended::Done => continue,
            };
            let _ = waiting.reply.send(Err(error));
        }
    }
}

fn broken(error: io::Error) -> Ended {
    Ended::Broken(Arc::new(error))
}
