//! Choice of the hugetlbfs mount, or the step that makes one (field note 9).

use crate::model::mounts::HugetlbMount;
use crate::model::policy::MountPolicy;
use crate::model::step::Step;
use crate::model::units::PageSize;

/// The mount for pages of that size, or the step that makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountPlan {
    /// Path of a usable mount.
    Use(String),
    /// Step that makes a mount, for none is usable.
    Make(Step),
}

/// Finds a usable mount of `size` among `seen`; the agent's own path is preferred, then the first.
pub fn plan(size: PageSize, seen: &[HugetlbMount], policy: &MountPolicy) -> MountPlan {
    let own = own_path(size, policy);
    let good = |mount: &&HugetlbMount| mount.is_good_for(size);
    let found = seen.iter().filter(good).find(|m| m.path == own).or_else(|| seen.iter().find(good));
    match found {
        Some(mount) => MountPlan::Use(mount.path.clone()),
        None => MountPlan::Make(Step::Mount { path: own, size }),
    }
}

fn own_path(size: PageSize, policy: &MountPolicy) -> String {
    match size {
        PageSize::MIB_2 => policy.path_2m.clone(),
        PageSize::GIB_1 => policy.path_1g.clone(),
        other => format!("/dev/hugepages{}", other.to_string().to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> MountPolicy {
        MountPolicy::default()
    }

    fn mount(path: &str, page_size: PageSize) -> HugetlbMount {
        HugetlbMount { path: path.into(), page_size, writable: true, reachable: true }
    }

    #[test]
    fn a_mount_of_the_right_size_is_used_wherever_it_is() {
        let seen = [mount("/dev/hugepages", PageSize::GIB_1), mount("/mnt/huge", PageSize::MIB_2)];
        assert_eq!(plan(PageSize::MIB_2, &seen, &policy()), MountPlan::Use("/mnt/huge".into()));
        assert_eq!(
            plan(PageSize::GIB_1, &seen, &policy()),
            MountPlan::Use("/dev/hugepages".into())
        );
    }

    #[test]
    fn a_mount_of_another_size_read_only_or_hidden_is_no_mount() {
        let mut read_only = mount("/mnt/ro", PageSize::MIB_2);
        read_only.writable = false;
        let mut hidden = mount("/mnt/hidden", PageSize::MIB_2);
        hidden.reachable = false;
        let seen = [mount("/dev/hugepages", PageSize::GIB_1), read_only, hidden];
        let made = Step::Mount { path: "/dev/hugepages2m".into(), size: PageSize::MIB_2 };
        assert_eq!(plan(PageSize::MIB_2, &seen, &policy()), MountPlan::Make(made));
    }
}
