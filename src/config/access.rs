//! The settings of who may call: addresses, TLS, tokens, and the Unix socket.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::network::Network;
use crate::model::path::CleanPath;
use crate::model::units::octal;

/// Who may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// From where; without any, from everywhere.
    pub allow: Vec<Network>,
    /// A file of tokens, one a line; empty: none is wanted.
    pub tokens_file: String,
    /// A Unix socket for the node itself; empty: none.
    pub socket: String,
    /// Its group, by number.
    pub socket_gid: u32,
    /// Its mode, in octal.
    #[serde(with = "octal")]
    pub socket_mode: u32,
}

impl Default for Access {
    fn default() -> Access {
        Access {
            allow: Vec::new(),
            tokens_file: String::new(),
            socket: "/run/vhost-agent.sock".to_string(),
            socket_gid: 0,
            socket_mode: 0o660,
        }
    }
}

/// TLS of the listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The agent's certificate and those up to the authority, PEM; empty: no TLS.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
    /// The authorities of the clients' certificates, PEM; empty: clients show none.
    pub client_ca: String,
}

/// An address, or none.
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
    /// What is wrong with it, as the key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        not_plain("access.tokens_file", &self.tokens_file)
            .or_else(|| not_plain("access.socket", &self.socket))
    }
}

impl Tls {
    /// What is wrong with it, as the key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let alone = |key, other: &str| Some((key, format!("it needs {other} too")));
        match (self.certificate.as_str(), self.key.as_str(), self.client_ca.as_str()) {
            ("", "", "") => None,
            ("", _, _) => alone("tls.certificate", "the path of the agent's certificate"),
            (_, "", _) => alone("tls.key", "the path of the certificate's private key"),
            _ => not_plain("tls.certificate", &self.certificate)
                .or_else(|| not_plain("tls.key", &self.key))
                .or_else(|| not_plain("tls.client_ca", &self.client_ca)),
        }
    }
}

fn not_plain(key: &'static str, path: &str) -> Option<(&'static str, String)> {
    let plain = path.is_empty() || path.parse::<CleanPath>().is_ok();
    (!plain).then(|| (key, format!("'{path}' is not a plain absolute path")))
}
