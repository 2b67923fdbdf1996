//! A bare HTTP/1.1 client: it sends what a test says, to the byte, and reads one answer.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| {
            panic!("{e}: {} {:?}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    /// The stable code of an error.
    #[track_caller]
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_string()
    }

    /// Fails the test unless it is a problem document with that status and code.
    #[track_caller]
    pub(crate) fn must_be_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let json = self.json();
        assert_eq!(json["status"], status);
        assert!(json["detail"].as_str().is_some_and(|text| !text.is_empty()), "{json}");
        assert!(json["title"].is_string() && json["type"].is_string(), "{json}");
    }
}

/// The bytes of a request.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: node\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text + &format!("Content-Length: {}\r\n\r\n{body}", body.len())
}

/// One call on a connection of its own.
pub(crate) async fn call(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut all = vec![("Connection", "close")];
    all.extend(headers);
    send(address, request(method, path, &all, body).as_bytes()).await
}

/// Sends these bytes on a connection of their own and reads the answer.
pub(crate) async fn send(address: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = soon("connected", TcpStream::connect(address)).await.unwrap();
    soon("sent", stream.write_all(bytes)).await.unwrap();
    receive(&mut stream).await
}

/// Reads one answer from a connection.
pub(crate) async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Reply {
    soon("answered", try_receive(stream)).await.expect("an answer")
}

/// Reads one answer; `None` when the connection ends before it is whole.
pub(crate) async fn try_receive(stream: &mut (impl AsyncRead + Unpin)) -> Option<Reply> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        more(stream, &mut bytes).await?;
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut rest = bytes.split_off(head + 4);
    let mut lines = text.split("\r\n");
    let first = lines.next()?;
    assert!(first.starts_with("HTTP/1.1 "), "{first}");
    let status = first.split(' ').nth(1)?.parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_string(), value.trim().to_string()))
        .collect();
    let mut reply = Reply { status, headers, body: Vec::new() };
    if let Some(length) = reply.header("content-length").map(|n| n.parse::<usize>().unwrap()) {
        while rest.len() < length {
            more(stream, &mut rest).await?;
        }
        rest.truncate(length);
        reply.body = rest;
    } else if reply.header("transfer-encoding").is_some() {
        while let Some(chunk) = chunk(stream, &mut rest).await? {
            reply.body.extend(chunk);
        }
    } else {
        while more(stream, &mut rest).await.is_some() {}
        reply.body = rest;
    }
    Some(reply)
}

/// The next chunk of a chunked body; `Some(None)` after the last.
pub(crate) async fn chunk(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
) -> Option<Option<Vec<u8>>> {
    loop {
        if let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
            let size = std::str::from_utf8(&bytes[..end]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            if bytes.len() >= end + 2 + size + 2 {
                let chunk = bytes[end + 2..end + 2 + size].to_vec();
                bytes.drain(..end + 2 + size + 2);
                return Some((size > 0).then_some(chunk));
            }
        }
        more(stream, bytes).await?;
    }
}

async fn more(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(bytes).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}
