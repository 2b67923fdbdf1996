//! Validation of the targets' settings.

use crate::model::bounds::{
    PathPurpose, device_pattern_problem, image_pattern_problem, image_url_problem,
    raw_method_problem, root_problem,
};
use crate::model::cgroup::CgroupParent;
use crate::model::image::{ImageSha256, ImageUrl};
use crate::model::path::CleanPath;
use crate::model::policy::{MOST_TARGETS, TargetSettings};

/// Upper bound of settings in MiB: above the size of any target's image or memory, and low enough that the same size in
/// bytes does not overflow.
const MOST_MIB: u64 = 1 << 30;

impl TargetSettings {
    /// Finds the first invalid setting: its key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let name = &self.control_sock;
        if name.is_empty() || name.contains('/') {
            return Some(("target.control_sock", format!("'{name}' is not the name of a file")));
        }
        let bad = |path: &&String| path.trim_end_matches(":ro").parse::<CleanPath>().is_err();
        if let Some(path) = self.mounts.iter().chain(&self.devices).find(bad) {
            return Some(("target.mounts", format!("'{path}' is not a plain absolute path")));
        }
        let cores = (self.core_count == 0)
            .then(|| ("target.core_count", "0 is not at least 1".to_string()));
        let parent = match self.cgroup_parent.as_str() {
            "" => None,
            parent => parent.parse::<CgroupParent>().err(),
        };
        self.image_problem()
            .or(cores)
            .or(parent.map(|fault| ("target.cgroup_parent", fault.text)))
            .or_else(|| self.isolation_problem())
            .or_else(|| self.bounds_problem())
    }

    /// Finds an invalid limit of targets or volumes, or an invalid entry in the lists of paths, devices, images, URLs
    /// and methods that callers may name.
    fn bounds_problem(&self) -> Option<(&'static str, String)> {
        /// Upper bound of `target.max_volumes`: more volumes than one target serves.
        const MOST_VOLUMES: usize = 1 << 16;
        let counts = [
            ("target.max_targets", self.max_targets, MOST_TARGETS),
            ("target.max_volumes", self.max_volumes, MOST_VOLUMES),
        ];
        let count = counts
            .iter()
            .find(|(_, count, most)| !(1..=*most).contains(count))
            .map(|(key, count, most)| (*key, format!("{count} is not between 1 and {most}")));
        let roots = [
            ("target.socket_roots", &self.socket_roots, PathPurpose::SocketDir),
            ("target.client_conf_roots", &self.client_conf_roots, PathPurpose::ClientConf),
            ("target.image_tar_roots", &self.image_tar_roots, PathPurpose::ImageTar),
            ("target.aio_roots", &self.aio_roots, PathPurpose::Aio),
        ];
        let closed = roots.iter().find_map(|(key, roots, named)| {
            Some((*key, roots.iter().find_map(|root| root_problem(root, *named))?))
        });
        type Problem = fn(&str) -> Option<String>;
        let lists: [(_, _, Problem); 4] = [
            ("target.aio_devices", &self.aio_devices, device_pattern_problem),
            ("target.allowed_images", &self.allowed_images, image_pattern_problem),
            ("target.image_urls", &self.image_urls, image_url_problem),
            ("target.raw_methods", &self.raw_methods, raw_method_problem),
        ];
        let entry = lists.iter().find_map(|(key, list, problem)| {
            Some((*key, list.iter().find_map(|entry| problem(entry))?))
        });
        count.or(closed).or(entry)
    }

    fn isolation_problem(&self) -> Option<(&'static str, String)> {
        /// Kernel's upper bound of process ids.
        const MOST_PIDS: u32 = 1 << 22;
        let fits = |path: CleanPath| path.as_str() != "/";
        let bad = |path: &&String| !path.parse().is_ok_and(fits);
        if let Some(path) = self.tmpfs.iter().find(bad) {
            let text = format!("'{path}' is not the plain absolute path of a folder below /");
            return Some(("target.tmpfs", text));
        }
        if !(1..=MOST_MIB).contains(&self.tmpfs_mib) {
            let text = format!("{} is not between 1 and {MOST_MIB}", self.tmpfs_mib);
            return Some(("target.tmpfs_mib", text));
        }
        (!(1..=MOST_PIDS).contains(&self.pids_limit)).then(|| {
            let text = format!("{} is not between 1 and {MOST_PIDS}", self.pids_limit);
            ("target.pids_limit", text)
        })
    }

    fn image_problem(&self) -> Option<(&'static str, String)> {
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
                let parsed = digest.parse::<ImageSha256>();
                parsed.err().map(|fault| ("target.image_sha256", fault.text))
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
