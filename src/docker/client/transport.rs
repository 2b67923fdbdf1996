//! Connection to the engine's socket that is kept between calls. bollard's own Unix transport reconnects for each call,
//! which costs the engine more than the call itself.

use std::io;
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper::header::HeaderValue;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;

use super::{Consent, Contact};

/// Deadline of bollard for a call, in seconds. The agent's own deadlines are shorter; this one only catches a call
/// without one.
const BOLLARD_TIMEOUT_S: u64 = 3600;
/// Idle time after which a connection is closed.
const KEEP: Duration = Duration::from_secs(60);

/// Kind of the I/O error among the causes of `error`; `None` if there is none.
pub(super) fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let kind = |e: &(dyn std::error::Error + 'static)| match e.downcast_ref::<Error>() {
        // It passes its cause over in its sources.
        Some(Error::IOError { err }) => Some(err.kind()),
        _ => e.downcast_ref::<io::Error>().map(io::Error::kind),
    };
    std::iter::successors(Some(error), |e| e.source()).find_map(kind)
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

/// Client that connects on its first call and keeps the connection for the next one.
pub(super) fn connect(socket: &str, consent: &Consent) -> Result<Docker, Error> {
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
    let send = move |mut request: BollardRequest| {
        credentials_as_the_engine_reads_them(&mut request);
        let (client, consent) = (client.clone(), consent.clone());
        async move {
            // Also on a kept connection: an engine that is being stopped goes on serving those.
            obtain(&consent, Contact::Request).await?;
            Ok(client.request(request).await?)
        }
    };
    // The host is used only in the Host header.
    Docker::connect_with_custom_transport(
        send,
        Some("http://docker"),
        BOLLARD_TIMEOUT_S,
        API_DEFAULT_VERSION,
    )
}

async fn obtain(consent: &Consent, contact: Contact) -> io::Result<()> {
    match consent(contact).await {
        true => Ok(()),
        false => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}
