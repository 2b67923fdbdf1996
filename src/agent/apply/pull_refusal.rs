//! Reasons for which the engine could not pull an image, derived from its message, and the advice for each.
//!
//! Messages come through the engine from Go's net, net/http and crypto/x509, and from the registry; engines with
//! containerd's image store put `failed to resolve reference "…": failed to do request: Head "…": ` before them.

use self::PullFailure::{
    Dates, Denied, DiskFull, HttpsClosed, Missing, NoNames, OtherName, PlainHttp, Platform, Proxy,
    TooMany, UnknownAuthority, Unreachable, Unresolved, Unverified,
};

/// Reason of a failed pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullFailure {
    /// The registry speaks HTTP where HTTPS was expected.
    PlainHttp,
    /// Port 443 is closed, and the reference names no other port: harbor without TLS listens on port 80 alone.
    HttpsClosed,
    UnknownAuthority,
    OtherName,
    /// The certificate has no names that are still read, or no addresses.
    NoNames,
    /// The certificate has expired, or is not valid yet, by the node's clock.
    Dates,
    /// The certificate cannot be verified for another reason.
    Unverified,
    Denied,
    Missing,
    Platform,
    DiskFull,
    TooMany,
    /// The engine's proxy cannot be reached.
    Proxy,
    Unresolved,
    Unreachable,
}

/// Advice on a certificate whose dates do not fit the node's clock.
pub(super) const CLOCK: &str =
    "see whether the node's clock is right (`date`, `timedatectl`), else renew the certificate";

/// Texts of each reason. The first one that a message has decides.
const TEXTS: [(PullFailure, &[&str]); 14] = [
    (Proxy, &["proxyconnect tcp"]),
    (PlainHttp, &["server gave HTTP response to HTTPS client"]),
    (UnknownAuthority, &["certificate signed by unknown authority"]),
    (Dates, &["certificate has expired or is not yet valid"]),
    (
        NoNames,
        &[
            "doesn't contain any IP SANs",
            "relies on legacy Common Name field",
            "certificate is not valid for any names",
        ],
    ),
    (OtherName, &["x509: certificate is valid for "]),
    (
        Unverified,
        &[
            "failed to verify certificate",
            "x509: certificate is not authorized",
            "x509: certificate specifies an incompatible key usage",
            "x509: a root or intermediate certificate",
            "x509: too many intermediates",
            "x509: issuer name does not match",
        ],
    ),
    (
        Denied,
        &[
            "unauthorized",
            "401 Unauthorized",
            "403 Forbidden",
            "no basic auth credentials",
            "pull access denied",
            "authentication required",
            "denied: ",
        ],
    ),
    (TooMany, &["toomanyrequests", "429 Too Many Requests"]),
    (Platform, &["no matching manifest for", "no match for platform"]),
    (DiskFull, &["no space left on device"]),
    (Missing, &["manifest unknown", ": not found", "name unknown"]),
    (Unresolved, &["no such host", "server misbehaving", "failure in name resolution"]),
    (
        Unreachable,
        &[
            "connection refused",
            "no route to host",
            "network is unreachable",
            "i/o timeout",
            "TLS handshake timeout",
            "request canceled while waiting for connection",
            "context deadline exceeded",
            "connection reset by peer",
        ],
    ),
];

impl PullFailure {
    /// Reason that the engine's message `why` gives for a failed pull from `registry`; `None` for one that is not known.
    pub(super) fn of(why: &str, registry: &str) -> Option<PullFailure> {
        let says = |texts: &[&str]| texts.iter().any(|text| why.contains(text));
        let (failure, _) = TEXTS.into_iter().find(|(_, texts)| says(texts))?;
        // The servers that give out tokens and parts of images may be others.
        let own_url = format!("https://{registry}/");
        let https_closed = failure == Unreachable
            && says(&[":443: connect: connection refused", ":443: getsockopt: connection refused"])
            && !has_port(registry)
            && why.contains(&own_url)
            && !why.contains("/token?");
        Some(if https_closed { HttpsClosed } else { failure })
    }

    /// `true` if the engine would pull from the registry if it trusted it blindly.
    pub(super) fn is_unproven(self) -> bool {
        matches!(
            self,
            PlainHttp | HttpsClosed | UnknownAuthority | OtherName | NoNames | Dates | Unverified
        )
    }

    /// Advice on a failed pull from `registry`, which is empty for the engine's default one; `logged_in` if the settings
    /// have a login for it.
    pub(super) fn advice(self, registry: &str, logged_in: bool) -> String {
        let registry = if registry.is_empty() { "docker.io" } else { registry };
        match self {
            Denied if logged_in => format!(
                "see the name and the password in [registry.\"{registry}\"] of the settings, and whether they may pull \
                 the image"
            ),
            Denied => format!("name who pulls there in [registry.\"{registry}\"] of the settings"),
            Missing => format!("{registry} has no such image: see its name and its tag"),
            Platform => {
                "the image is not for this node's CPU architecture: name one that is".to_string()
            }
            DiskFull => {
                "free space where the engine keeps its images (`docker info`, Docker Root Dir)"
                    .to_string()
            }
            TooMany => {
                format!(
                    "{registry} limits pulls: wait, or log in there ([registry.\"{registry}\"])"
                )
            }
            Proxy => format!(
                "the engine's proxy does not answer: see HTTPS_PROXY of its unit and \"proxies\" of daemon.json, and \
                 name {registry} in NO_PROXY if it needs none"
            ),
            Unresolved => {
                format!("the node cannot resolve the name: see {registry} and /etc/resolv.conf")
            }
            Unreachable => format!(
                "see whether {registry} is right and runs, and whether this node has a route and a free way through \
                 firewalls to it"
            ),
            unproven => unproven.identity_advice(registry),
        }
    }

    /// Advice for a registry that cannot prove who it is.
    fn identity_advice(self, registry: &str) -> String {
        match self {
            PlainHttp => format!("{registry} speaks plain HTTP: give it a certificate"),
            HttpsClosed => format!(
                "nothing listens on port 443 of {registry}: if it has no TLS, as harbor by default, give it a \
                 certificate; if it listens on another port, name that ({registry}:5000/…); else start it"
            ),
            UnknownAuthority => format!(
                "give the engine the certificate of its authority as /etc/docker/certs.d/{registry}/ca.crt"
            ),
            OtherName => format!(
                "name the registry as its certificate does, or have a certificate made for {registry}"
            ),
            NoNames => format!(
                "have a certificate made that has {registry}, without a port, as a subject alternative name (IP or DNS)"
            ),
            Dates => CLOCK.to_string(),
            _ => "have a certificate made that can be verified".to_string(),
        }
    }
}

/// `true` if `registry` names a port.
fn has_port(registry: &str) -> bool {
    let port = registry.rsplit_once(':').map_or("", |(_, port)| port);
    !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of engines, with their registry, each below its source.
    const MESSAGES: [(PullFailure, &str, &str); 28] = [
        // src/net/http/transport.go of Go; the second as containerd's image store gives it (Docker 29).
        (
            PlainHttp,
            "10.0.0.1:5000",
            "Get \"https://10.0.0.1:5000/v2/\": http: server gave HTTP response to HTTPS client",
        ),
        (
            PlainHttp,
            "10.0.0.1:5000",
            "failed to resolve reference \"10.0.0.1:5000/a:1\": failed to do request: Head \
             \"https://10.0.0.1:5000/v2/a/manifests/1\": http: server gave HTTP response to HTTPS client",
        ),
        // goharbor/harbor issue 2273 (Docker 1.13), and the same of Docker 20.10 and of Docker 29.
        (
            HttpsClosed,
            "10.78.220.193",
            "Head https://10.78.220.193/v2/: dial tcp 10.78.220.193:443: getsockopt: connection refused",
        ),
        (
            HttpsClosed,
            "harbor.local",
            "Get \"https://harbor.local/v2/\": dial tcp 10.0.0.1:443: connect: connection refused",
        ),
        (
            HttpsClosed,
            "harbor.local",
            "failed to resolve reference \"harbor.local/a:1\": failed to do request: Head \
             \"https://harbor.local/v2/a/manifests/1\": dial tcp [fd00::1]:443: connect: connection refused",
        ),
        // The same where 443 is what the caller names, or is not the registry's own (goharbor/harbor issue 10353).
        (
            Unreachable,
            "harbor.local:443",
            "Get \"https://harbor.local:443/v2/\": dial tcp 10.0.0.1:443: connect: connection refused",
        ),
        (
            Unreachable,
            "156.119.190.112",
            "Get https://156.119.190.112/v2/: Get https://auth.local/service/token?service=harbor-registry: dial \
             tcp 156.119.190.113:443: connect: connection refused",
        ),
        // src/crypto/x509/verify.go of Go; since 1.20 behind the text of tls.CertificateVerificationError.
        (UnknownAuthority, "a", "x509: certificate signed by unknown authority"),
        (
            UnknownAuthority,
            "a",
            "tls: failed to verify certificate: x509: certificate signed by unknown authority (possibly because of \
             \"crypto/rsa: verification error\" while trying to verify candidate authority certificate \"ca\")",
        ),
        (
            NoNames,
            "10.0.0.1",
            "tls: failed to verify certificate: x509: cannot validate certificate for 10.0.0.1 because it doesn't \
             contain any IP SANs",
        ),
        // Go 1.15 (Docker 20.10), then since 1.17.
        (
            NoNames,
            "a",
            "x509: certificate relies on legacy Common Name field, use SANs or temporarily enable Common Name \
             matching with GODEBUG=x509ignoreCN=0",
        ),
        (NoNames, "a", "x509: certificate relies on legacy Common Name field, use SANs instead"),
        (NoNames, "b", "x509: certificate is not valid for any names, but wanted to match b"),
        (OtherName, "b", "x509: certificate is valid for a, not b"),
        (
            OtherName,
            "10.0.0.1",
            "tls: failed to verify certificate: x509: certificate is valid for 10.0.0.2, not 10.0.0.1",
        ),
        (
            Dates,
            "a",
            "x509: certificate has expired or is not yet valid: current time 2026-01-01T00:00:00Z is after \
             2025-12-31T00:00:00Z",
        ),
        (
            Dates,
            "a",
            "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time \
             1970-01-01T00:03:00Z is before 2025-01-01T00:00:00Z",
        ),
        (Unverified, "a", "x509: certificate specifies an incompatible key usage"),
        (Unverified, "a", "tls: failed to verify certificate: x509: of a later Go"),
        // distribution's errors (registry/api/errcode), containerd's core/remotes/docker, and harbor's.
        (Denied, "a", "unauthorized: unauthorized to access repository: zbs/vhost, action: pull"),
        (
            Denied,
            "a",
            "failed to resolve reference \"a/b:1\": unexpected status from HEAD request to \
             https://a/v2/b/manifests/1: 403 Forbidden",
        ),
        (Missing, "a", "manifest for a/b:1 not found: manifest unknown: manifest unknown"),
        (Missing, "a", "failed to resolve reference \"a/b:1\": a/b:1: not found"),
        (Platform, "a", "no matching manifest for linux/arm64/v8 in the manifest list entries"),
        // src/net/dnsclient.go and src/net/http/transport.go of Go.
        (
            Unresolved,
            "a",
            "Get \"https://a/v2/\": dial tcp: lookup a on 127.0.0.53:53: no such host",
        ),
        (
            Unreachable,
            "a",
            "Get \"https://a/v2/\": net/http: request canceled while waiting for connection (Client.Timeout exceeded \
             while awaiting headers)",
        ),
        (
            Proxy,
            "a",
            "Get \"https://a/v2/\": proxyconnect tcp: dial tcp 10.0.0.9:443: connect: connection refused",
        ),
        (DiskFull, "a", "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"),
    ];

    #[test]
    fn messages_of_engines_are_told_apart() {
        for (failure, registry, message) in MESSAGES {
            assert_eq!(PullFailure::of(message, registry), Some(failure), "{message}");
        }
        assert_eq!(PullFailure::of("something new", "a"), None);
    }

    #[test]
    fn each_reason_has_an_advice_of_its_own() {
        let mut all: Vec<PullFailure> = TEXTS.iter().map(|(failure, _)| *failure).collect();
        all.push(HttpsClosed);
        let advice: std::collections::BTreeSet<String> =
            all.iter().map(|failure| failure.advice("10.0.0.1:5000", false)).collect();
        assert_eq!(advice.len(), all.len(), "{advice:?}");
        assert!(Dates.advice("a", false).contains("clock"));
        assert!(HttpsClosed.advice("harbor.local", false).contains("harbor.local:5000"));
        assert!(UnknownAuthority.advice("", false).contains("certs.d/docker.io/"));
        assert_ne!(Denied.advice("a", false), Denied.advice("a", true));
    }

    #[test]
    fn only_an_identity_that_is_not_proven_is_a_matter_of_trust() {
        let unproven =
            [PlainHttp, HttpsClosed, UnknownAuthority, OtherName, NoNames, Dates, Unverified];
        assert!(unproven.into_iter().all(PullFailure::is_unproven));
        for other in [Denied, Missing, Platform, DiskFull, TooMany, Proxy, Unresolved, Unreachable]
        {
            assert!(!other.is_unproven(), "{other:?}");
        }
    }
}
