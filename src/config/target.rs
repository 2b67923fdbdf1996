//! Targets.

use crate::model::image::{ImageSha256, ImageUrl};
use crate::model::path::CleanPath;
use crate::model::policy::TargetSettings;

impl TargetSettings {
    /// What is wrong with it, as the key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let name = &self.control_sock;
        if name.is_empty() || name.contains('/') {
            return Some(("target.control_sock", format!("'{name}' is not the name of a file")));
        }
        let bad = |path: &&String| path.trim_end_matches(":ro").parse::<CleanPath>().is_err();
        if let Some(path) = self.mounts.iter().chain(&self.devices).find(bad) {
            return Some(("target.mounts", format!("'{path}' is not a plain absolute path")));
        }
        self.image_problem().or((self.core_count == 0)
            .then(|| ("target.core_count", "0 is not at least 1".to_string())))
    }

    fn image_problem(&self) -> Option<(&'static str, String)> {
        /// Far more than a target's image has, and far from where bytes overflow.
        const MOST_MIB: u64 = 1 << 30;
        let url = match self.image_url.as_str() {
            "" => None,
            url => url.parse::<ImageUrl>().err().map(|fault| ("target.image_url", fault.text)),
        };
        let digest = match self.image_sha256.as_str() {
            "" => None,
            _ if self.image_url.is_empty() => {
                let text = "it is the digest of what target.image_url names: set that too";
                Some(("target.image_sha256", text.to_string()))
            }
            digest => {
                let judged = digest.parse::<ImageSha256>();
                judged.err().map(|fault| ("target.image_sha256", fault.text))
            }
        };
        let size = (!(1..=MOST_MIB).contains(&self.image_max_mib)).then(|| {
            let text = format!("{} is not between 1 and {MOST_MIB}", self.image_max_mib);
            ("target.image_max_mib", text)
        });
        let free = (self.image_keep_free_mib > MOST_MIB).then(|| {
            let text = format!("{} is more than {MOST_MIB}", self.image_keep_free_mib);
            ("target.image_keep_free_mib", text)
        });
        url.or(digest).or(size).or(free)
    }
}
