//! Validation of the settings of the hook for libvirt.

use std::time::Duration;

use super::settings::too_short;
use crate::model::policy::LibvirtPolicy;

impl LibvirtPolicy {
    /// Finds the first invalid setting: its key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        const DAY: Duration = Duration::from_secs(86_400);
        let long = || ("libvirt.lease", format!("{:?} is more than a day", self.lease));
        too_short([("libvirt.lease", self.lease, Duration::from_secs(1))])
            .or_else(|| (self.lease > DAY).then(long))
    }
}
