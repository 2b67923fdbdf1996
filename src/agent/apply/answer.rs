//! Requests of a download and the parsing of responses (RFC 9110: 13.1.5, 14 and 15.4). Nothing is sent here.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, LAST_MODIFIED,
    RANGE, USER_AGENT,
};
use hyper::{Request, Response, StatusCode};
use url::Url;

use crate::host::partial::Partial;

/// Builds a request for the bytes that `partial` lacks. With a validator, the server sends them only if its file is
/// unchanged (`If-Range`).
pub(super) fn request(url: &Url, partial: &Partial) -> Request<Full<Bytes>> {
    let mut request = Request::get(url.as_str())
        .header(USER_AGENT, concat!("vhost-agent/", env!("CARGO_PKG_VERSION")))
        // The digest is of the file, not of a content encoding.
        .header(ACCEPT_ENCODING, "identity");
    if partial.length() > 0 {
        request = request.header(RANGE, format!("bytes={}-", partial.length()));
        if let Some(validator) = &partial.notes().validator {
            request = request.header(IF_RANGE, validator);
        }
    }
    request.body(Full::default()).unwrap_or_default()
}

/// Resolves a redirect, or returns the reason why it is not followed.
pub(super) fn next(from: &Url, location: &str) -> Result<Url, &'static str> {
    let Ok(to) = from.join(location) else { return Err("it is no address") };
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        (_, "http") => Err("what began with https must not go on without it"),
        _ => Err("it is neither http nor https"),
    }
}

fn header(response: &Response<Incoming>, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// Content length of the response, in bytes.
pub(super) fn length(response: &Response<Incoming>) -> Option<u64> {
    header(response, CONTENT_LENGTH)?.parse().ok()
}

/// Size of the whole file in bytes, from a partial response.
pub(super) fn total(response: &Response<Incoming>) -> Option<u64> {
    range(response).and_then(|(_, total)| total)
}

fn range(response: &Response<Incoming>) -> Option<(Option<u64>, Option<u64>)> {
    content_range(header(response, CONTENT_RANGE)?)
}

/// First byte and whole size of `bytes 5-9/10`, `bytes */10`, `bytes 5-9/*` (RFC 9110, 14.4).
fn content_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (bytes, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
    let first = bytes.split_once('-').and_then(|(first, _)| first.parse().ok());
    (first.is_some() || bytes == "*").then(|| (first, total.parse().ok()))
}

/// `true` if the response continues `partial`: it begins with the next missing byte, and the total sizes agree if both
/// are known.
pub(super) fn goes_on(response: &Response<Incoming>, partial: &Partial) -> bool {
    let Some((first, total)) = range(response) else { return false };
    let (known, there) = (partial.notes().total, partial.length());
    response.status() == StatusCode::PARTIAL_CONTENT
        && first == Some(there)
        && (known.is_none() || total.is_none() || known == total)
}

/// `true` if the response is about a byte range (206 or 416) that does not continue `partial`.
pub(super) fn misses(response: &Response<Incoming>, partial: &Partial) -> bool {
    let of_parts = [StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE];
    of_parts.contains(&response.status()) && !goes_on(response, partial)
}

/// `true` if the server answered 416 and its file is exactly as long as `partial`: nothing is missing.
pub(super) fn is_whole(response: &Response<Incoming>, partial: &Partial) -> bool {
    partial.length() > 0
        && response.status() == StatusCode::RANGE_NOT_SATISFIABLE
        && range(response).is_some_and(|(_, total)| total == Some(partial.length()))
}

/// Validator for `If-Range` in a later request. A weak `ETag` is not used (RFC 9110, 13.1.5).
pub(super) fn validator(response: &Response<Incoming>) -> Option<String> {
    let strong = header(response, ETAG).filter(|etag| !etag.starts_with("W/"));
    strong.or_else(|| header(response, LAST_MODIFIED)).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leads_from_https_to_http_or_to_another_scheme() {
        let next = |from: &str, to: &str| super::next(&from.parse().unwrap(), to).map(String::from);
        assert_eq!(next("http://a/b/c", "d").unwrap(), "http://a/b/d");
        assert_eq!(next("http://a/b", "https://c/d").unwrap(), "https://c/d");
        assert_eq!(next("https://a/b", "//c/d").unwrap(), "https://c/d");
        for (from, to) in [
            ("https://a/b", "http://a/b"),
            ("http://a/b", "file:///etc/shadow"),
            ("http://a", "http://"),
        ] {
            assert!(next(from, to).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn ranges_are_read_as_they_are_defined() {
        assert_eq!(content_range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(content_range("bytes */10"), Some((None, Some(10))));
        for text in ["", "5-9/10", "bytes 5-9", "bytes -/-", "items 1-2/3"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
