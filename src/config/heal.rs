//! Validation of the settings for restarting targets.

use std::time::Duration;

use super::settings::too_short;
use crate::model::policy::HealPolicy;

impl HealPolicy {
    /// Finds the first invalid setting: its key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let least = Duration::from_millis(100);
        let short = too_short([
            ("heal.first_delay", self.first, least),
            ("heal.max_delay", self.most, self.first),
            ("heal.unresponsive_after", self.unresponsive_after, least),
        ]);
        let jitter = (self.jitter_percent > 50)
            .then(|| ("heal.jitter_percent", format!("{} is more than 50", self.jitter_percent)));
        short.or(jitter)
    }
}
