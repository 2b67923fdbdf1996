//! Who pulls images: `[registry."host:port"]`.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::path::CleanPath;
use crate::model::registry::{Password, RegistryLogin, Secret};

/// A registry's credentials.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Who pulls.
    pub username: String,
    /// The password; or …
    pub password: Masked,
    /// … a file that holds nothing else.
    pub password_file: String,
}

/// Credentials by `host` or `host:port`.
pub type Registries = BTreeMap<String, Registry>;

/// A password; it is printed as stars.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masked(pub Secret);

impl Serialize for Masked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.expose().is_empty() { "" } else { "********" })
    }
}

impl<'de> Deserialize<'de> for Masked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Masked, D::Error> {
        // An error of serde's own would repeat what stands there.
        match toml::Value::deserialize(deserializer) {
            Ok(toml::Value::String(word)) => Ok(Masked(Secret::new(word))),
            _ => Err(D::Error::custom("a password is a text in quotes")),
        }
    }
}

/// The planner's share.
pub(super) fn logins(registries: &Registries) -> BTreeMap<String, RegistryLogin> {
    let login = |(host, registry): (&String, &Registry)| {
        let password = match registry.password_file.as_str() {
            "" => Password::Here(registry.password.0.clone()),
            path => Password::File(path.to_string()),
        };
        let username = registry.username.clone();
        (host.clone(), RegistryLogin { username, password })
    };
    registries.iter().map(login).collect()
}

/// What is wrong with them, as the key and the reason.
pub(super) fn problem(registries: &Registries) -> Option<(&'static str, String)> {
    let wrong = |(host, registry): (&String, &Registry)| {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
        if host.is_empty() || !host.chars().all(plain) {
            return Some(format!(
                "'{host}' is no registry: write it as references begin, host:port"
            ));
        }
        if registry.username.is_empty() {
            return Some(format!("{host} has no username"));
        }
        let (here, file) = (registry.password.0.expose(), registry.password_file.as_str());
        if here.is_empty() == file.is_empty() {
            return Some(format!("{host} needs either password or password_file"));
        }
        let path = file.is_empty() || file.parse::<CleanPath>().is_ok();
        (!path).then(|| format!("the password_file of {host} is not a plain absolute path"))
    };
    registries.iter().find_map(wrong).map(|text| ("registry", text))
}
