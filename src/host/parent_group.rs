//! Control group in which the engine makes those of its containers (dockerd(8), `--cgroup-parent`).

use std::path::Path;

use super::Root;
use crate::model::engine_options::EngineOptions;

/// Group in which the engine makes those of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentGroup {
    /// Path from the top of the hierarchy, without a leading slash.
    Path(String),
    /// None is configured, and neither is the engine's cgroup driver.
    Default,
}

/// Groups that the engine uses by default: `docker` if it creates the groups itself, `system.slice` if systemd does.
const BY_ENGINE: &str = "docker";
const BY_SYSTEMD: &str = "system.slice";
/// File that every group of cgroup v2 has, and none of v1.
const OF_V2: &str = "cgroup.controllers";

impl ParentGroup {
    /// Parent of a container with `own`, its own setting, on an engine with `options`: `cgroup-parent`, else the
    /// default of the driver `native.cgroupdriver`.
    pub fn new(own: Option<&str>, options: &EngineOptions<'_>) -> ParentGroup {
        let named = own.or_else(|| options.text("cgroup-parent")).filter(|name| !name.is_empty());
        match (named, options.exec_option("native.cgroupdriver")) {
            (Some(slice), _) if slice.ends_with(".slice") => ParentGroup::Path(slice_path(slice)),
            (Some(path), _) => ParentGroup::Path(path.trim_matches('/').to_string()),
            (None, Some("systemd")) => ParentGroup::Path(BY_SYSTEMD.to_string()),
            (None, Some(_)) => ParentGroup::Path(BY_ENGINE.to_string()),
            (None, None) => ParentGroup::Default,
        }
    }
}

impl ParentGroup {
    /// Groups above a container, the nearest first, as paths of the file system: those that exist below `top`, the mount
    /// point of a hierarchy, and `top` itself. The engine makes a missing one below the nearest that exists.
    pub(super) fn groups(&self, root: &Root, top: &str) -> Vec<String> {
        let exists = |group: &str| root.path(format!("{top}/{group}")).is_dir();
        // Under cgroup v2 the engine's default is systemd's; a folder of its own is left from another driver.
        let is_v2 = root.path(format!("{top}/{OF_V2}")).exists();
        let usual = if is_v2 { [BY_SYSTEMD, BY_ENGINE] } else { [BY_ENGINE, BY_SYSTEMD] };
        let by_default = || usual.into_iter().find(|group| exists(group));
        let parent = match self {
            ParentGroup::Path(path) => path,
            ParentGroup::Default => by_default().unwrap_or_default(),
        };
        let groups = Path::new(parent).ancestors().filter_map(Path::to_str);
        let groups = groups.filter(|group| !group.is_empty() && exists(group));
        groups.map(|group| format!("{top}/{group}")).chain([top.to_string()]).collect()
    }
}

/// Path of a slice: `a-b.slice` lies in `a.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> String {
    let name = slice.trim_end_matches(".slice");
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    let parents: Vec<String> =
        ends.filter_map(|end| name.get(..end)).map(|part| format!("{part}.slice")).collect();
    parents.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::engine::DaemonJson;

    /// Parent by a setting of the target, a command line and a daemon.json.
    fn parent(own: Option<&str>, args: &str, file: &str) -> ParentGroup {
        let args: Vec<String> = args.split_whitespace().map(String::from).collect();
        let file = DaemonJson::Object { text: file.into(), modified_at: 0 };
        ParentGroup::new(own, &EngineOptions::new(&args, &file))
    }

    #[test]
    fn parent_is_that_of_the_target_else_that_of_the_engine() {
        let path = |path: &str| ParentGroup::Path(path.to_string());
        let slice = r#"{"cgroup-parent": "zstone-vhost.slice"}"#;
        assert_eq!(parent(None, "", slice), path("zstone.slice/zstone-vhost.slice"));
        assert_eq!(parent(Some("a.slice"), "", slice), path("a.slice"));
        assert_eq!(parent(Some("zstone.vhost.slice"), "", slice), path("zstone.vhost.slice"));
        assert_eq!(parent(None, "--cgroup-parent=/a/b/", "{}"), path("a/b"));
        let systemd = "--exec-opt native.cgroupdriver=systemd";
        assert_eq!(parent(None, systemd, "{}"), path(BY_SYSTEMD));
        let cgroupfs = r#"{"exec-opts": ["native.cgroupdriver=cgroupfs"]}"#;
        assert_eq!(parent(None, "", cgroupfs), path(BY_ENGINE));
        assert_eq!(parent(None, "", "{}"), ParentGroup::Default);
    }
}
