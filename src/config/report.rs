//! The settings of reporting to the controller.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::model::units::duration;

/// What the controller is told unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Report {
    /// Whether it is told at all.
    pub enabled: bool,
    /// Where to; empty: where the controller said when it connected.
    pub url: String,
    /// The command path under which the controller takes it.
    pub command_path: String,
    /// The heartbeat, when nothing changes; a tenth more or less.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// How long one attempt may take.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Before the second attempt; doubled with each one after.
    #[serde(with = "duration")]
    pub first_delay: Duration,
    /// The longest time between two attempts.
    #[serde(with = "duration")]
    pub max_delay: Duration,
    /// Between two attempts at a controller that does not know the command path.
    #[serde(with = "duration")]
    pub unknown_delay: Duration,
}

impl Default for Report {
    fn default() -> Report {
        Report {
            enabled: true,
            url: String::new(),
            command_path: "/zbs/primarystorage/vhost/target/status".to_string(),
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            unknown_delay: Duration::from_secs(600),
        }
    }
}

impl Report {
    /// What is wrong with it, as the key and the reason; its durations are judged with all others.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let is_web = |url: &Url| ["http", "https"].contains(&url.scheme()) && url.has_host();
        if !self.url.is_empty() && !Url::parse(&self.url).is_ok_and(|url| is_web(&url)) {
            let text = format!("'{}' is no address that begins with http:// or https://", self.url);
            return Some(("report.url", text));
        }
        let path = &self.command_path;
        let plain = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic());
        (!plain).then(|| ("report.command_path", format!("'{path}' is no plain path such as /a/b")))
    }
}
