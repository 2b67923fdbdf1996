//! Client of the engine over its Unix socket. The only module that imports bollard.

mod container_body;
mod transport;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::auth::DockerCredentials;
use bollard::models::{ContainerInspectResponse, ContainerUpdateBody, EventMessage, RestartPolicy};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder,
    ImportImageOptionsBuilder, KillContainerOptionsBuilder, LogsOptionsBuilder,
    RenameContainerOptionsBuilder,
};
use bollard::{Docker, body_try_stream};
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout};
use tokio_util::io::ReaderStream;

use self::container_body::{container_seen, create_body, never};
use self::transport::{connect, io_kind, is_broken_connection};
use super::pull_progress::PullProgress;
use super::{Containers, Engine, EngineError, EngineEvent, Tar};
use crate::model::container::{ContainerSeen, ContainerSpec, Restarts};
use crate::model::engine::EngineVersion;
use crate::model::registry::Credentials;

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

/// Function that returns `true` if the contact cannot start the engine.
pub type Consent = Arc<dyn Fn(Contact) -> BoxFuture<'static, bool> + Send + Sync>;

/// Client that connects on its first call and keeps the connection.
pub struct DockerClient {
    socket: String,
    consent: Consent,
    docker: Mutex<Option<Docker>>,
}

impl DockerClient {
    /// Client for the engine at the path `socket`. `consent` is asked before each request and each new connection. If it
    /// refuses, the call fails with [`EngineError::Absent`].
    pub fn new(socket: impl Into<String>, consent: Consent) -> DockerClient {
        DockerClient { socket: socket.into(), consent, docker: Mutex::new(None) }
    }

    fn docker(&self) -> Result<Docker, EngineError> {
        let mut kept = self.docker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(docker) = &*kept {
            return Ok(docker.clone());
        }
        let docker = connect(&self.socket, &self.consent).map_err(|e| self.failed("connect", e))?;
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

impl Engine for DockerClient {
    async fn ping(&self, within: Duration) -> Result<(), EngineError> {
        let docker = self.docker()?;
        self.within("_ping", within, ask!(docker.ping())).await.map(drop)
    }

    async fn version(&self, within: Duration) -> Result<EngineVersion, EngineError> {
        let docker = self.docker()?;
        let version = self.within("version", within, ask!(docker.version())).await?;
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

impl Containers for DockerClient {
    async fn container(
        &self,
        name: &str,
        within: Duration,
    ) -> Result<Option<ContainerSeen>, EngineError> {
        let docker = self.docker()?;
        let inspect = ask!(docker.inspect_container(name, None));
        let seen = not_found_is_none(self.within("inspect", within, inspect).await)?;
        Ok(seen.filter(|seen| is_named(name, seen)).map(container_seen))
    }

    async fn create(&self, spec: &ContainerSpec, within: Duration) -> Result<String, EngineError> {
        let docker = self.docker()?;
        let name = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let create = docker.create_container(Some(name), create_body(spec));
        Ok(self.within("create", within, create).await?.id)
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
        let policy = restarts.map_or_else(never, |it| RestartPolicy {
            name: it.policy.parse().ok(),
            maximum_retry_count: it.most,
        });
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
        let docker = self.docker()?;
        // `since` makes the engine send events that occur before the stream has begun.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let of_containers = HashMap::from([("type".to_string(), vec!["container".to_string()])]);
        let wanted = EventsOptionsBuilder::new().since(&since).filters(&of_containers).build();
        let events = docker.events(Some(wanted)).try_for_each(|event| {
            names(event).into_iter().for_each(|name| tell(EngineEvent::Container(name)));
            async { Ok(()) }
        });
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
        let docker = self.docker()?;
        let seen =
            self.within("inspect image", within, ask!(docker.inspect_image(reference))).await;
        not_found_is_none(seen.map(|image| image.id.unwrap_or_default()))
    }

    async fn pull(
        &self,
        reference: &str,
        login: Option<&Credentials>,
        line: impl Fn(String) + Send + Sync,
        within: Duration,
    ) -> Result<(), EngineError> {
        let docker = self.docker()?;
        // A reference without a tag would make the engine pull every tag.
        let last = reference.rsplit('/').next().unwrap_or(reference);
        let tag = if last.contains([':', '@']) { "" } else { "latest" };
        let wanted = CreateImageOptionsBuilder::new().from_image(reference).tag(tag).build();
        let credentials = login.map(|login| DockerCredentials {
            username: Some(login.username.clone()),
            password: Some(login.password.expose().to_string()),
            ..DockerCredentials::default()
        });
        let mut progress = PullProgress::default();
        let pull = docker.create_image(Some(wanted), None, credentials).try_for_each(|told| {
            let count = |bytes: Option<i64>| bytes.and_then(|bytes| u64::try_from(bytes).ok());
            let bytes = told.progress_detail.and_then(|detail| {
                Some((count(detail.current)?, count(detail.total).unwrap_or(0)))
            });
            if let Some(status) = told.status {
                progress.take(told.id, status, bytes, Instant::now()).into_iter().for_each(&line);
            }
            async { Ok(()) }
        });
        self.within("pull", within, pull).await
    }

    async fn trusts_blindly(&self, registry: &str, within: Duration) -> Result<bool, EngineError> {
        let docker = self.docker()?;
        let info = self.within("info", within, ask!(docker.info())).await?;
        let registries = info.registry_config.and_then(|config| config.index_configs);
        let seen = registries.and_then(|mut all| all.remove(registry));
        Ok(seen.is_some_and(|seen| seen.secure == Some(false)))
    }

    async fn load(&self, tar: Tar, within: Duration) -> Result<(), EngineError> {
        // Not repeated on a broken connection: a stream can be sent only once.
        let pieces = body_try_stream(ReaderStream::new(tar));
        let docker = self.docker()?;
        let load = docker.import_image(ImportImageOptionsBuilder::new().build(), pieces, None);
        self.within("load", within, load.try_for_each(|_| async { Ok(()) })).await
    }
}

/// Names of the container of `event`, with the former one if it was renamed; none for events of a program executed in a
/// container.
fn names(event: EventMessage) -> Vec<String> {
    if event.action.is_some_and(|action| action.starts_with("exec_")) {
        return Vec::new();
    }
    let mut told = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
    let old = told.remove("oldName").map(|name| name.trim_start_matches('/').to_string());
    told.remove("name").into_iter().chain(old).collect()
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

/// `true` if `name` is the name or full id of the container `seen`. The engine also accepts the beginning of an id, and
/// would then show another container.
fn is_named(name: &str, seen: &ContainerInspectResponse) -> bool {
    let own = seen.name.as_deref().map(|own| own.trim_start_matches('/'));
    own == Some(name) || seen.id.as_deref() == Some(name)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
