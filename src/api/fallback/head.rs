//! Heads of forwarded messages. All headers pass, except those that concern one connection only (RFC 9110, 7.6.1).

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version, header, response};

use super::super::ZBS;

/// URI of a request as its caller sent it. The router sees a normalized one.
#[derive(Debug, Clone)]
pub struct OriginalUri(pub Uri);

/// Builds the forwarded request. Method, URI, body and headers stay as the caller sent them, with the spelling of the
/// header names. Only the headers of the connection are replaced.
///
/// No header names this agent as a proxy: kvmagent gets the same request as without this agent.
pub(super) fn forwarded<B>(head: Parts, body: B) -> Request<B> {
    let Parts { method, uri, version, headers, mut extensions, .. } = head;
    let uri = extensions.remove::<OriginalUri>().map_or(uri, |OriginalUri(sent)| sent);
    let mut request = Request::new(body);
    *request.headers_mut() = end_to_end(&headers);
    let mut own = HeaderValue::from_static("close");
    if takes_trailers(&headers) {
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        own = HeaderValue::from_static("close, te");
    }
    request.headers_mut().insert(header::CONNECTION, own);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    // The version is kept: a request without `Host` is only valid in HTTP/1.0, which has no chunked bodies either.
    *request.version_mut() = version;
    // The extensions hold the spelling of the header names.
    *request.extensions_mut() = extensions;
    request
}

/// `true` if `path` is another spelling of a path under [`ZBS`], which is never forwarded: with escapes, `//`, `.` or
/// `..` in it, or with something before it.
///
/// For some readers, CherryPy among them, `//host/…` and `/x://host/…` are URLs in absolute form, of which they look up
/// only the part after the host.
pub(super) fn is_own_in_disguise(path: &str) -> bool {
    let plain = plain(path);
    let own = plain.match_indices(ZBS).find(|(at, _)| {
        let behind = &plain[at + ZBS.len()..];
        behind.is_empty() || behind.starts_with('/')
    });
    own.is_some_and(|(at, _)| at > 0 || plain != path.trim_end_matches('/'))
}

/// Prefixes of the paths that the legacy agent serves to callers on its own node only: its operation and its plug-ins.
const FOR_THE_NODE: [&str; 2] = ["/kvmagent/operations/", "/kvmagent/plugins/"];

/// `true` if the legacy agent serves `path` to callers on its own node only. Recognizes each spelling of such a path.
pub(super) fn is_for_the_node(path: &str) -> bool {
    let plain = plain(path).to_ascii_lowercase() + "/";
    FOR_THE_NODE.iter().any(|own| plain.contains(own))
}

/// Calls of the legacy agent that rewrite `vm.nr_hugepages` (packaging/doc/facts.md, "Routes outside of the vhost
/// part").
const POOL_CALLS: [&str; 2] = ["/host/enable/hugepage", "/host/disable/hugepage"];

/// `true` if `path` ends with one of [`POOL_CALLS`], in any spelling. A false match does no harm: it causes one
/// needless observation of the pools.
pub(super) fn changes_pools(path: &str) -> bool {
    let plain = plain(path);
    POOL_CALLS.iter().any(|call| plain.ends_with(call))
}

/// Normalizes a path: decodes all escapes, then resolves `//`, `.` and `..`.
fn plain(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, more @ ..] = rest {
        let escaped = match (first, more) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &more[2..] } else { more };
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.iter().fold(String::new(), |path, part| path + "/" + &String::from_utf8_lossy(part))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Builds the response to the caller from the `head` of the legacy agent's response and the relayed `body`.
pub(super) fn answered<B>(head: response::Parts, body: B) -> axum::http::Response<B> {
    let mut response = axum::http::Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = end_to_end(&head.headers);
    *response.version_mut() = Version::HTTP_11;
    // The extensions hold the spelling of the header names, and the reason phrase.
    *response.extensions_mut() = head.extensions;
    response
}

/// Returns the headers in their order, without those that concern one connection only. `Transfer-Encoding` stays,
/// because codings other than `chunked` are not decoded here; hyper adapts it to the other connection.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if !belongs_to_the_connection(name) && !named.contains(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}

fn belongs_to_the_connection(name: &HeaderName) -> bool {
    let known = [header::CONNECTION, header::TE, header::UPGRADE];
    known.contains(name) || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

/// Headers that `Connection` names, except those that a message needs at both ends: its length, its coding, its host
/// and its type.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let firm =
        [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::HOST, header::CONTENT_TYPE];
    let names = headers.get_all(header::CONNECTION).iter().flat_map(words);
    names.filter(|name| !firm.contains(name)).collect()
}

fn words(value: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    let words = value.as_bytes().split(|byte| *byte == b',');
    words.filter_map(|word| HeaderName::from_bytes(word.trim_ascii()).ok())
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    let trailers = HeaderName::from_static("trailers");
    headers.get_all(header::TE).iter().flat_map(words).any(|word| word == trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(headers: &HeaderMap) -> Vec<(&str, &str)> {
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
    }

    fn sent(lines: &[(&'static str, &'static str)]) -> Parts {
        let mut request = Request::new(());
        for (name, value) in lines {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request.into_parts().0
    }

    #[test]
    fn another_spelling_of_an_own_path_is_seen() {
        for path in [
            "/%7abs/primarystorage/vhost/target/health",
            "/zbs/./primarystorage/vhost/activate/",
            "//zbs/primarystorage//vhost/x",
            "/x/../zbs/primarystorage/vhost/deploy",
            "/%2e%2e/zbs/primarystorage/%76host",
            "//host/zbs/primarystorage/vhost/target/ensure",
            "/x://host/zbs/primarystorage/vhost/target/ensure",
            "/x:///zbs/primarystorage/vhost/target/ensure",
        ] {
            assert!(is_own_in_disguise(path), "{path}");
        }
        for path in [
            "/zbs/primarystorage/vhost/not/ours",
            "/zbs/primarystorage/vhost/",
            "/zbs/primarystorage/other",
            "/zbs/primarystorage/vhosts",
            "/x/zbs/primarystorage/vhost-2/y",
            "//kvm/%7Evm/../x",
            "/%",
            "/%zz%4",
            "*",
            "",
        ] {
            assert!(!is_own_in_disguise(path), "{path}");
        }
    }

    #[test]
    fn paths_for_the_node_are_seen_however_they_are_written() {
        for path in [
            "/kvmagent/operations/restart-fence",
            "/kvmagent/operations",
            "//kvmagent/./plugins/x",
            "/kvm/../kvmagent/plugins/a/b",
            "/%6bvmagent/%70lugins%2Fx",
            "/KVMAgent/Operations/x",
            "/x/kvmagent/operations/y",
        ] {
            assert!(is_for_the_node(path), "{path}");
        }
        for path in ["/kvmagent", "/kvmagent/operation/x", "/kvm/vm/start", "/kvmagents/plugins/x"]
        {
            assert!(!is_for_the_node(path), "{path}");
        }
    }

    #[test]
    fn calls_that_change_the_pools_are_known_however_they_are_written() {
        for path in
            ["/host/enable/hugepage", "/host/disable/hugepage/", "//n/host/./enable/%68ugepage"]
        {
            assert!(changes_pools(path), "{path}");
        }
        for path in ["/host/enable/hugepages", "/host/ping", "/hugepage", "*"] {
            assert!(!changes_pools(path), "{path}");
        }
    }

    #[test]
    fn what_is_one_connections_own_stays_there() {
        let head = sent(&[
            ("host", "node"),
            ("connection", "keep-alive, X-Hop"),
            ("connection", "close, content-length"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("x-hop", "1"),
            ("content-length", "4"),
            ("x-more", "b"),
            ("x-more", "a"),
        ]);
        let request = forwarded(head, ());
        let expected = [
            ("host", "node"),
            ("content-length", "4"),
            ("x-more", "b"),
            ("x-more", "a"),
            ("connection", "close"),
        ];
        assert_eq!(pairs(request.headers()), expected);
    }

    #[test]
    fn who_takes_trailers_is_given_some() {
        let request = forwarded(sent(&[("te", "gzip, trailers"), ("trailer", "x-sum")]), ());
        let expected = [("trailer", "x-sum"), ("te", "trailers"), ("connection", "close, te")];
        assert_eq!(pairs(request.headers()), expected);
    }

    #[test]
    fn the_target_is_the_one_that_was_sent() {
        let mut head = sent(&[]);
        head.uri = Uri::from_static("/a");
        head.extensions.insert(OriginalUri(Uri::from_static("//a//?")));
        assert_eq!(forwarded(head, ()).uri().to_string(), "//a//?");
    }
}
