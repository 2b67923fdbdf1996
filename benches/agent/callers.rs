//! Many callers in one thread, each with one call after the other: all that they do is to write a request
//! and to read until its answer is whole.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dial::{AsyncDuplex, Door};
use crate::figures::Samples;
use crate::http::request;

/// What a caller does with its connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connections {
    /// Keeps it.
    Kept,
    /// Closes it: each call has one of its own, which is made within the call's time.
    OneEach,
}

/// Callers that are alike.
#[derive(Clone)]
pub(crate) struct Callers {
    pub(crate) door: Door,
    /// The bytes of the request.
    pub(crate) request: Arc<[u8]>,
    pub(crate) at_once: usize,
    pub(crate) connections: Connections,
}

/// Where a run stands; calls count that begin and end while it counts.
#[derive(Debug, Default)]
pub(crate) struct Stage(AtomicU8);

const COUNTS: u8 = 1;
const ENDS: u8 = 2;

impl Stage {
    pub(crate) fn counts(&self) {
        self.0.store(COUNTS, Ordering::Relaxed);
    }

    pub(crate) fn ends(&self) {
        self.0.store(ENDS, Ordering::Relaxed);
    }

    pub(crate) fn is_counting(&self) -> bool {
        self.0.load(Ordering::Relaxed) == COUNTS
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ENDS
    }
}

impl Callers {
    /// The bytes of a call.
    pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> Arc<[u8]> {
        request(method, path, headers, body).into_bytes().into()
    }

    /// Lets them call until the run ends; how long each counted call took.
    ///
    /// # Errors
    /// The first call that failed.
    pub(crate) async fn call(self, stage: Arc<Stage>) -> Result<Samples> {
        let begin = |_| tokio::spawn(self.clone().one(stage.clone()));
        let tasks: Vec<_> = (0..self.at_once).map(begin).collect();
        let mut all = Samples::default();
        for task in tasks {
            for took in task.await?.context("a call failed under load")? {
                all.push(took);
            }
        }
        Ok(all)
    }

    async fn one(self, stage: Arc<Stage>) -> io::Result<Vec<Duration>> {
        let (mut took, mut kept) = (Vec::new(), None);
        while !stage.has_ended() {
            let counts = stage.is_counting();
            let began = Instant::now();
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => self.door.open().await?,
            };
            ask(&mut *stream, &self.request).await?;
            if counts && stage.is_counting() {
                took.push(began.elapsed());
            }
            kept = Some(stream).filter(|_| self.connections == Connections::Kept);
        }
        Ok(took)
    }
}

/// One call, which has to be answered 200.
pub(crate) async fn ask(stream: &mut dyn AsyncDuplex, request: &[u8]) -> io::Result<()> {
    stream.write_all(request).await?;
    // TLS keeps what was written until it is told to send it.
    stream.flush().await?;
    let (mut buffer, mut filled) = ([0; 8 * 1024], 0);
    let mut length = None;
    while length.is_none_or(|length| filled < length) {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        filled += match stream.read(rest).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => count,
        };
        length = whole_length(buffer.get(..filled).unwrap_or_default());
    }
    match buffer.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&buffer).into_owned())),
    }
}

/// The length of an answer with its head, as soon as the head is there; hyper writes its fields small.
fn whole_length(read: &[u8]) -> Option<usize> {
    const FIELD: &[u8] = b"content-length: ";
    let head = read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let at = read.windows(FIELD.len()).position(|part| part == FIELD)? + FIELD.len();
    let digits = read.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit());
    Some(head + digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}
