//! Validation of the health probe's settings.

use std::time::Duration;

use crate::model::policy::HealthPolicy;

impl HealthPolicy {
    /// Finds the first invalid setting: its key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        const LEAST: Duration = Duration::from_millis(10);
        const MOST: Duration = Duration::from_secs(60);
        let interval = self.interval;
        if !(LEAST..=MOST).contains(&interval) {
            let text = format!("{interval:?} is not between {LEAST:?} and {MOST:?}");
            return Some(("health.interval", text));
        }
        (self.max_age > MOST)
            .then(|| ("health.max_age", format!("{:?} is more than {MOST:?}", self.max_age)))
    }
}
