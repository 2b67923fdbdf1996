//! Connection to the engine's socket that is kept between calls, and that tells Docker from other engines. bollard's own
//! Unix transport reconnects for each call, which costs the engine more than the call itself.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use futures_util::future::BoxFuture;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, SERVER};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;

use super::{Consent, Contact, Refusal};

/// Deadline of bollard for a call, in seconds. The agent's own deadlines are shorter; this one only catches a call
/// without one.
const BOLLARD_TIMEOUT_S: u64 = 3600;
/// Idle time after which a connection is closed.
const KEEP: Duration = Duration::from_secs(60);

/// Engine that is not Docker, where Docker's socket should be.
#[derive(Debug, thiserror::Error)]
#[error("{0} listens there")]
pub(super) struct NotDocker(pub(super) String);

/// First I/O error among `error` and its causes.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let own = |e: &'a (dyn std::error::Error + 'static)| match e.downcast_ref::<Error>() {
        // It passes its cause over in its sources.
        Some(Error::IOError { err }) => Some(err),
        _ => e.downcast_ref::<io::Error>(),
    };
    std::iter::successors(Some(error), |e| e.source()).find_map(own)
}

/// Kind of the I/O error among the causes of `error`; `None` if there is none.
pub(super) fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    io_error(error).map(io::Error::kind)
}

/// Name of the engine that is not Docker, if `error` says that one listens.
pub(super) fn other_engine(error: &Error) -> Option<&str> {
    let NotDocker(name) = io_error(error)?.get_ref()?.downcast_ref::<NotDocker>()?;
    Some(name)
}

/// `true` if `error` says that an established connection broke.
pub(super) fn is_broken_connection(error: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let of_connection =
        matches!(error, Error::HyperResponseError { .. } | Error::HyperLegacyError { .. });
    let broken = [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof];
    of_connection && io_kind(error).is_none_or(|kind| broken.contains(&kind))
}

/// Re-encodes the credentials of `request`. The engine reads them in the base64 alphabet of RFC 4648, section 5, and
/// bollard writes them in that of section 4. Engines up to 20.10 treat unreadable credentials as none.
fn credentials_as_the_engine_reads_them(request: &mut BollardRequest) {
    if let Some(value) = request.headers_mut().get_mut("X-Registry-Auth") {
        let readable = value.to_str().map(|text| text.replace('+', "-").replace('/', "_"));
        if let Some(mut readable) = readable.ok().and_then(|text| HeaderValue::try_from(text).ok())
        {
            readable.set_sensitive(true);
            *value = readable;
        }
    }
}

/// Sender of requests, which asks for consent to each.
type SendRequest = Arc<dyn Fn(BollardRequest) -> Sent + Send + Sync>;
/// Response that the engine has yet to send.
type Sent = BoxFuture<'static, Result<Response<Incoming>, Error>>;

/// Client that connects on its first call and keeps the connection for the next one; clones share it.
#[derive(Clone)]
pub(super) struct EngineConnection {
    send: SendRequest,
    /// Client of bollard that uses this connection.
    pub(super) docker: Docker,
}

impl EngineConnection {
    pub(super) fn new(socket: &str, consent: &Consent) -> Result<EngineConnection, Error> {
        let send = sender(socket, consent);
        let docker = bollard_over(send.clone())?;
        Ok(EngineConnection { send, docker })
    }

    /// Sends the request that bollard makes for the call `ask`, and returns the engine's response, whose body is not read
    /// yet. A refusal of the engine is an error, as of any call of bollard.
    ///
    /// bollard reads a body only into its own models, which a single value that they do not know makes unreadable. So the
    /// response is taken from it on the way, and the call that it thinks failed is dropped.
    pub(super) async fn response<T, F: Future<Output = Result<T, Error>>>(
        &self,
        ask: impl FnOnce(Docker) -> F,
    ) -> Result<Response<Incoming>, Error> {
        let taken = Arc::new(Mutex::new(None));
        let (send, take) = (self.send.clone(), taken.clone());
        let docker = bollard_over(Arc::new(move |request: BollardRequest| -> Sent {
            let (sent, take) = (send(request), take.clone());
            Box::pin(async move {
                let response = sent.await?;
                if !response.status().is_success() {
                    return Ok(response);
                }
                *take.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
                Err(Error::from(io::Error::other("the response was taken")))
            })
        }))?;
        let ended = ask(docker).await;
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (taken, ended) {
            (Some(response), _) => Ok(response),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => Err(io::Error::other("bollard sent no request").into()),
        }
    }
}

/// bollard with `send` as its transport.
fn bollard_over(send: SendRequest) -> Result<Docker, Error> {
    // The host is used only in the Host header.
    Docker::connect_with_custom_transport(
        move |request: BollardRequest| send(request),
        Some("http://docker"),
        BOLLARD_TIMEOUT_S,
        API_DEFAULT_VERSION,
    )
}

fn sender(socket: &str, consent: &Consent) -> SendRequest {
    let (socket, asked) = (socket.to_string(), consent.clone());
    let connector = tower::service_fn(move |_: hyper::Uri| {
        let (socket, asked) = (socket.clone(), asked.clone());
        Box::pin(async move {
            obtain(&asked, Contact::Connection).await?;
            UnixStream::connect(socket).await.map(TokioIo::new)
        })
    });
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEEP)
        .pool_max_idle_per_host(1)
        .build(connector);
    let consent = consent.clone();
    Arc::new(move |mut request: BollardRequest| -> Sent {
        credentials_as_the_engine_reads_them(&mut request);
        let (client, consent) = (client.clone(), consent.clone());
        Box::pin(async move {
            // Also on a kept connection: an engine that is being stopped goes on serving those.
            obtain(&consent, Contact::Request).await?;
            let response = client.request(request).await?;
            match names_podman(response.headers()) {
                true => Err(Error::from(io::Error::other(NotDocker("podman".to_string())))),
                false => Ok(response),
            }
        })
    })
}

/// `true` if the headers of a response are podman's, which names itself in each of them (`apiWrapper` in
/// pkg/api/server/handler_api.go of podman).
fn names_podman(headers: &HeaderMap) -> bool {
    let server = headers.get(SERVER).and_then(|server| server.to_str().ok()).unwrap_or_default();
    headers.contains_key("Libpod-API-Version") || server.starts_with("Libpod/")
}

async fn obtain(consent: &Consent, contact: Contact) -> io::Result<()> {
    consent(contact).await.map_err(|refusal| match refusal {
        Refusal::StartsEngine => io::ErrorKind::ConnectionRefused.into(),
        Refusal::NotDocker(name) => io::Error::other(NotDocker(name)),
    })
}
