//! Validation of the volumes' settings.

use std::time::Duration;

use super::settings::too_short;
use crate::model::policy::VolumePolicy;

impl VolumePolicy {
    /// Finds the first invalid setting: its key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let look = ("volume.look_interval", self.look_interval, Duration::from_millis(100));
        let call = ("volume.call_timeout", self.call_timeout, Duration::from_millis(100));
        // Targets of some versions take one second to start a session.
        let stuck = ("volume.stuck_after", self.stuck_after, Duration::from_millis(1500));
        too_short([look, call, stuck])
    }
}
