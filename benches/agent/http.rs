//! The cheapest HTTP client there is: one kept connection, one request after the other, blocking.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// More than any single answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kept connection.
pub(crate) struct Connection<S> {
    stream: S,
    read: Vec<u8>,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Connection<TcpStream> {
    pub(crate) fn tcp(address: SocketAddr) -> Result<Connection<TcpStream>> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, read: Vec::new() })
    }
}

impl Connection<UnixStream> {
    pub(crate) fn unix(path: &Path) -> Result<Connection<UnixStream>> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, read: Vec::new() })
    }
}

impl<S: Read + Write> Connection<S> {
    /// Over whatever has been connected.
    pub(crate) fn over(stream: S) -> Connection<S> {
        Connection { stream, read: Vec::new() }
    }

    /// Asks and waits for the whole answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        self.send(method, path, body)?;
        self.receive().with_context(|| format!("{method} {path}"))
    }

    /// Asks; the answer is to be received before the next question.
    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        self.send_with(method, path, "", body)
    }

    fn send_with(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Result<()> {
        self.read.clear();
        Ok(self.stream.write_all(request(method, path, headers, body).as_bytes())?)
    }

    /// Asks with more headers, each with its end of line, and waits for an answer that says that it was done.
    pub(crate) fn get_done_with(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Result<Answer> {
        self.send_with(method, path, headers, body)?;
        done(self.receive()?, method, path)
    }

    /// The whole answer.
    pub(crate) fn receive(&mut self) -> Result<Answer> {
        loop {
            if let Some(answer) = whole(&self.read)? {
                return Ok(answer);
            }
            let mut piece = [0; 16 * 1024];
            let count = self.stream.read(&mut piece)?;
            if count == 0 {
                bail!("the connection was closed");
            }
            self.read.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }

    /// Asks for what has to succeed, and returns the JSON of the answer.
    pub(crate) fn get_done(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        done(self.ask(method, path, body)?, method, path)
    }
}

fn done(answer: Answer, method: &str, path: &str) -> Result<Answer> {
    if answer.status != 200 {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        bail!("{method} {path}: {} {text}", answer.status);
    }
    Ok(answer)
}

/// The bytes of a request; more headers each with its end of line.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: bench\r\n{headers}Content-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// The answer, when all of it has arrived.
fn whole(read: &[u8]) -> Result<Option<Answer>> {
    let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let (head, rest) = read.split_at(end + 4);
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
    // "No content" has no length either.
    if status == 204 {
        return Ok(Some(Answer { status, body: Vec::new() }));
    }
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse().ok())
        .context("an answer without a length")?;
    Ok(rest.get(..length).map(|body| Answer { status, body: body.to_vec() }))
}
