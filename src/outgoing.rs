//! One HTTP client for everything that goes out: `http` and `https`, certificates of the system, no
//! redirects by itself. Deadlines, and what an answer means, are the caller's.
//!
//! What is only handed on does not go through it: `stream` is one request on a connection of its own, and
//! `relay` its body.

pub mod relay;
pub mod stream;

use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as HyperClient, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::OnceCell;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(10);

/// A request that failed before there was an answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The certificates of the system could not be loaded.
    #[error("cannot load the system's certificates for https")]
    Certificates(#[source] std::io::Error),
    /// No connection, or it broke.
    #[error(transparent)]
    Connection(#[from] Error),
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
    /// Sends a request; any answer is a success here, and its body is still to come.
    ///
    /// # Errors
    /// When there was no answer.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, SendError> {
        match request.uri().scheme_str() {
            Some("https") => Ok(self.https().await?.request(request).await?),
            _ => Ok(self.http.request(request).await?),
        }
    }

    async fn https(
        &self,
    ) -> Result<&HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>, SendError> {
        let load = async || {
            // Hundreds of files are read and parsed: not on the runtime.
            let connector = tokio::task::spawn_blocking(|| {
                let with_roots = HttpsConnectorBuilder::new().with_native_roots()?;
                Ok(with_roots.https_only().enable_http1().wrap_connector(connector(false)))
            });
            let connector = connector.await.map_err(std::io::Error::other).flatten();
            Ok(builder().build(connector.map_err(SendError::Certificates)?))
        };
        self.https.get_or_try_init(load).await
    }
}
