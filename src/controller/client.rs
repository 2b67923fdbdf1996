//! One HTTP client for everything that goes out: `http` and `https`, no redirects.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the rest of an answer may take once its status is known.
const REST: Duration = Duration::from_secs(1);
/// What is read of an answer; nobody looks at more.
const ANSWER_BYTES: usize = 64 * 1024;

/// A post that failed before there was an answer.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The certificates of the system could not be loaded.
    #[error("cannot load the system's certificates for https")]
    Certificates(#[source] std::io::Error),
    /// No answer in time.
    #[error("{url} did not answer within {within:?}")]
    Timeout {
        /// Where to.
        url: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// No connection, or it broke.
    #[error("cannot post to {url}")]
    Connection {
        /// Where to.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The client. Certificates are loaded when the first `https` address is called.
#[derive(Debug)]
pub struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    https: OnceCell<HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>>,
}

impl Default for Client {
    fn default() -> Client {
        Client { http: builder().build(connector(true)), https: OnceCell::new() }
    }
}

fn connector(enforce_http: bool) -> HttpConnector {
    let mut connector = HttpConnector::new();
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

impl Client {
    /// Posts a JSON body; any answer is a success here.
    ///
    /// # Errors
    /// When there was no answer within `within`.
    pub async fn post(
        &self,
        url: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: &str,
        within: Duration,
    ) -> Result<StatusCode, PostError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| PostError::Connection {
            url: url.to_string(),
            source,
        };
        let uri: Uri = url.parse().map_err(|e: hyper::http::uri::InvalidUri| failed(e.into()))?;
        let mut all: HeaderMap = headers.iter().cloned().collect();
        all.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut request = Request::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = all;
        let head = async {
            let response = match request.uri().scheme_str() {
                Some("https") => self.https().await?.request(request).await,
                _ => self.http.request(request).await,
            };
            response.map_err(|e| failed(e.into()))
        };
        let late = |_| PostError::Timeout { url: url.to_string(), within };
        let response = timeout(within, head).await.map_err(late)??;
        let status = response.status();
        // The rest is read so that the connection can be used again; what it says does not matter.
        let rest = Limited::new(response.into_body(), ANSWER_BYTES).collect();
        let _ = timeout(REST, rest).await;
        Ok(status)
    }

    async fn https(
        &self,
    ) -> Result<&HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>, PostError> {
        let load = async || {
            // Hundreds of files are read and parsed: not on the runtime.
            let connector = tokio::task::spawn_blocking(|| {
                let with_roots = HttpsConnectorBuilder::new().with_native_roots()?;
                Ok(with_roots.https_only().enable_http1().wrap_connector(connector(false)))
            });
            let connector = connector.await.map_err(std::io::Error::other).flatten();
            Ok(builder().build(connector.map_err(PostError::Certificates)?))
        };
        self.https.get_or_try_init(load).await
    }
}
