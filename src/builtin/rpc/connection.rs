//! Connection of the control socket: requests in, answers out.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::super::target::Target;
use super::fault::{INVALID_REQUEST, RpcError};
use super::methods::{CallOutcome, call, call_at_last};

/// Limit of a request in bytes; a larger one closes its connection.
const RECEIVE: usize = 256 << 10;
/// Limit of unread answers in bytes; above it no more is read from the caller.
const SEND: usize = 1 << 20;
/// Limit of an id in bytes, as JSON.
const ID: usize = 128;

/// Closed or unusable connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// Call whose answer is not known yet.
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

/// JSON-RPC request.
struct RpcRequest {
    id: Option<Value>,
    method: String,
    params: Option<Value>,
}

/// Members of a request, or the id of an invalid one.
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

/// `true` also without a version, as SPDK accepts such requests.
fn is_version_2(version: Option<Value>) -> bool {
    version.is_none_or(|version| version == "2.0")
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), answers: Vec::new(), waiting: Vec::new() }
    }

    /// `true` if there are answers that the caller has not read.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.answers.is_empty()
    }

    /// `true` if requests are read from the caller.
    pub(super) fn wants_to_read(&self) -> bool {
        self.answers.len() < SEND
    }

    /// Earliest timeout of the waiting calls.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|waiting| waiting.until).min()
    }

    /// Reads the available bytes and executes the requests in them.
    ///
    /// # Errors
    /// When the caller is gone, sends invalid JSON, or too much of it.
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

    /// Executes every complete request.
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
            // A notification is executed, and not answered.
            (_, None) => {}
        }
    }

    /// Retries the waiting calls, after something has changed or time has passed.
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

    /// Writes as much as the socket takes now.
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
