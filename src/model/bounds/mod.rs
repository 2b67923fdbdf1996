//! Bounds on the paths, images, image URLs and target methods that callers may name.
//!
//! ```text
//! request ──▶ spec ──as named──▶ 403 ──▶ the machine is observed ──with links followed──▶ refused, or planned
//! ```
//! Values from the settings need no authorization, for the operator chose them. Nor does a value that the desired spec
//! of the same name already has: it was authorized when it was new, or dates from before there were bounds. So a target
//! that recovers and a request that is repeated are not authorized again.
//!
//! A refusal names the setting that would allow the value. It does not reveal whether something exists at a path.

mod images;
mod paths;
mod system;
mod urls;

pub use self::images::image_pattern_problem;
pub use self::paths::{
    Links, PathPurpose, Paths, ResolvedPath, device_pattern_problem, root_problem,
};
pub use self::urls::{image_reach, image_url_problem};
use super::code::Code;
use super::fault::Fault;
use super::image::ImageUrl;
use super::path::CleanPath;
use super::policy::TargetSettings;
use super::target::TargetSpec;
use super::volume::{Backing, MAKES, TAKES, VolumeSpec, validate_method};

/// Authorizes the paths, image, image URL and cgroup parent of a requested target. Values that `known`, the desired spec of the same
/// name, already has are not checked.
///
/// # Errors
/// 403, with the setting that would allow what the request names.
pub fn authorize_target(
    spec: &TargetSpec,
    known: Option<&TargetSpec>,
    settings: &TargetSettings,
    paths: Paths<'_>,
) -> Result<(), Fault> {
    let beside = known.map(|known| &known.socket_dir);
    for (named, path) in named_paths(spec, settings) {
        if known.is_none_or(|known| path_of(known, named) != Some(path)) {
            named.authorize(path, beside, settings, paths)?;
        }
    }
    let of_known = |image: &str| known.is_some_and(|known| known.image.as_deref() == Some(image));
    let image = spec.image.as_deref().filter(|image| !of_known(image));
    image.map_or(Ok(()), |image| images::authorize(image, settings))?;
    let of_known = |url: &&ImageUrl| known.and_then(|known| known.image_url.as_ref()) == Some(*url);
    let url = spec.image_url.as_ref().filter(|url| !of_known(url));
    url.map_or(Ok(()), |url| urls::authorize(url, settings))?;
    authorize_cgroup(spec, known, settings)
}

/// Authorizes the cgroup parent of a requested target: below another one the target would share the limits of other
/// programs or virtual machines, or keep the kernel from giving them any.
fn authorize_cgroup(
    spec: &TargetSpec,
    known: Option<&TargetSpec>,
    settings: &TargetSettings,
) -> Result<(), Fault> {
    let Some(parent) = &spec.cgroup_parent else { return Ok(()) };
    let is_known = known.is_some_and(|known| known.cgroup_parent.as_ref() == Some(parent));
    let is_own = parent.as_str() == settings.cgroup_parent;
    if is_known || is_own || settings.cgroup_parents.contains(parent) {
        return Ok(());
    }
    let text = format!(
        "cgroupParent {parent} is not allowed: target.cgroup_parents does not list it; name another, or have the \
         operator add it there"
    );
    Err(Fault::new(Code::PathNotAllowed, text))
}

/// Paths whose links have to be followed to authorize a target: the paths that a request named, and the allowed folders
/// that they lie in.
pub fn paths_of_target(spec: &TargetSpec, settings: &TargetSettings) -> Vec<CleanPath> {
    let paths = named_paths(spec, settings).into_iter();
    paths.flat_map(|(named, path)| named.paths(path, settings)).collect()
}

/// Paths in `spec` that differ from the settings, each with its purpose.
fn named_paths<'a>(
    spec: &'a TargetSpec,
    settings: &TargetSettings,
) -> Vec<(PathPurpose, &'a CleanPath)> {
    let control = settings.control_in(&settings.socket_dir).ok();
    let own = |named| match named {
        PathPurpose::SocketDir => Some(&settings.socket_dir),
        PathPurpose::ControlSock => control.as_ref(),
        PathPurpose::ClientConf => Some(&settings.client_conf),
        PathPurpose::ImageTar | PathPurpose::Aio => None,
    };
    let all = [
        PathPurpose::SocketDir,
        PathPurpose::ControlSock,
        PathPurpose::ClientConf,
        PathPurpose::ImageTar,
    ];
    let paths = all.into_iter().filter_map(|named| Some((named, path_of(spec, named)?)));
    paths.filter(|(named, path)| own(*named) != Some(*path)).collect()
}

fn path_of(spec: &TargetSpec, named: PathPurpose) -> Option<&CleanPath> {
    match named {
        PathPurpose::SocketDir => Some(&spec.socket_dir),
        PathPurpose::ControlSock => Some(&spec.control_sock),
        PathPurpose::ClientConf => spec.client_conf.as_ref(),
        PathPurpose::ImageTar => spec.image_tar.as_ref(),
        PathPurpose::Aio => None,
    }
}

/// Authorizes the backing of a requested volume. A backing that `known`, the desired spec of the same name, already has
/// is not checked.
///
/// # Errors
/// 403, with the setting that would allow what the request names.
pub fn authorize_volume(
    spec: &VolumeSpec,
    known: Option<&VolumeSpec>,
    settings: &TargetSettings,
    paths: Paths<'_>,
) -> Result<(), Fault> {
    if known.is_some_and(|known| known.backing == spec.backing) {
        return Ok(());
    }
    if let Backing::Raw { method, delete_method, .. } = &spec.backing {
        authorize_raw(method, delete_method.as_deref(), settings)?;
    }
    match file_of(spec)? {
        Some(path) => PathPurpose::Aio.authorize(&path, None, settings, paths),
        None => Ok(()),
    }
}

/// Paths whose links have to be followed to authorize a volume: the file of its backing, and the allowed folders that
/// it lies in.
pub fn paths_of_volume(spec: &VolumeSpec, settings: &TargetSettings) -> Vec<CleanPath> {
    let file = file_of(spec).ok().flatten();
    file.map(|path| PathPurpose::Aio.paths(&path, settings)).unwrap_or_default()
}

/// File or device of a volume's backing, if it names one. A raw method may name it in its parameters.
fn file_of(spec: &VolumeSpec) -> Result<Option<CleanPath>, Fault> {
    spec.backing.file().map(str::parse).transpose()
}

/// Authorizes the raw method `method`, which `target.raw_methods` has to list. The method `delete` has to be listed
/// too, unless it has the same stem as `method`, as `bdev_rbd_delete` has with `bdev_rbd_create`.
fn authorize_raw(
    method: &str,
    delete: Option<&str>,
    settings: &TargetSettings,
) -> Result<(), Fault> {
    let listed = |method: &str| settings.raw_methods.iter().any(|listed| listed == method);
    let is_its =
        |delete: &str| stem(method, MAKES).is_some_and(|it| stem(delete, TAKES) == Some(it));
    let other = delete.filter(|delete| !is_its(delete));
    let refused = [Some(method), other].into_iter().flatten().find(|method| !listed(method));
    refused.map_or(Ok(()), |refused| {
        let text = format!(
            "{refused} is not called for callers: target.raw_methods does not list it; use a backing of another kind, or have \
             the operator list it"
        );
        Err(Fault::new(Code::RawMethodNotAllowed, text))
    })
}

fn stem<'a>(method: &'a str, ends: [&str; 2]) -> Option<&'a str> {
    ends.iter().find_map(|end| method.strip_suffix(end))
}

/// Fault of an entry of `target.raw_methods`; `None` if it is valid.
pub fn raw_method_problem(method: &str) -> Option<String> {
    validate_method(method, &[MAKES, TAKES].concat()).err().map(|fault| fault.text)
}

#[cfg(test)]
mod tests;
