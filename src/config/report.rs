//! Reports to the controller.

use url::Url;

use crate::model::policy::ReportPolicy;

impl ReportPolicy {
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
