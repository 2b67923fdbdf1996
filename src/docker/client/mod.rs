//! Client of the engine over its Unix socket. The only module that imports bollard, which makes the requests; what the
//! engine replies is read in `replies`.

mod container_body;
mod replies;
mod transport;

use std::collections::HashMap;
use std::future::ready;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::auth::DockerCredentials;
use bollard::models::ContainerUpdateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder,
    ImportImageOptionsBuilder, KillContainerOptionsBuilder, LogsOptionsBuilder,
    RenameContainerOptionsBuilder,
};
use bollard::{Docker, body_try_stream};
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_util::io::ReaderStream;

use self::container_body::{create_body, restart_policy};
use self::transport::{EngineConnection, io_kind, is_broken_connection, other_engine};
use super::pull_progress::PullProgress;
use super::{Containers, Engine, EngineError, EngineEvent, Tar};
use crate::model::container::{ContainerSeen, ContainerSpec, Restarts};
use crate::model::engine::EngineVersion;
use crate::model::registry::Credentials;

/// Most time for facts of the engine before a container is created: guests may wait for it.
const INFO: Duration = Duration::from_secs(2);
/// Maximum bytes kept of a container's output; the end is kept.
const MOST_PRINTED: usize = 16 * 1024;
/// Request to the engine, for [`Consent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact {
    /// Request on a connection that is kept or about to be made.
    Request,
    /// New connection. It stays in the queue of the socket if the engine ends before it accepts it.
    Connection,
}

/// Reason for which a [`Contact`] is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The contact could start the engine.
    StartsEngine,
    /// The socket is that of another engine, which is named here.
    NotDocker(String),
}

/// Function that permits a contact with the engine, or refuses it.
pub type Consent = Arc<dyn Fn(Contact) -> BoxFuture<'static, Result<(), Refusal>> + Send + Sync>;

/// Client that connects on its first call and keeps the connection.
pub struct DockerClient {
    socket: String,
    consent: Consent,
    connection: Mutex<Option<EngineConnection>>,
}

/// Sends a request, and sends it once more if the kept connection is broken, as after a restart of the engine. Only for
/// idempotent requests.
macro_rules! ask {
    ($question:expr) => {
        async {
            match $question.await {
                Err(e) if is_broken_connection(&e) => $question.await,
                answered => answered,
            }
        }
    };
}

impl DockerClient {
    /// Client for the engine at the path `socket`. `consent` is asked before each request and each new connection. If it
    /// refuses, the call fails with [`EngineError::Absent`] or [`EngineError::NotDocker`].
    pub fn new(socket: impl Into<String>, consent: Consent) -> DockerClient {
        DockerClient { socket: socket.into(), consent, connection: Mutex::new(None) }
    }

    fn connection(&self) -> Result<EngineConnection, EngineError> {
        let mut kept = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(connection) = &*kept {
            return Ok(connection.clone());
        }
        let connection = EngineConnection::new(&self.socket, &self.consent);
        let connection = connection.map_err(|e| self.failed("connect", e))?;
        *kept = Some(connection.clone());
        Ok(connection)
    }

    fn docker(&self) -> Result<Docker, EngineError> {
        Ok(self.connection()?.docker)
    }

    fn failed(&self, call: &'static str, error: bollard::errors::Error) -> EngineError {
        let socket = self.socket.clone();
        if let Some(engine) = other_engine(&error) {
            return EngineError::NotDocker { socket, engine: engine.to_string() };
        }
        let absent = matches!(error, bollard::errors::Error::SocketNotFoundError(_))
            || io_kind(&error).is_some_and(|kind| {
                matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            });
        if absent {
            return EngineError::Absent { socket };
        }
        if let bollard::errors::Error::DockerResponseServerError { status_code: status, message } =
            error
        {
            return EngineError::Refused { socket, call, status, message };
        }
        if is_broken_connection(&error) {
            return EngineError::Gone { socket, call, source: Box::new(error) };
        }
        EngineError::Call { socket, call, source: Box::new(error) }
    }

    /// Resolves `name`, a container's exact name or full id, to the id, because the calls that change a container take
    /// only an id.
    async fn id(
        &self,
        call: &'static str,
        name: &str,
        within: Duration,
    ) -> Result<String, EngineError> {
        if is_full_id(name) {
            return Ok(name.to_string());
        }
        let seen = self.container(name, within).await?;
        seen.map(|seen| seen.id).ok_or_else(|| EngineError::Refused {
            socket: self.socket.clone(),
            call,
            status: 404,
            message: format!("no container is named {name}"),
        })
    }

    /// Makes the call `ask`, which is idempotent, and reads the reply with `read`.
    async fn read<T, R, F: Future<Output = Result<R, bollard::errors::Error>>>(
        &self,
        call: &'static str,
        within: Duration,
        ask: impl Fn(Docker) -> F,
        read: impl FnOnce(&Value) -> Result<T, bollard::errors::Error>,
    ) -> Result<T, EngineError> {
        let connection = self.connection()?;
        let reply = ask!(async { replies::whole(connection.response(&ask).await?).await });
        self.within(call, within, async { read(&reply.await?) }).await
    }

    async fn within<T>(
        &self,
        call: &'static str,
        within: Duration,
        answer: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        match timeout(within, answer).await {
            Ok(answer) => answer.map_err(|e| self.failed(call, e)),
            Err(_) => Err(EngineError::Timeout { socket: self.socket.clone(), call, within }),
        }
    }
}

impl Engine for DockerClient {
    async fn ping(&self, within: Duration) -> Result<(), EngineError> {
        let docker = self.docker()?;
        self.within("_ping", within, ask!(docker.ping())).await.map(drop)
    }

    async fn version(&self, within: Duration) -> Result<EngineVersion, EngineError> {
        let ask = move |docker: Docker| async move { docker.version().await };
        self.read("version", within, ask, replies::version).await
    }
}

impl Containers for DockerClient {
    async fn container(
        &self,
        name: &str,
        within: Duration,
    ) -> Result<Option<ContainerSeen>, EngineError> {
        let ask = move |docker: Docker| async move { docker.inspect_container(name, None).await };
        let read = |reply: &Value| match replies::is_named(name, reply) {
            true => replies::container(reply).map(Some),
            false => Ok(None),
        };
        let seen = self.read("inspect", within, ask, read).await;
        Ok(not_found_is_none(seen)?.flatten())
    }

    async fn create(&self, spec: &ContainerSpec, within: Duration) -> Result<String, EngineError> {
        let ask = move |docker: Docker| async move { docker.info().await };
        let driver =
            self.read("info", within.min(INFO), ask, |info| Ok(replies::log_driver(info))).await;
        let connection = self.connection()?;
        let name = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let body = create_body(spec, driver.ok().flatten().as_deref());
        let ask =
            move |docker: Docker| async move { docker.create_container(Some(name), body).await };
        let create = async { replies::id(&replies::whole(connection.response(ask).await?).await?) };
        self.within("create", within, create).await
    }

    async fn start(&self, name: &str, within: Duration) -> Result<(), EngineError> {
        let docker = self.docker()?;
        let id = self.id("start", name, within).await?;
        self.within("start", within, ask!(docker.start_container(&id, None))).await
    }

    async fn kill(&self, id: &str, signal: &str, within: Duration) -> Result<(), EngineError> {
        let docker = self.docker()?;
        let signal = KillContainerOptionsBuilder::new().signal(signal).build();
        let kill = ask!(docker.kill_container(id, Some(signal.clone())));
        self.within("kill", within, kill).await
    }

    async fn unpause(&self, id: &str, within: Duration) -> Result<(), EngineError> {
        let docker = self.docker()?;
        self.within("unpause", within, docker.unpause_container(id)).await
    }

    async fn set_restarts(
        &self,
        id: &str,
        restarts: Option<&Restarts>,
        within: Duration,
    ) -> Result<(), EngineError> {
        let docker = self.docker()?;
        let policy = restart_policy(restarts).map_err(|source| EngineError::Call {
            socket: self.socket.clone(),
            call: "update",
            source: source.into(),
        })?;
        let update =
            ContainerUpdateBody { restart_policy: Some(policy), ..ContainerUpdateBody::default() };
        self.within("update", within, docker.update_container(id, update)).await
    }

    async fn rename(&self, name: &str, to: &str, within: Duration) -> Result<(), EngineError> {
        let docker = self.docker()?;
        let id = self.id("rename", name, within).await?;
        let to = RenameContainerOptionsBuilder::new().name(to).build();
        self.within("rename", within, docker.rename_container(&id, to)).await
    }

    async fn remove(&self, id: &str, within: Duration) -> Result<(), EngineError> {
        let docker = self.docker()?;
        self.within("remove", within, docker.remove_container(id, None)).await
    }

    async fn events(
        &self,
        tell: impl Fn(EngineEvent) + Send + Sync,
        within: Duration,
    ) -> Result<(), EngineError> {
        let connection = self.connection()?;
        // `since` makes the engine send events that occur before the stream has begun.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let of_containers = HashMap::from([("type".to_string(), vec!["container".to_string()])]);
        let wanted = EventsOptionsBuilder::new().since(&since).filters(&of_containers).build();
        let ask = move |docker: Docker| async move {
            docker.events(Some(wanted)).try_for_each(|_| ready(Ok(()))).await
        };
        let events = async {
            let publish = |event: &Value| {
                let names = replies::names(event).into_iter();
                names.for_each(|name| tell(EngineEvent::Container(name)));
                Ok(())
            };
            replies::each(connection.response(ask).await?, publish).await
        };
        let events = async { events.await.map_err(|e| self.failed("events", e)) };
        let listens = async {
            self.ping(within).await?;
            tell(EngineEvent::Listening);
            std::future::pending().await
        };
        tokio::pin!(events, listens);
        tokio::select! {
            // When either ends, both are dropped: the stream has ended, or never began.
            ended = &mut events => ended,
            silent = &mut listens => silent,
        }
    }

    async fn last_lines(
        &self,
        name: &str,
        lines: usize,
        within: Duration,
    ) -> Result<Vec<String>, EngineError> {
        let docker = self.docker()?;
        let id = self.id("logs", name, within).await?;
        let wanted = LogsOptionsBuilder::new().stdout(true).stderr(true);
        let wanted = wanted.tail(&lines.to_string()).build();
        let last = || async {
            let logs = docker.logs(&id, Some(wanted.clone()));
            // A line may have any length, so the last bytes of the whole output are kept.
            let end = logs.try_fold(Vec::new(), |mut end: Vec<u8>, piece| async move {
                end.extend_from_slice(piece.as_ref());
                if end.len() > 2 * MOST_PRINTED {
                    end.drain(..end.len() - MOST_PRINTED);
                }
                Ok(end)
            });
            end.await
        };
        let end = self.within("logs", within, ask!(last())).await?;
        let end = &end[end.len().saturating_sub(MOST_PRINTED)..];
        Ok(String::from_utf8_lossy(end).lines().map(str::to_string).collect())
    }

    async fn image(
        &self,
        reference: &str,
        within: Duration,
    ) -> Result<Option<String>, EngineError> {
        let ask = move |docker: Docker| async move { docker.inspect_image(reference).await };
        not_found_is_none(self.read("inspect image", within, ask, replies::id).await)
    }

    async fn pull(
        &self,
        reference: &str,
        login: Option<&Credentials>,
        line: impl Fn(String) + Send + Sync,
        within: Duration,
    ) -> Result<(), EngineError> {
        let connection = self.connection()?;
        // A reference without a tag would make the engine pull every tag.
        let last = reference.rsplit('/').next().unwrap_or(reference);
        let tag = if last.contains([':', '@']) { "" } else { "latest" };
        let wanted = CreateImageOptionsBuilder::new().from_image(reference).tag(tag).build();
        let credentials = login.map(|login| DockerCredentials {
            username: Some(login.username.clone()),
            password: Some(login.password.expose().to_string()),
            ..DockerCredentials::default()
        });
        let ask = move |docker: Docker| async move {
            let pull = docker.create_image(Some(wanted), None, credentials);
            pull.try_for_each(|_| ready(Ok(()))).await
        };
        let mut progress = PullProgress::default();
        let publish = |message: &Value| {
            replies::unless_failed(message)?;
            if let Some((layer, state, bytes)) = replies::progress(message) {
                progress.take(layer, state, bytes, Instant::now()).into_iter().for_each(&line);
            }
            Ok(())
        };
        let pull = async { replies::each(connection.response(ask).await?, publish).await };
        self.within("pull", within, pull).await
    }

    async fn trusts_blindly(&self, registry: &str, within: Duration) -> Result<bool, EngineError> {
        let ask = move |docker: Docker| async move { docker.info().await };
        let read = |info: &Value| Ok(replies::trusts_blindly(info, registry));
        self.read("info", within, ask, read).await
    }

    async fn load(&self, tar: Tar, within: Duration) -> Result<(), EngineError> {
        // Not repeated on a broken connection: a stream can be sent only once.
        let pieces = body_try_stream(ReaderStream::new(tar));
        let connection = self.connection()?;
        let ask = move |docker: Docker| async move {
            let options = ImportImageOptionsBuilder::new().build();
            docker.import_image(options, pieces, None).try_for_each(|_| ready(Ok(()))).await
        };
        let load =
            async { replies::each(connection.response(ask).await?, replies::unless_failed).await };
        self.within("load", within, load).await
    }
}

fn not_found_is_none<T>(seen: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match seen {
        Ok(seen) => Ok(Some(seen)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// `true` if `name` has the form of a full id, which the engine takes for nothing else.
fn is_full_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
