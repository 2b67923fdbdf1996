//! Where everything goes that the agent does not serve.

use super::settings::Settings;
use crate::model::fallback::FallbackAddress;

impl Settings {
    /// The legacy agent, where there is one; judged with all other settings.
    pub fn fallback(&self) -> Option<FallbackAddress> {
        self.fallback_url.parse().ok()
    }
}

/// What is wrong with it, as the key and the reason.
pub(super) fn problem(settings: &Settings) -> Option<(&'static str, String)> {
    let (url, listen) = (&settings.fallback_url, settings.listen);
    if url.is_empty() {
        return None;
    }
    let problem = match url.parse::<FallbackAddress>() {
        Err(why) => why,
        Ok(address) if address.is(listen) => format!(
            "'{url}' is where this agent listens itself ({listen}): give one of the two another port"
        ),
        Ok(_) => return None,
    };
    Some(("fallback_url", problem))
}
