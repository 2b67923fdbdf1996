//! Image registries: the registry that a reference names, the logins, and the settings of the engine that pulls.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::policy::EnginePolicy;

/// Password that is never shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(word: impl Into<String>) -> Secret {
        Secret(word.into())
    }

    /// Password itself, for a login.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}

/// Writes a secret as stars, in settings too.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "********" })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        // An error of serde itself would repeat the password.
        match toml::Value::deserialize(deserializer) {
            Ok(toml::Value::String(word)) => Ok(Secret(word)),
            _ => Err(D::Error::custom("a password is a text in quotes")),
        }
    }
}

/// Login to one registry: `[registry."host:port"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryLogin {
    pub username: String,
    /// Password; the alternative is `password_file`.
    pub password: Secret,
    /// File that holds only the password, read anew for each pull: its content may change.
    pub password_file: String,
}

/// User name and password, ready to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// Logins by registry: `host` or `host:port`, as at the beginning of an image reference.
pub type RegistryLogins = BTreeMap<String, RegistryLogin>;

/// Settings of registries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryPolicy {
    pub logins: RegistryLogins,
    /// Settings of the engine that pulls images, `insecure_registries` among them.
    pub engine: EnginePolicy,
}

/// Registry that an image reference names: the part before the first slash, if it has a dot or a colon, or is
/// `localhost`.
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
