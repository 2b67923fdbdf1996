//! Limit of the hugepages that the engine's containers may take, by the control groups above them: beyond it, the kernel
//! kills a process with SIGBUS when it touches a page, or refuses to map one
//! (Documentation/admin-guide/cgroup-v1/hugetlb.rst, Documentation/admin-guide/cgroup-v2.rst).

use super::Root;
use super::files::read_number;
use super::parent_group::ParentGroup;
use crate::model::pools::PageLimit;
use crate::model::units::PageSize;

/// Mount points of the hugetlb hierarchy, of cgroup v1 and v2, each with the ends of the names of its files: a limit, and
/// what is counted against it. The kernel counts pages in use, and since 5.7 also pages that are promised.
const FILES: [(&str, &str, &str); 4] = [
    ("/sys/fs/cgroup/hugetlb", "limit_in_bytes", "usage_in_bytes"),
    ("/sys/fs/cgroup/hugetlb", "rsvd.limit_in_bytes", "rsvd.usage_in_bytes"),
    ("/sys/fs/cgroup", "max", "current"),
    ("/sys/fs/cgroup", "rsvd.max", "rsvd.current"),
];
/// Bytes from which on a number is no limit: v1 writes the largest one there is, v2 the word `max`.
const NO_LIMIT: u64 = 1 << 60;

/// Limit that leaves containers in the group `parent` the fewest pages of `size`; `None` if nothing limits them.
pub fn of_containers(root: &Root, parent: &ParentGroup, size: PageSize) -> Option<PageLimit> {
    let limits = FILES.iter().flat_map(|(top, limit, used)| {
        // The group that bounds them may be any above them.
        parent.groups(root, top).into_iter().filter_map(move |group| {
            let file = |end: &str| format!("{group}/hugetlb.{size}B.{end}");
            let bytes = |end: &str| read_number(&root.path(file(end))).ok();
            let most = bytes(limit).filter(|most| *most < NO_LIMIT)?;
            let used = bytes(used).unwrap_or_default();
            let pages = |bytes: u64| bytes / size.bytes();
            Some(PageLimit { file: file(limit), size, pages: pages(most), used: pages(used) })
        })
    });
    limits.min_by_key(PageLimit::left)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Limit with these files below `/sys/fs/cgroup`: its file, its pages and those that are left.
    fn limit(files: &[(&str, String)], size: PageSize) -> Option<(String, u64, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for (name, text) in files {
            let path = root.path(format!("/sys/fs/cgroup/{name}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let limit = of_containers(&root, &ParentGroup::Default, size)?;
        let left = limit.left();
        Some((limit.file.trim_start_matches("/sys/fs/cgroup/").to_string(), limit.pages, left))
    }

    fn of_2m(files: &[(&str, String)]) -> Option<(String, u64, u64)> {
        limit(files, PageSize::MIB_2)
    }

    fn is(file: &str, pages: u64, left: u64) -> Option<(String, u64, u64)> {
        Some((file.to_string(), pages, left))
    }

    // cgroup v1 without a limit, as in kubernetes#85938: the largest number that a long holds in whole pages.
    #[test]
    fn without_a_limit_there_is_none() {
        assert_eq!(of_2m(&[]), None);
        let v1 = |name| format!("hugetlb/docker/hugetlb.2MB.{name}");
        let most = "9223372036854771712".to_string();
        assert_eq!(of_2m(&[(&v1("limit_in_bytes"), most)]), None);
        let v2 = "system.slice/hugetlb.2MB.max";
        assert_eq!(of_2m(&[(v2, "max".to_string())]), None);
        assert_eq!(of_2m(&[(v2, "garbage".to_string())]), None);
    }

    // As in cloud-hypervisor#7387 and kata-containers/runtime#2172, where a group that allowed none had a guest killed.
    #[test]
    fn under_cgroup_v1_the_engines_own_group_limits_them() {
        let file = "hugetlb/docker/hugetlb.2MB.limit_in_bytes";
        let used = "hugetlb/docker/hugetlb.2MB.usage_in_bytes";
        let mib = |mib: u64| (mib * MIB).to_string();
        assert_eq!(of_2m(&[(file, mib(256)), (used, mib(56))]), is(file, 128, 100));
        assert_eq!(of_2m(&[(file, mib(256))]), is(file, 128, 128), "its use cannot be read");
        assert_eq!(of_2m(&[(file, mib(0))]), is(file, 0, 0));
    }

    #[test]
    fn under_cgroup_v2_the_slice_of_services_limits_them_and_promised_pages_count_too() {
        let file = |name: &str| format!("system.slice/hugetlb.2MB.{name}");
        let (max, current, rsvd) = (file("max"), file("current"), file("rsvd.max"));
        let mib = |mib: u64| (mib * MIB).to_string();
        let plain = [(max.as_str(), mib(512)), (current.as_str(), mib(64))];
        assert_eq!(of_2m(&plain), is(&max, 256, 224));
        let both = [plain.as_slice(), &[(rsvd.as_str(), mib(128))]].concat();
        assert_eq!(of_2m(&both), is(&rsvd, 64, 64), "the tighter one");
        assert_eq!(limit(&plain, PageSize::GIB_1), None, "another size");
        let gib = [("system.slice/hugetlb.1GB.max", mib(2048))];
        assert_eq!(limit(&gib, PageSize::GIB_1), is("system.slice/hugetlb.1GB.max", 2, 2));
    }
}
