//! A controller that really listens: it notes what is called back and answers as a test says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::absent::Absent;
use super::until;

/// The path at which a management node is called back.
pub(crate) const PATH: &str = "/zstack/asyncrest/callback";

/// What the controller does with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This status, with an empty body.
    Status(u16),
    /// This status, and then not the body that it announced.
    Unfinished(u16),
    /// A redirect to there.
    Redirect(String),
    /// The connection is reset.
    Reset,
    /// No answer at all; the connection stays open.
    Silence,
}

/// A call that came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) first_line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    /// A header's value; names as they came.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

type Script = Arc<Mutex<VecDeque<Answer>>>;
type Calls = Arc<Mutex<Vec<Seen>>>;

impl Absent {
    /// Where results would go.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{PATH}", self.address())
    }

    /// A controller listens from now on.
    pub(crate) fn appears(self) -> Controller {
        let url = self.url();
        Controller::serve(self.listens(), url, Vec::new(), None)
    }
}

/// A controller.
pub(crate) struct Controller {
    /// Where results go.
    pub(crate) url: String,
    calls: Calls,
    accepting: JoinHandle<()>,
}

impl Controller {
    /// Listens, and takes everything.
    pub(crate) async fn start() -> Controller {
        Controller::answering(Vec::new()).await
    }

    /// Listens, answers one call after the other like this, and takes everything that comes after.
    pub(crate) async fn answering(answers: Vec<Answer>) -> Controller {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{PATH}", listener.local_addr().unwrap());
        Controller::serve(listener, url, answers, None)
    }

    /// Listens at this address, and takes everything; a port of 0 is any.
    pub(crate) async fn at(address: &str) -> Controller {
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}{PATH}", listener.local_addr().unwrap());
        Controller::serve(listener, url, Vec::new(), None)
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        let address = self.url.split('/').nth(2).unwrap();
        address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Where results go when it is called by another name, or address.
    pub(crate) fn url_by(&self, name: &str) -> String {
        let scheme = self.url.split(':').next().unwrap();
        format!("{scheme}://{name}:{}{PATH}", self.port())
    }

    /// The same with TLS.
    pub(crate) async fn with_tls(acceptor: TlsAcceptor) -> Controller {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}{PATH}", listener.local_addr().unwrap());
        Controller::serve(listener, url, Vec::new(), Some(acceptor))
    }

    fn serve(
        listener: TcpListener,
        url: String,
        answers: Vec<Answer>,
        tls: Option<TlsAcceptor>,
    ) -> Controller {
        let calls = Calls::default();
        let script: Script = Arc::new(Mutex::new(answers.into()));
        let seen = calls.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen, tls) = (script.clone(), seen.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => plain(stream, &script, &seen).await,
                        Some(tls) => {
                            if let Ok(mut stream) = tls.accept(stream).await {
                                answer(&mut stream, &script, &seen).await;
                            }
                        }
                    }
                });
            }
        });
        Controller { url, calls, accepting }
    }

    /// Calls that have come so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.calls.lock().unwrap().clone()
    }

    /// How many calls have come so far.
    pub(crate) fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Waits until at least so many calls have come.
    pub(crate) async fn wait(&self, count: usize) -> Vec<Seen> {
        until(&format!("{count} calls at the controller"), async || {
            Some(self.seen()).filter(|seen| seen.len() >= count)
        })
        .await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn plain(mut stream: TcpStream, script: &Script, seen: &Calls) {
    if answer(&mut stream, script, seen).await == Some(Answer::Reset) {
        // Closing with a linger of zero sends a reset.
        stream.set_zero_linger().unwrap();
    }
}

/// Reads one call, notes it, answers it.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    script: &Script,
    seen: &Calls,
) -> Option<Answer> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut lines = text.split("\r\n");
    let first_line = lines.next().unwrap().to_string();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let mut call = Seen { at: Instant::now(), first_line, headers, body: String::new() };
    let length: usize = call.header("content-length").unwrap().parse().unwrap();
    while bytes.len() < head + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    call.body = String::from_utf8(bytes.split_off(head + 4)).unwrap();
    let answer = script.lock().unwrap().pop_front().unwrap_or(Answer::Status(200));
    seen.lock().unwrap().push(call);
    let reply = match &answer {
        Answer::Status(status) => format!("HTTP/1.1 {status} Whatever\r\n"),
        Answer::Unfinished(status) => {
            let head = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 10\r\n\r\nhalf");
            stream.write_all(head.as_bytes()).await.ok()?;
            return std::future::pending().await;
        }
        Answer::Redirect(to) => format!("HTTP/1.1 307 Elsewhere\r\nLocation: {to}\r\n"),
        Answer::Reset => return Some(answer),
        Answer::Silence => return std::future::pending().await,
    };
    let reply = reply + "Content-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(reply.as_bytes()).await.ok()?;
    let _ = stream.shutdown().await;
    Some(answer)
}
