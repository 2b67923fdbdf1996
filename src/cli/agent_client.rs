//! Client of this node's owner by the native routes: in the running agent, or in this process.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt;

use super::Usage;
use crate::api::v1::report::{LINES, StreamLine};
use crate::config::Settings;
use crate::daemon::{InProcess, LOCK_PAUSE, LOCK_WAIT, run_dir, socket_path, take_lock, url_in};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::{PrepareReport, Progress};
use crate::store::{Lock, Store, StoreError};

/// Time limit for a connection to the agent.
const CONNECT: Duration = Duration::from_secs(5);
/// Time limit for the answer to a quick request.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// Time limit for silence in a streamed answer; the agent sends a sign of life every 15 s.
const SILENCE: Duration = Duration::from_secs(60);

/// Settings and root folder of this node.
pub(super) struct NodeRoot {
    pub(super) settings: Settings,
    pub(super) root: PathBuf,
}

impl NodeRoot {
    /// Finds the running agent. If none runs, takes the lock and starts the owners in this process. Waits for another
    /// running command.
    pub(super) async fn owner(&self) -> Result<Agent> {
        if let Some(agent) = self.at_socket().await {
            return Ok(agent);
        }
        let store = Store::open(&self.settings.state_dir, run_dir(&self.settings, &self.root))?;
        match take_lock(&store).await {
            Ok(mut lock) => {
                lock.sign(None);
                self.in_process(store, Some(lock))
            }
            Err(StoreError::Locked { holder, path }) => match url_in(&holder) {
                Some(url) => Agent::at(url),
                None => Err(held(&path, &holder)),
            },
            Err(other) => Err(other.into()),
        }
    }

    /// Finds a source of the node's state for a read-only command, which leaves the lock to commands that change the
    /// node. Waits for another running command, so that no half-done change is shown.
    pub(super) async fn looker(&self) -> Result<Agent> {
        let store = self.look();
        match self.found(&store).await? {
            Some(agent) => Ok(agent),
            None => self.in_process(store, None),
        }
    }

    fn in_process(&self, store: Store, lock: Option<Lock>) -> Result<Agent> {
        let here = InProcess::start(&self.settings, &self.root, store)?;
        Ok(Agent { way: AgentRoute::Here { here, _lock: lock } })
    }

    /// Finds the running agent, for requests that only a permanent one can serve.
    pub(super) async fn agent(&self) -> Result<Agent> {
        let running = self.found(&self.look()).await?;
        running.ok_or_else(|| {
            anyhow!(
                "no agent runs on this node ({} is not held), and volumes are kept by one that stays: start \
                 it (systemctl start vhost-agent, or vhost-agent serve), then call again",
                self.settings.state_dir.join("lock").display()
            )
        })
    }

    fn look(&self) -> Store {
        Store::look(&self.settings.state_dir, run_dir(&self.settings, &self.root))
    }

    /// Finds the running agent, by its socket or by the lock.
    async fn found(&self, store: &Store) -> Result<Option<Agent>> {
        match self.at_socket().await {
            None => self.running(store).await,
            found => Ok(found),
        }
    }

    /// Agent that answers at the node's own socket: a user of the socket needs no access to the state.
    pub(super) async fn at_socket(&self) -> Option<Agent> {
        let path = socket_path(&self.settings, &self.root)?;
        let answers = timeout(CONNECT, UnixStream::connect(&path)).await;
        answers.ok()?.ok()?;
        Some(Agent { way: AgentRoute::Socket(path) })
    }

    /// Agent that holds the lock, if one does. Waits for another command that holds it.
    async fn running(&self, store: &Store) -> Result<Option<Agent>> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            let Some(holder) = store.holder()? else { return Ok(None) };
            if let Some(url) = url_in(&holder) {
                return Ok(Some(Agent::at(url)?));
            }
            if Instant::now() >= deadline {
                return Err(held(&self.settings.state_dir.join("lock"), &holder));
            }
            sleep(LOCK_PAUSE).await;
        }
    }
}

fn held(path: &Path, holder: &str) -> anyhow::Error {
    let path = path.display();
    anyhow!("{path} is held by another vhost-agent ({holder}): wait until it is done")
}

/// Server of the native routes.
pub(super) struct Agent {
    way: AgentRoute,
}

/// Way to reach the agent.
enum AgentRoute {
    /// Unix socket of the node.
    Socket(PathBuf),
    /// Address without TLS.
    Address(String),
    /// Own process, which owns the node while it holds `_lock`, and only reads without one.
    Here { here: InProcess, _lock: Option<Lock> },
}

impl fmt::Display for AgentRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentRoute::Socket(path) => path.display().fmt(f),
            AgentRoute::Address(address) => address.fmt(f),
            AgentRoute::Here { .. } => f.write_str("this process"),
        }
    }
}

/// Body of a problem document.
#[derive(serde::Deserialize)]
struct ProblemBody {
    code: Code,
    detail: String,
    report: Option<serde_json::Value>,
}

impl Agent {
    /// Agent at the URL in the lock, whose socket cannot be used.
    fn at(url: &str) -> Result<Agent> {
        match url.strip_prefix("http://") {
            Some(address) => Ok(Agent { way: AgentRoute::Address(address.to_string()) }),
            None => Err(anyhow!(
                "the agent that runs ({url}) speaks TLS, and its socket for this command cannot be used: see \
                 access.socket, and whether you may use it"
            )),
        }
    }

    /// `true` if no agent runs, and this process serves the routes.
    pub(super) fn is_here(&self) -> bool {
        matches!(self.way, AgentRoute::Here { .. })
    }

    /// Calls a route and reads its answer, with the time limit `within`; a problem that carries a report is returned as
    /// that report.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        within: Duration,
    ) -> Result<T> {
        let answer = async {
            let response = self.send(method, path, body, None).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        // No time limit in this process: a timeout would end the work itself, and the owners have deadlines of their
        // own.
        let within = if self.is_here() { Duration::MAX } else { within };
        let (status, bytes) =
            timeout(within, answer).await.map_err(|_| self.silent(within)).flatten()?;
        self.understand(status, &bytes)
    }

    /// Requests long-running work, and shows its progress. The agent sends regular signs of life; a long silence is a
    /// timeout.
    pub(super) async fn report(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        show: impl Fn(&Progress),
    ) -> Result<PrepareReport> {
        let answer = timeout(ANSWER, self.send(method, path, Some(body), Some(LINES)));
        let response = answer.await.map_err(|_| self.silent(ANSWER)).flatten()?;
        let mut report = None;
        let line = |line: &[u8]| {
            match serde_json::from_slice(line).context("the agent streamed something else")? {
                StreamLine::Progress(event) => show(&event),
                StreamLine::Alive => {}
                StreamLine::Report(end) => report = Some(end),
                StreamLine::Error(fault) => return Err(fault.into()),
            }
            Ok(())
        };
        self.lines_of(response, line).await?;
        report.context("the agent went away before it was done; what it did is in its log")
    }

    async fn lines_of(
        &self,
        response: Response<Body>,
        mut line: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let status = response.status();
        let mut body = response.into_body();
        let mut rest = Vec::new();
        while let Some(frame) =
            timeout(SILENCE, body.frame()).await.map_err(|_| self.silent(SILENCE))?
        {
            if let Ok(data) = frame?.into_data() {
                rest.extend_from_slice(&data);
            }
            if !status.is_success() {
                continue;
            }
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let whole: Vec<u8> = rest.drain(..=end).collect();
                line(&whole)?;
            }
        }
        if status.is_success() { Ok(()) } else { self.understand::<()>(status, &rest) }
    }

    fn understand<T: DeserializeOwned>(&self, status: StatusCode, bytes: &[u8]) -> Result<T> {
        if status.is_success() {
            // An answer without a body (204) is null.
            let bytes = if bytes.is_empty() { b"null" } else { bytes };
            return serde_json::from_slice(bytes)
                .with_context(|| format!("the agent at {} answered something else", self.way));
        }
        let problem: ProblemBody = serde_json::from_slice(bytes)
            .with_context(|| format!("the agent at {} answered {status}", self.way))?;
        match problem.report {
            Some(report) => Ok(serde_json::from_value(report)?),
            // The caller's error, not the node's.
            None if matches!(status.as_u16(), 400 | 413 | 422) => Err(Usage(problem.detail).into()),
            None if status == StatusCode::UNAUTHORIZED => Err(anyhow!(
                "the agent that runs ({}) wants a token, which this command has none of, and its socket for \
                 this command cannot be used: see access.socket, and whether you may use it",
                self.way
            )),
            None => Err(Fault { code: problem.code, text: problem.detail }.into()),
        }
    }

    fn silent(&self, within: Duration) -> anyhow::Error {
        anyhow!(
            "the agent at {} has not answered for {within:?}: what it was asked for may still go on; \
             its log tells (journalctl -u vhost-agent), and the same command can be given again",
            self.way
        )
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        accept: Option<&str>,
    ) -> Result<Response<Body>> {
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.host())
            .header("content-type", "application/json");
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let request = request.body(Full::new(Bytes::from(bytes)))?;
        if let AgentRoute::Here { here, .. } = &self.way {
            let Ok(response) = here.router.clone().oneshot(request.map(Body::new)).await;
            return Ok(response);
        }
        let lost = || format!("the agent that runs cannot be reached at {}", self.way);
        let connect = timeout(CONNECT, self.connect());
        let mut sender = connect.await.map_err(io::Error::from).flatten().with_context(lost)?;
        Ok(sender.send_request(request).await.with_context(lost)?.map(Body::new))
    }

    /// Value of the Host header; constant over a socket.
    fn host(&self) -> &str {
        match &self.way {
            AgentRoute::Socket(_) | AgentRoute::Here { .. } => "localhost",
            AgentRoute::Address(address) => address,
        }
    }

    async fn connect(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        match &self.way {
            AgentRoute::Socket(path) => shake_hands(UnixStream::connect(path).await?).await,
            AgentRoute::Address(address) => shake_hands(TcpStream::connect(address).await?).await,
            AgentRoute::Here { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Performs HTTP's handshake on a connection.
async fn shake_hands<S>(stream: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An agent that sends `after`, and then nothing more.
    async fn turns_silent(after: &'static str) -> Agent {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(after.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        Agent { way: AgentRoute::Address(address) }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_answer_is_given_up() {
        let agent = turns_silent("").await;
        let call = agent.call::<()>(Method::GET, "/v1/node", None::<&()>, ANSWER);
        let error = call.await.unwrap_err().to_string();
        assert!(
            error.contains("has not answered for 30s") && error.contains("journalctl"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_turns_silent_is_given_up() {
        let agent = turns_silent(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n{\"event\":\"alive\"}\n\r\n",
        )
        .await;
        let shown = std::cell::Cell::new(0);
        let show = |_: &Progress| shown.set(shown.get() + 1);
        let stream = agent.report(Method::POST, "/v1/prepare", &(), show);
        let error = stream.await.unwrap_err().to_string();
        assert!(error.contains("has not answered for 60s"), "{error}");
        assert_eq!(shown.get(), 0, "that it is alive is no progress");
    }
}
