//! A legacy agent on bare sockets: what came is known to the byte, and what goes back is too.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::absent::Absent;
use super::until;

/// A connection at the legacy agent.
pub(crate) struct Line {
    pub(crate) stream: TcpStream,
    /// What was read and not asked for yet.
    pub(crate) rest: Vec<u8>,
}

impl Line {
    /// The next head, with its empty line; what came until then where the connection ended.
    pub(crate) async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.rest.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.rest.split_off(end + 4);
                return String::from_utf8(std::mem::replace(&mut self.rest, rest)).unwrap();
            }
            if !self.more().await {
                return String::from_utf8(std::mem::take(&mut self.rest)).unwrap();
            }
        }
    }

    /// Reads more; false when there is no more.
    pub(crate) async fn more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.rest).await, Ok(read) if read > 0)
    }

    /// So many bytes of a body, or what there is.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.rest.len() < count && self.more().await {}
        let rest = self.rest.split_off(count.min(self.rest.len()));
        std::mem::replace(&mut self.rest, rest)
    }

    /// Everything until these bytes, with them.
    pub(crate) async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        while !self.rest.windows(end.len()).any(|part| part == end) && self.more().await {}
        std::mem::take(&mut self.rest)
    }

    /// Sends; whoever is gone does not matter.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }
}

/// A legacy agent.
pub(crate) struct Legacy {
    pub(crate) address: SocketAddr,
    /// Requests that came, head and body, by connection.
    seen: Arc<Mutex<Vec<String>>>,
    accepting: JoinHandle<()>,
}

impl Legacy {
    /// Does with each connection what is said here.
    pub(crate) async fn with<F>(each: impl Fn(Line) -> F + Send + 'static) -> Legacy
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Legacy::on(listener, Arc::default(), each)
    }

    /// Answers each request with these bytes, and closes.
    pub(crate) async fn answering(answer: &str) -> Legacy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Legacy::answers_on(listener, answer)
    }

    /// Listens where nobody did, and answers each request so.
    pub(crate) fn at(absent: Absent, answer: &str) -> Legacy {
        Legacy::answers_on(absent.listens(), answer)
    }

    fn answers_on(listener: TcpListener, answer: &str) -> Legacy {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (noted, answer) = (seen.clone(), Arc::new(answer.to_string()));
        Legacy::on(listener, seen, move |mut line| {
            let (noted, answer) = (noted.clone(), answer.clone());
            async move {
                let mut request = line.head().await;
                let length = value(&request, "content-length").map(|n| n.parse().unwrap());
                let body = match length {
                    Some(length) => line.bytes(length).await,
                    None if value(&request, "transfer-encoding").is_some() => {
                        line.until(b"0\r\n\r\n").await
                    }
                    None => Vec::new(),
                };
                request += &String::from_utf8(body).unwrap();
                noted.lock().unwrap().push(request);
                line.send(answer.as_bytes()).await;
            }
        })
    }

    fn on<F>(
        listener: TcpListener,
        seen: Arc<Mutex<Vec<String>>>,
        each: impl Fn(Line) -> F + Send + 'static,
    ) -> Legacy
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(each(Line { stream, rest: Vec::new() }));
            }
        });
        Legacy { address, seen, accepting }
    }

    /// What a node has to be told of it, with more settings.
    pub(crate) fn settings(&self, more: &str) -> String {
        format!("fallback_url = \"http://{}\"\n{more}", self.address)
    }

    /// Requests that have come so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// The next request, after so many.
    pub(crate) async fn after(&self, count: usize) -> String {
        until("the legacy agent is asked", async || self.seen().get(count).cloned()).await
    }
}

impl Drop for Legacy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The value of a header in a head.
pub(crate) fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.split("\r\n").take_while(|line| !line.is_empty());
    lines
        .filter_map(|line| line.split_once(": "))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}
