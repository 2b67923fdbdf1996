//! Registries: which one a reference names, who may pull there, and whether one may be trusted blindly.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::policy::EnginePolicy;

/// A word that is shown to nobody.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    pub fn new(word: impl Into<String>) -> Secret {
        Secret(word.into())
    }

    /// The word itself, for whoever it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}

/// A secret is printed as stars, in settings too.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "********" })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        // An error of serde's own would repeat what stands there.
        match toml::Value::deserialize(deserializer) {
            Ok(toml::Value::String(word)) => Ok(Secret(word)),
            _ => Err(D::Error::custom("a password is a text in quotes")),
        }
    }
}

/// Who pulls from one registry: `[registry."host:port"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryLogin {
    /// The name.
    pub username: String,
    /// The password; or …
    pub password: Secret,
    /// … a file that holds nothing else, read anew for each pull: what it holds may change.
    pub password_file: String,
}

/// A name and its password, ready to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// Logins by `host` or `host:port`, as references begin.
pub type Registries = BTreeMap<String, RegistryLogin>;

/// How registries are dealt with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryPolicy {
    /// Who pulls from them.
    pub logins: Registries,
    /// The engine that pulls, and whether it may be told to trust one blindly.
    pub engine: EnginePolicy,
}

/// The registry that a reference names: its first part has a dot or a colon, or is `localhost`.
pub fn registry_of(reference: &str) -> Option<&str> {
    let (first, _) = reference.split_once('/')?;
    (first.contains(['.', ':']) || first == "localhost").then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let password = Secret::new("hunter2");
        let login = RegistryLogin { username: "node".into(), password, ..RegistryLogin::default() };
        let shown = format!("{login:?}");
        assert!(shown.contains("node") && !shown.contains("hunter2"), "{shown}");
    }
}
