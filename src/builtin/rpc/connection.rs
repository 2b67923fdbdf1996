//! Connection of a client to the control socket: requests in, answers out.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::super::target::Target;
use super::fault::{INVALID_REQUEST, RpcError};
use super::methods::{CallOutcome, call, call_at_last};

/// Maximum size of a request in bytes; a larger one closes the connection.
const RECEIVE: usize = 256 << 10;
/// Maximum size in bytes of answers that the client has not read; above it no requests are read.
const SEND: usize = 1 << 20;
/// Maximum size of a request's id in bytes, as JSON.
const ID: usize = 128;

/// Error of a connection that is closed or unusable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// Call that waits for its answer, until the time `until` if that is set.
#[derive(Debug)]
struct OpenCall {
    id: Value,
    method: String,
    params: Option<Value>,
    until: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    received: Vec<u8>,
    answers: Vec<u8>,
    waiting: Vec<OpenCall>,
}

struct RpcRequest {
    id: Option<Value>,
    method: String,
    params: Option<Value>,
}

/// Parses a request; the error is the id to answer with, null if it is unusable.
fn request(value: Value) -> Result<RpcRequest, Value> {
    let Value::Object(mut members) = value else { return Err(Value::Null) };
    let id = members.remove("id");
    let short = |id: &Value| id.is_null() || id.to_string().len() <= ID;
    let short_id = id.clone().filter(short).unwrap_or(Value::Null);
    if !id.as_ref().is_none_or(short) || !is_version_2(members.remove("jsonrpc")) {
        return Err(short_id);
    }
    let params = members.remove("params");
    if !params.as_ref().is_none_or(|params| params.is_object() || params.is_array()) {
        return Err(short_id);
    }
    match (members.remove("method"), Map::is_empty(&members)) {
        (Some(Value::String(method)), true) => Ok(RpcRequest { id, method, params }),
        _ => Err(short_id),
    }
}

/// `true` if `version` is 2.0 or missing: SPDK accepts requests without a version.
fn is_version_2(version: Option<Value>) -> bool {
    version.is_none_or(|version| version == "2.0")
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), answers: Vec::new(), waiting: Vec::new() }
    }

    /// `true` if there are answers to write.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.answers.is_empty()
    }

    /// `true` if requests may be read: few enough bytes of answers are unread.
    pub(super) fn wants_to_read(&self) -> bool {
        self.answers.len() < SEND
    }

    /// Earliest time at which a waiting call times out.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|waiting| waiting.until).min()
    }

    /// Reads the available bytes and executes the requests in them.
    ///
    /// # Errors
    /// When the client is gone, or sends invalid JSON or too large a request.
    pub(super) fn read(&mut self, target: &mut Target) -> Result<(), Closed> {
        let mut bytes = [0; 16384];
        while self.wants_to_read() {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Closed),
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(Closed),
            }
            self.serve(target)?;
        }
        self.write()
    }

    /// Executes every complete request received.
    fn serve(&mut self, target: &mut Target) -> Result<(), Closed> {
        let received = std::mem::take(&mut self.received);
        let mut values = serde_json::Deserializer::from_slice(&received).into_iter::<Value>();
        let mut done = 0;
        loop {
            match values.next() {
                Some(Ok(value)) => {
                    done = values.byte_offset();
                    self.begin(target, value);
                }
                None => break,
                Some(Err(error)) if error.is_eof() => break,
                Some(Err(_)) => return Err(Closed),
            }
        }
        let rest = received[done..].trim_ascii_start();
        if rest.len() >= RECEIVE {
            return Err(Closed);
        }
        self.received = rest.to_vec();
        Ok(())
    }

    fn begin(&mut self, target: &mut Target, value: Value) {
        let RpcRequest { id, method, params } = match request(value) {
            Ok(request) => request,
            Err(id) => {
                return self.answer(&id, Err(RpcError::new(INVALID_REQUEST, "Invalid request")));
            }
        };
        match (call(target, &method, params.clone()), id) {
            (CallOutcome::Now(result), Some(id)) => self.answer(&id, result),
            (CallOutcome::Later(timeout), Some(id)) => {
                let until = timeout.map(|timeout: Duration| Instant::now() + timeout);
                self.waiting.push(OpenCall { id, method, params, until });
            }
            // A request without an id is executed but not answered.
            (_, None) => {}
        }
    }

    /// Retries the waiting calls: something may have changed, or a timeout may have passed.
    ///
    /// # Errors
    /// When the caller is gone.
    pub(super) fn ask_again(&mut self, target: &mut Target) -> Result<(), Closed> {
        for waiting in std::mem::take(&mut self.waiting) {
            let over = waiting.until.is_some_and(|until| Instant::now() >= until);
            let ask = if over { call_at_last } else { call };
            match ask(target, &waiting.method, waiting.params.clone()) {
                CallOutcome::Now(result) => self.answer(&waiting.id, result),
                CallOutcome::Later(_) => self.waiting.push(waiting),
            }
        }
        self.write()
    }

    fn answer(&mut self, id: &Value, result: Result<Value, RpcError>) {
        let answer = match result {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            Err(fault) => json!({ "jsonrpc": "2.0", "id": id, "error": fault.value() }),
        };
        self.answers.extend(answer.to_string().into_bytes());
        self.answers.push(b'\n');
    }

    /// Writes as many bytes of answers as the socket takes now.
    ///
    /// # Errors
    /// When the caller is gone.
    pub(super) fn write(&mut self) -> Result<(), Closed> {
        while !self.answers.is_empty() {
            match self.stream.write(&self.answers) {
                Ok(0) => return Err(Closed),
                Ok(count) => drop(self.answers.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }
}
