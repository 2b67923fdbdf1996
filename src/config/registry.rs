//! Validation of the logins at registries.

use crate::model::path::CleanPath;
use crate::model::registry::{RegistryLogin, RegistryLogins};

/// Finds the first invalid login: the key and the reason.
pub(super) fn problem(registries: &RegistryLogins) -> Option<(&'static str, String)> {
    let wrong = |(host, registry): (&String, &RegistryLogin)| {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
        if host.is_empty() || !host.chars().all(plain) {
            return Some(format!(
                "'{host}' is no registry: write it as references begin, host:port"
            ));
        }
        if registry.username.is_empty() {
            return Some(format!("{host} has no username"));
        }
        let (here, file) = (registry.password.expose(), registry.password_file.as_str());
        if here.is_empty() == file.is_empty() {
            return Some(format!("{host} needs either password or password_file"));
        }
        let path = file.is_empty() || file.parse::<CleanPath>().is_ok();
        (!path).then(|| format!("the password_file of {host} is not a plain absolute path"))
    };
    registries.iter().find_map(wrong).map(|text| ("registry", text))
}
