//! HTTP client for posts to the controller.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::InvalidUri;
use hyper::{Method, Request, StatusCode, Uri};
use tokio::time::timeout;

use crate::model::egress_policy::Reach;
use crate::model::url::{HttpUrl, HttpUrlError, text_without_secrets};
use crate::outgoing::{self, SendError};

/// Time limit for the rest of an answer once its status is known.
const REST: Duration = Duration::from_secs(1);
/// Bytes read of an answer at most; the body is not evaluated.
const ANSWER_BYTES: usize = 64 * 1024;

/// Failure of a post before there was an answer. URLs are shown without the parts that may be secret.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// Failure to load the system's certificates.
    #[error("cannot load the system's certificates for https")]
    Certificates(#[source] std::io::Error),
    /// No answer in time.
    #[error("{url} did not answer within {within:?}")]
    Timeout {
        url: String,
        /// Time limit that has passed.
        within: Duration,
    },
    /// Egress policy allows none of the URL's addresses.
    #[error("{url} is refused")]
    Refused {
        url: String,
        /// Refused address and the reason.
        source: SendError,
    },
    /// Connection that could not be made, or broke.
    #[error("cannot post to {url}")]
    Connection { url: String, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Client with the default connection settings.
#[derive(Debug, Default)]
pub struct ControllerClient(outgoing::HttpClient);

impl ControllerClient {
    /// Posts a JSON body to a URL within the egress policy `reach`; any answer is a success here, and redirects are not
    /// followed.
    ///
    /// # Errors
    /// When there was no answer within `within`.
    pub async fn post(
        &self,
        (url, reach): (&str, &Reach),
        headers: &[(HeaderName, HeaderValue)],
        body: &str,
        within: Duration,
    ) -> Result<StatusCode, PostError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| PostError::Connection {
            url: text_without_secrets(url),
            source,
        };
        let validated: HttpUrl = url.parse().map_err(|e: HttpUrlError| failed(e.into()))?;
        let uri: Uri = validated.as_str().parse().map_err(|e: InvalidUri| failed(e.into()))?;
        let mut all: HeaderMap = headers.iter().cloned().collect();
        all.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut request = Request::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = all;
        let late = |_| PostError::Timeout { url: text_without_secrets(url), within };
        let sent = timeout(within, self.0.send(request, reach)).await.map_err(late)?;
        let response = sent.map_err(|error| match error {
            SendError::Certificates(why) => PostError::Certificates(why),
            SendError::Refused { .. } => {
                PostError::Refused { url: text_without_secrets(url), source: error }
            }
            other => failed(other.into()),
        })?;
        let status = response.status();
        // The rest is read so that the connection can be reused; its content does not matter.
        let rest = Limited::new(response.into_body(), ANSWER_BYTES).collect();
        let _ = timeout(REST, rest).await;
        Ok(status)
    }
}
