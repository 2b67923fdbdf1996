//! Access settings: addresses, TLS, tokens, and the Unix socket.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::access::{Role, Rules};
use crate::model::network::Network;
use crate::model::path::CleanPath;
use crate::model::units::octal;

/// Access settings: allowed callers, their tokens and certificates, the audit log and the Unix socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Set if every caller may do everything. No effect beside `allow`, tokens or client certificates.
    pub open: bool,
    /// Networks from which callers are accepted; empty: all.
    pub allow: Vec<Network>,
    /// File of tokens, one a line, each with the role `admin`; empty: none.
    pub tokens_file: String,
    /// Tokens with a name and a role.
    pub token: Vec<TokenRule>,
    /// Names of client certificates, and their roles.
    pub certificate: Vec<CertificateRule>,
    /// File that also receives the audit log; empty: none.
    pub audit_file: String,
    /// Path of the Unix socket for callers on this node; empty: no socket.
    pub socket: String,
    /// Group of the socket, by number.
    pub socket_gid: u32,
    /// Mode of the socket, in octal.
    #[serde(with = "octal")]
    pub socket_mode: u32,
}

/// Token by its digest. The token itself is not stored, because more people may read the settings than may call the
/// agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRule {
    /// Name in the audit log.
    pub name: String,
    /// SHA-256 of the token, in hex, as `printf %s TOKEN | sha256sum` prints it.
    pub hash: String,
    /// Role that is granted.
    pub role: Role,
}

impl TokenRule {
    /// Returns the bytes of the hash; `None` if it is not 64 hex digits.
    pub fn digest(&self) -> Option<[u8; 32]> {
        let digits = self.hash.strip_prefix("sha256:").unwrap_or(&self.hash);
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
        }
        Some(bytes)
    }
}

/// Rule for client certificates: the names that a certificate must have, and its role. In a name, `*` stands for any
/// characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CertificateRule {
    /// Subject in the form of RFC 4514, such as `CN=controller`; empty: any.
    pub subject: String,
    /// Subject alternative name, a DNS name, URI or address; empty: any.
    pub san: String,
    /// Role that is granted.
    pub role: Option<Role>,
}

impl Default for Access {
    fn default() -> Access {
        Access {
            open: false,
            allow: Vec::new(),
            tokens_file: String::new(),
            token: Vec::new(),
            certificate: Vec::new(),
            audit_file: String::new(),
            socket: "/run/vhost-agent.sock".to_string(),
            socket_gid: 0,
            socket_mode: 0o660,
        }
    }
}

/// TLS of the main listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file of the agent's certificate and its intermediate certificates; empty: no TLS.
    pub certificate: String,
    /// PEM file of the private key of `certificate`.
    pub key: String,
    /// PEM file of the authorities that sign client certificates; empty: clients show no certificate.
    pub client_ca: String,
    /// PEM file of the revocation lists (CRLs, RFC 5280) of the authorities in `client_ca`; empty: revocation is not
    /// checked.
    pub client_crl: String,
}

/// Optional socket address; none is written as an empty string.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaybeAddress(pub Option<SocketAddr>);

impl Serialize for MaybeAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(address) => serializer.collect_str(&address),
            None => serializer.serialize_str(""),
        }
    }
}

impl<'de> Deserialize<'de> for MaybeAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MaybeAddress, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(MaybeAddress(None));
        }
        let parsed = text.parse().map(|address| MaybeAddress(Some(address)));
        parsed.map_err(|_| {
            serde::de::Error::custom(format!("'{text}' is no address such as 127.0.0.1:9070"))
        })
    }
}

impl Access {
    /// Finds the first invalid setting: its key and the reason.
    pub(super) fn problem(&self, tls: &Tls) -> Option<(&'static str, String)> {
        not_plain("access.tokens_file", &self.tokens_file)
            .or_else(|| not_plain("access.socket", &self.socket))
            .or_else(|| not_plain("access.audit_file", &self.audit_file))
            .or_else(|| self.names_problem())
            .or_else(|| self.hashes_problem())
            .or_else(|| self.certificates_problem(tls))
    }

    fn names_problem(&self) -> Option<(&'static str, String)> {
        let mut names = BTreeSet::new();
        self.token.iter().find_map(|rule| {
            let name = rule.name.as_str();
            let plain = !name.is_empty()
                && name.len() <= 64
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b));
            let why = match (plain, names.insert(name)) {
                (false, _) => "is no name of at most 64 letters, digits and -_.@",
                (true, false) => "is the name of two tokens",
                (true, true) => return None,
            };
            Some(("access.token", format!("'{name}' {why}")))
        })
    }

    /// Finds a token with an invalid hash. The reason does not repeat the hash, because somebody may have written the
    /// token itself there.
    fn hashes_problem(&self) -> Option<(&'static str, String)> {
        let wrong = self.token.iter().find(|rule| rule.digest().is_none())?;
        let text = format!(
            "the hash of '{}' is no SHA-256, 64 hex digits as `printf %s TOKEN | sha256sum` prints them",
            wrong.name
        );
        Some(("access.token", text))
    }

    fn certificates_problem(&self, tls: &Tls) -> Option<(&'static str, String)> {
        let wrong = |why: &str| Some(("access.certificate", why.to_string()));
        if !self.certificate.is_empty() && tls.client_ca.is_empty() {
            return wrong("no client shows a certificate without tls.client_ca");
        }
        let rules = || self.certificate.iter();
        if rules().any(|rule| rule.subject.is_empty() && rule.san.is_empty()) {
            return wrong("it needs a subject or a san, such as san = \"controller.example\"");
        }
        if rules().any(|rule| rule.role.is_none()) {
            return wrong("it needs a role: read, volumes, deploy or admin");
        }
        None
    }

    /// Access rules of the main listener.
    pub fn rules(&self, tls: &Tls) -> Rules {
        Rules {
            open: self.open,
            allow: self.allow.clone(),
            tokens: !self.tokens_file.is_empty() || !self.token.is_empty(),
            certificates: !tls.client_ca.is_empty(),
        }
    }
}

impl Tls {
    /// Finds the first invalid setting: its key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let alone = |key, other: &str| Some((key, format!("it needs {other} too")));
        match (self.certificate.as_str(), self.key.as_str(), self.client_ca.as_str()) {
            ("", "", "") => None,
            ("", _, _) => alone("tls.certificate", "the path of the agent's certificate"),
            (_, "", _) => alone("tls.key", "the path of the certificate's private key"),
            (_, _, "") if !self.client_crl.is_empty() => alone("tls.client_crl", "tls.client_ca"),
            _ => not_plain("tls.certificate", &self.certificate)
                .or_else(|| not_plain("tls.key", &self.key))
                .or_else(|| not_plain("tls.client_ca", &self.client_ca))
                .or_else(|| not_plain("tls.client_crl", &self.client_crl)),
        }
    }
}

fn not_plain(key: &'static str, path: &str) -> Option<(&'static str, String)> {
    let plain = path.is_empty() || path.parse::<CleanPath>().is_ok();
    (!plain).then(|| (key, format!("'{path}' is not a plain absolute path")))
}
