//! Validation of the fallback for requests that the agent does not serve.

use std::net::SocketAddr;

use crate::model::fallback::FallbackAddress;

/// Finds the reason why `url` cannot be the fallback of an agent that listens at `listen`, with the setting's key. An
/// empty `url` is valid.
pub(super) fn problem(url: &str, listen: SocketAddr) -> Option<(&'static str, String)> {
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
