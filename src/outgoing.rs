//! HTTP client for all outbound requests: `http` and `https`, the system's certificates, no redirects followed.
//! Deadlines and the evaluation of an answer are up to the caller.
//!
//! ```text
//! request + Reach ──▶ resolve its host ──▶ check each address ──▶ write the allowed ones into its authority
//!                        ──▶ a pooled connection to just these, or a new one to the first that answers
//! ```
//! A name is resolved only here, so that the addresses checked are the addresses called: the connector reads them from
//! the authority of the URI (`written`), which is also the key of the connection pool. A pooled connection is thus
//! never used for a request that would not have been allowed to open it.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HOST, HeaderValue, VIA};
use hyper::{Request, Response, Uri};
use hyper_rustls::{
    DefaultServerNameResolver, HttpsConnector, HttpsConnectorBuilder, ResolveServerName,
};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as HyperClient, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::lookup_host;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use self::written::WrittenResolver;
use crate::model::egress_policy::{Reach, RefusedAddress, VIA_AGENT};

mod written;

/// Time limit for establishing a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Time limit for resolving a name.
const RESOLVE: Duration = Duration::from_secs(10);

/// Failure of a request before any answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("cannot load the system's certificates for https")]
    Certificates(#[source] io::Error),
    #[error("it is no address that can be called")]
    NoAddress,
    #[error("the name '{host}' cannot be resolved")]
    Unresolved {
        host: String,
        /// Error of the resolver.
        source: io::Error,
    },
    #[error("'{host}' leads nowhere that may be called")]
    Refused {
        /// Host in the URL, a name or an address.
        host: String,
        /// First refused address of `host`, and the reason.
        source: RefusedAddress,
    },
    /// The connection could not be established, or broke.
    #[error(transparent)]
    Connection(#[from] Error),
}

type Plain = HttpConnector<WrittenResolver>;

/// HTTP client; the certificates are loaded for the first `https` request.
#[derive(Debug)]
pub struct HttpClient {
    http: HyperClient<Plain, Full<Bytes>>,
    https: OnceCell<HyperClient<HttpsConnector<Plain>, Full<Bytes>>>,
}

impl Default for HttpClient {
    fn default() -> HttpClient {
        HttpClient { http: builder().build(connector(true)), https: OnceCell::new() }
    }
}

fn connector(enforce_http: bool) -> Plain {
    let mut connector = HttpConnector::new_with_resolver(WrittenResolver);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_nodelay(true);
    connector.enforce_http(enforce_http);
    connector
}

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = HyperClient::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(15))
        .pool_max_idle_per_host(2);
    builder
}

impl HttpClient {
    /// Sends `request` to an address that `reach` allows. An answer with any HTTP status is a success here; its body is
    /// not read yet. A user name in the URL is ignored.
    ///
    /// # Errors
    /// When no answer came, or when nothing was sent because no address of the host is allowed.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        reach: &Reach,
    ) -> Result<Response<Incoming>, SendError> {
        let addresses = authorized(request.uri(), reach).await?;
        let host = host_header(request.uri()).ok_or(SendError::NoAddress)?;
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(VIA, HeaderValue::from_static(VIA_AGENT));
        *request.uri_mut() = written::uri(request.uri(), &addresses).ok_or(SendError::NoAddress)?;
        match request.uri().scheme_str() {
            Some("https") => Ok(self.https().await?.request(request).await?),
            _ => Ok(self.http.request(request).await?),
        }
    }

    async fn https(&self) -> Result<&HyperClient<HttpsConnector<Plain>, Full<Bytes>>, SendError> {
        let load = async || {
            // Loaded on a blocking thread: hundreds of files are read and parsed.
            let connector = tokio::task::spawn_blocking(|| {
                let with_roots = HttpsConnectorBuilder::new().with_native_roots()?;
                let name =
                    |uri: &Uri| DefaultServerNameResolver::default().resolve(&written::named(uri)?);
                let https = with_roots.https_only().with_server_name_resolver(name);
                Ok(https.enable_http1().wrap_connector(connector(false)))
            });
            let connector = connector.await.map_err(io::Error::other).flatten();
            Ok(builder().build(connector.map_err(SendError::Certificates)?))
        };
        self.https.get_or_try_init(load).await
    }
}

/// Addresses of the host of `uri` that `reach` allows, in the order of attempts.
async fn authorized(uri: &Uri, reach: &Reach) -> Result<Vec<IpAddr>, SendError> {
    let host = uri.host().filter(|host| !host.is_empty()).ok_or(SendError::NoAddress)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let all = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => resolve(host)
            .await
            .map_err(|source| SendError::Unresolved { host: host.to_string(), source })?,
    };
    let mut refused = None;
    let mut allowed = Vec::new();
    // IPv4-mapped addresses are turned into IPv4 before the check, so that the addresses checked are the addresses
    // called.
    for address in all.iter().map(IpAddr::to_canonical) {
        match reach.authorize(address) {
            Ok(()) if allowed.contains(&address) => {}
            Ok(()) => allowed.push(address),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    match refused {
        Some(source) if allowed.is_empty() => {
            Err(SendError::Refused { host: host.to_string(), source })
        }
        _ => Ok(allowed),
    }
}

async fn resolve(name: &str) -> Result<Vec<IpAddr>, io::Error> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {RESOLVE:?}"));
    let found = timeout(RESOLVE, lookup_host((name, 0))).await.map_err(late)??;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    match found.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        false => Ok(found),
    }
}

/// Value of the Host header: host and port of `uri` (RFC 9110, 7.2), without the scheme's default port.
fn host_header(uri: &Uri) -> Option<HeaderValue> {
    let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let host = uri.host()?;
    match uri.port_u16().filter(|port| *port != usual) {
        Some(port) => HeaderValue::from_str(&format!("{host}:{port}")).ok(),
        None => HeaderValue::from_str(host).ok(),
    }
}

#[cfg(test)]
#[path = "outgoing/outgoing_tests.rs"]
mod tests;
