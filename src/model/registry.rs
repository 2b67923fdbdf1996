//! Registries: which one a reference names, who may pull there, and whether one may be trusted blindly.

use std::collections::BTreeMap;
use std::fmt;

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

/// Where a password stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// In the settings.
    Here(Secret),
    /// In a file, which is read anew for each pull: what it holds may change.
    File(String),
}

/// Who pulls from one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    /// The name.
    pub username: String,
    /// Its password.
    pub password: Password,
}

/// A name and its password, ready to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// How registries are dealt with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryPolicy {
    /// By `host` or `host:port`, as references begin.
    pub logins: BTreeMap<String, RegistryLogin>,
    /// Whether the engine may be told to trust one that cannot prove who it is.
    pub allow_insecure: bool,
    /// The engine's configuration …
    pub daemon_json: String,
    /// … its pid file …
    pub pid_file: String,
    /// … and its executable.
    pub binary: String,
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
        let password = Password::Here(Secret::new("hunter2"));
        let login = RegistryLogin { username: "node".into(), password };
        let shown = format!("{login:?}");
        assert!(shown.contains("node") && !shown.contains("hunter2"), "{shown}");
    }
}
