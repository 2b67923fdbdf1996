//! Cpuset of the engine's containers: the kernel refuses them any CPU and any memory node outside of it
//! (Documentation/admin-guide/cgroup-v1/cpusets.rst, Documentation/admin-guide/cgroup-v2.rst).

use std::collections::BTreeSet;

use super::Root;
use super::files::read_list;
use super::parent_group::ParentGroup;
use crate::model::units::NumaNode;

/// Names of a group's files, the preferred one first.
type Files = &'static [&'static str];

/// Mount point of a cpuset hierarchy, and the names of a group's files of available CPUs and memory nodes.
struct Hierarchy {
    top: &'static str,
    cpus: Files,
    memory_nodes: Files,
}

/// Hierarchies of cgroup v1 and v2. In v1 kernels before 3.17 lack the effective files.
const HIERARCHIES: [Hierarchy; 2] = [
    Hierarchy {
        top: "/sys/fs/cgroup/cpuset",
        cpus: &["cpuset.effective_cpus", "cpuset.cpus"],
        memory_nodes: &["cpuset.effective_mems", "cpuset.mems"],
    },
    Hierarchy {
        top: "/sys/fs/cgroup",
        cpus: &["cpuset.cpus.effective"],
        memory_nodes: &["cpuset.mems.effective"],
    },
];
/// CPUs on which containers in the group `parent` may run; `None` if the kernel has no cpuset of them.
pub fn of_containers(root: &Root, parent: &ParentGroup) -> Option<BTreeSet<u32>> {
    bound(root, parent, |hierarchy| hierarchy.cpus)
}

/// NUMA nodes whose memory containers in the group `parent` may use; `None` if the kernel has no cpuset of them.
pub fn memory_of_containers(root: &Root, parent: &ParentGroup) -> Option<BTreeSet<NumaNode>> {
    let nodes = bound(root, parent, |hierarchy| hierarchy.memory_nodes)?;
    Some(nodes.into_iter().map(NumaNode).collect())
}

fn bound(
    root: &Root,
    parent: &ParentGroup,
    files: impl Fn(&Hierarchy) -> Files,
) -> Option<BTreeSet<u32>> {
    HIERARCHIES.iter().find_map(|hierarchy| {
        let (top, files) = (hierarchy.top, files(hierarchy));
        let whole = effective(root, top, files)?;
        let nearest = parent.groups(root, top).iter().find_map(|it| effective(root, it, files))?;
        // An empty intersection is ignored: the two files were not read at the same moment, or do not mean the same.
        let both: BTreeSet<u32> = &nearest & &whole;
        Some(if both.is_empty() { whole } else { both })
    })
}

/// Numbers in the first of `files` that `group` has. `None` if the group does not exist, or is empty: a v1 group is
/// until its creator assigns CPUs and nodes.
fn effective(root: &Root, group: &str, files: Files) -> Option<BTreeSet<u32>> {
    let list = |name: &&str| read_list(&root.path(format!("{group}/{name}"))).ok();
    let numbers = files.iter().find_map(list)?;
    (!numbers.is_empty()).then(|| numbers.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Node with these files below `/sys/fs/cgroup`.
    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for (name, text) in files {
            let path = root.path(format!("/sys/fs/cgroup/{name}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        (folder, root)
    }

    /// CPUs that containers may use, with these files below `/sys/fs/cgroup`.
    fn bound(files: &[(&str, &str)]) -> Option<Vec<u32>> {
        bound_in(&ParentGroup::Default, files)
    }

    /// As [`bound`], for containers in the group `parent`.
    fn bound_in(parent: &ParentGroup, files: &[(&str, &str)]) -> Option<Vec<u32>> {
        let (_folder, root) = node(files);
        of_containers(&root, parent).map(|cpus| cpus.into_iter().collect())
    }

    #[test]
    fn memory_of_containers_is_bound_like_their_cpus() {
        let bound = |files: &[(&str, &str)]| {
            let (_folder, root) = node(files);
            memory_of_containers(&root, &ParentGroup::Default)
                .map(|nodes| nodes.into_iter().map(|it| it.0).collect::<Vec<_>>())
        };
        assert_eq!(bound(&[("cpuset.cpus.effective", "0-7")]), None);
        // The kernel lists only nodes with memory there (Documentation/admin-guide/cgroup-v2.rst).
        let top = ("cpuset.mems.effective", "1-2");
        assert_eq!(bound(&[top]), Some(vec![1, 2]));
        assert_eq!(bound(&[top, ("system.slice/cpuset.mems.effective", "2")]), Some(vec![2]));
        let (top, docker) = (("cpuset/cpuset.mems", "0-1"), ("cpuset/docker/cpuset.mems", "1"));
        assert_eq!(bound(&[top, docker]), Some(vec![1]), "an old kernel");
    }

    #[test]
    fn without_cpusets_containers_are_not_bound() {
        assert_eq!(bound(&[]), None);
        assert_eq!(bound(&[("cgroup.controllers", "cpu memory")]), None);
        assert_eq!(bound(&[("cpuset.cpus.effective", "garbage")]), None);
    }

    #[test]
    fn under_cgroup_v1_the_engines_own_group_bounds_them() {
        let top = ("cpuset/cpuset.effective_cpus", "0-7");
        assert_eq!(bound(&[top]).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(bound(&[("cpuset/cpuset.cpus", "0-1")]).unwrap(), [0, 1], "an old kernel");
        let docker = ("cpuset/docker/cpuset.effective_cpus", "2-3");
        assert_eq!(bound(&[top, docker]).unwrap(), [2, 3]);
        let slice = ("cpuset/system.slice/cpuset.effective_cpus", "4-5");
        assert_eq!(bound(&[top, slice]).unwrap(), [4, 5]);
        assert_eq!(bound(&[top, docker, slice]).unwrap(), [2, 3], "it makes them itself");
        let empty = ("cpuset/docker/cpuset.effective_cpus", "");
        assert_eq!(bound(&[("cpuset/cpuset.effective_cpus", "0-1"), empty]).unwrap(), [0, 1]);
    }

    #[test]
    fn groups_that_contradict_each_other_do_not_leave_containers_without_any_cpu() {
        let groups = [
            ("cpuset/cpuset.effective_cpus", "0-1"),
            ("cpuset/docker/cpuset.effective_cpus", "2-3"),
        ];
        assert_eq!(bound(&groups).unwrap(), [0, 1]);
    }

    #[test]
    fn under_cgroup_v2_the_slice_of_services_bounds_them() {
        let top = ("cpuset.cpus.effective", "0-5");
        assert_eq!(bound(&[top]).unwrap(), [0, 1, 2, 3, 4, 5], "6 and 7 are a partition of others");
        let slice = ("system.slice/cpuset.cpus.effective", "0-1");
        assert_eq!(bound(&[top, slice]).unwrap(), [0, 1]);
        let left = ("docker/cpuset.cpus.effective", "4-5");
        let version = ("cgroup.controllers", "cpuset cpu memory");
        let all = [version, top, slice, left];
        assert_eq!(bound(&all).unwrap(), [0, 1], "a group that another driver left");
        assert_eq!(bound(&[version, top, left]).unwrap(), [4, 5], "without systemd");
    }

    #[test]
    fn containers_are_bound_by_their_real_parent_or_the_nearest_that_exists() {
        let v1 = [
            ("cpuset/cpuset.effective_cpus", "0-7"),
            ("cpuset/docker/cpuset.effective_cpus", "0-1"),
            ("cpuset/system.slice/cpuset.effective_cpus", "0-3"),
            ("cpuset/a/cpuset.effective_cpus", "4-7"),
            ("cpuset/a/b/cpuset.effective_cpus", "6-7"),
        ];
        let path = |path: &str| ParentGroup::Path(path.to_string());
        for (parent, cpus) in [
            (path("a/b"), vec![6, 7]),
            (path("a/none/yet"), vec![4, 5, 6, 7]),
            (path("none"), vec![0, 1, 2, 3, 4, 5, 6, 7]),
            (path("system.slice"), vec![0, 1, 2, 3]),
            (ParentGroup::Default, vec![0, 1]),
        ] {
            assert_eq!(bound_in(&parent, &v1).unwrap(), cpus, "{parent:?}");
        }
        let v2 = [
            ("cpuset.cpus.effective", "0-7"),
            ("zstone.slice/cpuset.cpus.effective", "2-5"),
            ("zstone.slice/zstone-vhost.slice/cpuset.cpus.effective", "2-3"),
        ];
        let parent = path("zstone.slice/zstone-vhost.slice");
        assert_eq!(bound_in(&parent, &v2).unwrap(), [2, 3]);
    }
}
