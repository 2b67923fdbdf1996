//! Cpuset of the engine's containers: the kernel refuses them any CPU outside of it
//! (Documentation/admin-guide/cgroup-v1/cpusets.rst, Documentation/admin-guide/cgroup-v2.rst).

use std::collections::BTreeSet;

use super::Root;
use super::cgroup_parent::CgroupParent;
use super::files::read_list;

/// Mount points of the cpuset hierarchy, of cgroup v1 and v2, each with the names of its files of available CPUs. In v1
/// kernels before 3.17 lack the effective one.
const HIERARCHIES: [(&str, &[&str]); 2] = [
    ("/sys/fs/cgroup/cpuset", &["cpuset.effective_cpus", "cpuset.cpus"]),
    ("/sys/fs/cgroup", &["cpuset.cpus.effective"]),
];
/// CPUs on which containers in the group `parent` may run; `None` if the kernel has no cpuset of them.
pub fn of_containers(root: &Root, parent: &CgroupParent) -> Option<BTreeSet<u32>> {
    HIERARCHIES.iter().find_map(|(top, files)| {
        let whole = effective(root, top, files)?;
        let nearest = parent.groups(root, top).iter().find_map(|it| effective(root, it, files))?;
        // An empty intersection is ignored: the two files were not read at the same moment, or do not mean the same.
        let both: BTreeSet<u32> = &nearest & &whole;
        Some(if both.is_empty() { whole } else { both })
    })
}

/// CPUs of `group`. `None` if the group does not exist, or has no CPUs yet: a v1 group has none until its creator
/// assigns some.
fn effective(root: &Root, group: &str, files: &[&str]) -> Option<BTreeSet<u32>> {
    let list = |name: &&str| read_list(&root.path(format!("{group}/{name}"))).ok();
    let cpus = files.iter().find_map(list)?;
    (!cpus.is_empty()).then(|| cpus.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// CPUs that containers may use, with these files below `/sys/fs/cgroup`.
    fn bound(files: &[(&str, &str)]) -> Option<Vec<u32>> {
        bound_in(&CgroupParent::Default, files)
    }

    /// As [`bound`], for containers in the group `parent`.
    fn bound_in(parent: &CgroupParent, files: &[(&str, &str)]) -> Option<Vec<u32>> {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for (name, text) in files {
            let path = root.path(format!("/sys/fs/cgroup/{name}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        of_containers(&root, parent).map(|cpus| cpus.into_iter().collect())
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
        let path = |path: &str| CgroupParent::Path(path.to_string());
        for (parent, cpus) in [
            (path("a/b"), vec![6, 7]),
            (path("a/none/yet"), vec![4, 5, 6, 7]),
            (path("none"), vec![0, 1, 2, 3, 4, 5, 6, 7]),
            (path("system.slice"), vec![0, 1, 2, 3]),
            (CgroupParent::Default, vec![0, 1]),
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
