//! The engine over its Unix socket. The only file that knows bollard.
//!
//! bollard's own Unix transport connects anew for every call, which costs the engine more than the
//! call itself; ours keeps one connection.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Engine, EngineError};
use crate::model::engine::EngineVersion;

/// bollard's own deadline in seconds; ours are shorter, this one only catches what we forget.
const BOLLARD_TIMEOUT_S: u64 = 120;
/// How long a connection is kept without a call.
const KEEP: Duration = Duration::from_secs(60);

/// A client that connects when it is first needed and keeps the connection.
#[derive(Debug)]
pub struct DockerClient {
    socket: String,
    docker: Mutex<Option<Docker>>,
}

impl DockerClient {
    /// A client for the engine at `socket` (a path).
    pub fn new(socket: impl Into<String>) -> DockerClient {
        DockerClient { socket: socket.into(), docker: Mutex::new(None) }
    }

    fn docker(&self) -> Result<Docker, EngineError> {
        let mut kept = self.docker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(docker) = &*kept {
            return Ok(docker.clone());
        }
        let docker = client(&self.socket).map_err(|e| self.failed("connect", e))?;
        *kept = Some(docker.clone());
        Ok(docker)
    }

    fn failed(&self, call: &'static str, error: bollard::errors::Error) -> EngineError {
        let socket = self.socket.clone();
        let absent = matches!(error, bollard::errors::Error::SocketNotFoundError(_))
            || io_kind(&error).is_some_and(|kind| {
                matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            });
        if absent {
            return EngineError::Absent { socket };
        }
        EngineError::Call { socket, call, source: Box::new(error) }
    }

    async fn call<T>(
        &self,
        call: &'static str,
        within: Duration,
        work: impl AsyncFn(Docker) -> Result<T, bollard::errors::Error>,
    ) -> Result<T, EngineError> {
        let docker = self.docker()?;
        let answer = async {
            match work(docker.clone()).await {
                // A kept connection to an engine that was restarted meanwhile is found out on use.
                Err(e) if is_broken_connection(&e) => work(docker).await,
                other => other,
            }
        };
        match timeout(within, answer).await {
            Ok(answer) => answer.map_err(|e| self.failed(call, e)),
            Err(_) => Err(EngineError::Timeout { socket: self.socket.clone(), call, within }),
        }
    }
}

impl Engine for DockerClient {
    async fn ping(&self, within: Duration) -> Result<(), EngineError> {
        self.call("_ping", within, async |docker| docker.ping().await.map(drop)).await
    }

    async fn version(&self, within: Duration) -> Result<EngineVersion, EngineError> {
        let version = self.call("version", within, async |docker| docker.version().await).await?;
        let unusable = |source: String| EngineError::Call {
            socket: self.socket.clone(),
            call: "version",
            source: source.into(),
        };
        let api = version.api_version.ok_or_else(|| unusable("no ApiVersion".to_string()))?;
        Ok(EngineVersion {
            version: version.version.unwrap_or_default(),
            api: api.parse().map_err(unusable)?,
        })
    }
}

/// The kind of the I/O error at the bottom of it, if there is one.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    std::iter::successors(Some(error), |e| e.source())
        .find_map(|e| e.downcast_ref::<io::Error>().map(io::Error::kind))
}

/// Whether a connection broke that had been made.
fn is_broken_connection(error: &bollard::errors::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let of_connection = matches!(
        error,
        bollard::errors::Error::HyperResponseError { .. }
            | bollard::errors::Error::HyperLegacyError { .. }
    );
    let broken = [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof];
    of_connection && io_kind(error).is_none_or(|kind| broken.contains(&kind))
}

/// A client that connects on its first call and keeps the connection for the next one.
fn client(socket: &str) -> Result<Docker, bollard::errors::Error> {
    let socket = socket.to_string();
    let connect = tower::service_fn(move |_: hyper::Uri| {
        let connecting = UnixStream::connect(socket.clone());
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    });
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEEP)
        .pool_max_idle_per_host(1)
        .build(connect);
    let send = move |request: BollardRequest| {
        let answer = client.request(request);
        async move { Ok(answer.await?) }
    };
    // The host is only what the Host header says.
    Docker::connect_with_custom_transport(
        send,
        Some("http://docker"),
        BOLLARD_TIMEOUT_S,
        API_DEFAULT_VERSION,
    )
}
