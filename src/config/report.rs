//! Validation of the settings for reports to the controller.

use crate::model::policy::ReportPolicy;
use crate::model::url::HttpUrl;

impl ReportPolicy {
    /// Finds the first invalid setting: its key and the reason. Durations are checked in `Settings::problem`.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        if !self.url.is_empty() && self.url.parse::<HttpUrl>().is_err() {
            let text = format!("'{}' is no address that begins with http:// or https://", self.url);
            return Some(("report.url", text));
        }
        let path = &self.command_path;
        let plain = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic());
        (!plain).then(|| ("report.command_path", format!("'{path}' is no plain path such as /a/b")))
    }
}
