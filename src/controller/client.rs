//! Posts to the controller.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use tokio::time::timeout;

use crate::outgoing::{self, SendError};

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

/// The client.
#[derive(Debug, Default)]
pub struct Client(outgoing::Client);

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
        let late = |_| PostError::Timeout { url: url.to_string(), within };
        let sent = timeout(within, self.0.send(request)).await.map_err(late)?;
        let response = sent.map_err(|error| match error {
            SendError::Certificates(why) => PostError::Certificates(why),
            SendError::Connection(why) => failed(why.into()),
        })?;
        let status = response.status();
        // The rest is read so that the connection can be used again; what it says does not matter.
        let rest = Limited::new(response.into_body(), ANSWER_BYTES).collect();
        let _ = timeout(REST, rest).await;
        Ok(status)
    }
}
