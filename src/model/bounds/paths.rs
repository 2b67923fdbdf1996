//! Paths that a caller names, and the folders in which they may lie.

use std::collections::BTreeMap;

use super::system::closed;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::pattern::fits;
use crate::model::policy::TargetSettings;

/// Purpose of a path in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathPurpose {
    SocketDir,
    ControlSock,
    ClientConf,
    ImageTar,
    /// File or device of a volume.
    Aio,
}

/// Destination of a path once its links are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPath {
    /// Path without links.
    pub path: CleanPath,
    /// Set if `path` is a block device.
    pub is_block_device: bool,
}

/// Destination of each path, links followed. Paths that could not be observed are missing.
pub type Links = BTreeMap<CleanPath, ResolvedPath>;

/// Facts on which paths are authorized.
#[derive(Debug, Clone, Copy)]
pub enum Paths<'a> {
    /// Only the paths as the request names them.
    AsNamed,
    /// Also the destinations of the paths, links followed.
    Followed(&'a Links),
}

impl PathPurpose {
    fn word(self) -> &'static str {
        match self {
            PathPurpose::SocketDir => "socketDir",
            PathPurpose::ControlSock => "controlSock",
            PathPurpose::ClientConf => "clientConf",
            PathPurpose::ImageTar => "imageTar",
            PathPurpose::Aio => "the volume's file",
        }
    }

    fn settings(self) -> &'static str {
        match self {
            PathPurpose::SocketDir | PathPurpose::ControlSock => "target.socket_roots",
            PathPurpose::ClientConf => "target.client_conf_roots",
            PathPurpose::ImageTar => "target.image_tar_roots",
            PathPurpose::Aio => "target.aio_roots, and is no block device of target.aio_devices",
        }
    }

    /// Folders in which a path of this purpose may lie.
    fn roots(self, settings: &TargetSettings) -> impl Iterator<Item = &CleanPath> {
        let (list, own) = match self {
            PathPurpose::SocketDir | PathPurpose::ControlSock => {
                (&settings.socket_roots, Some(&settings.socket_dir))
            }
            PathPurpose::ClientConf => (&settings.client_conf_roots, None),
            PathPurpose::ImageTar => (&settings.image_tar_roots, None),
            PathPurpose::Aio => (&settings.aio_roots, None),
        };
        list.iter().chain(own)
    }

    /// `path` and the allowed folders that it lies in. The links of all of them have to be followed to authorize
    /// `path`.
    pub(super) fn paths(self, path: &CleanPath, settings: &TargetSettings) -> Vec<CleanPath> {
        let roots = self.roots(settings).filter(|root| lies_in(path, root));
        [path].into_iter().chain(roots).cloned().collect()
    }

    /// Authorizes `path`, which may also lie in the folder `beside`.
    pub(super) fn authorize(
        self,
        path: &CleanPath,
        beside: Option<&CleanPath>,
        settings: &TargetSettings,
        paths: Paths<'_>,
    ) -> Result<(), Fault> {
        let refused = |why: String| {
            let text = format!("{} {} is not allowed: {why}", self.word(), path.as_str());
            Err(Fault::new(Code::PathNotAllowed, text))
        };
        let is_device = self == PathPurpose::Aio && fits_device(path, settings);
        if let Some((folder, why)) = closed(path.as_str(), self).filter(|_| !is_device) {
            return refused(format!("{folder} is closed to callers, for {why}"));
        }
        let roots: Vec<&CleanPath> = self.roots(settings).chain(beside).collect();
        if !is_device && !lies_in_one(path, &roots) {
            return refused(self.unlisted());
        }
        let Paths::Followed(links) = paths else { return Ok(()) };
        let Some(led) = links.get(path) else {
            let why = "nobody could tell in time where it leads: see whether its disk hangs, then call again";
            return refused(why.to_string());
        };
        let is_device = is_device || self == PathPurpose::Aio && fits_device(&led.path, settings);
        let is_allowed = match is_device {
            true => led.is_block_device && led.path.as_str().starts_with(DEVICES),
            false => {
                // The folders may be links themselves.
                let moved = roots.iter().filter_map(|root| Some(&links.get(*root)?.path));
                let roots: Vec<&CleanPath> = roots.iter().copied().chain(moved).collect();
                lies_in_one(&led.path, &roots) && closed(led.path.as_str(), self).is_none()
            }
        };
        if is_allowed { Ok(()) } else { refused(self.unlisted()) }
    }

    fn unlisted(self) -> String {
        format!(
            "with links followed, it does not lie in a folder of {}: name another, or have the operator add it there",
            self.settings()
        )
    }
}

const DEVICES: &str = "/dev/";

fn fits_device(path: &CleanPath, settings: &TargetSettings) -> bool {
    settings.aio_devices.iter().any(|pattern| {
        let (pattern, path) = (pattern.split('/'), path.as_str().split('/'));
        pattern.clone().count() == path.clone().count()
            && pattern.zip(path).all(|(pattern, part)| fits(pattern, part))
    })
}

fn lies_in_one(path: &CleanPath, folders: &[&CleanPath]) -> bool {
    folders.iter().any(|folder| lies_in(path, folder))
}

fn lies_in(path: &CleanPath, folder: &CleanPath) -> bool {
    let rest = path.as_str().strip_prefix(folder.as_str().trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Reason why the setting must not open the folder `root` to callers; `None` if it may.
pub fn root_problem(root: &CleanPath, named: PathPurpose) -> Option<String> {
    let (folder, why) = closed(root.as_str(), named)?;
    let root = root.as_str();
    Some(format!(
        "'{root}' cannot be opened to callers ({folder}: {why}): name a folder of its own"
    ))
}

/// Fault of an entry of `target.aio_devices`; `None` if it is valid.
pub fn device_pattern_problem(pattern: &str) -> Option<String> {
    let below = pattern.strip_prefix(DEVICES).filter(|below| !below.is_empty());
    let is_path = pattern.parse::<CleanPath>().is_ok_and(|path| path.as_str() == pattern);
    (below.is_none() || !is_path)
        .then(|| format!("'{pattern}' is no pattern of block devices such as /dev/mapper/vg0-*"))
}
