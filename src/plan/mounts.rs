//! Choice of the hugetlbfs mount, or the steps that make one (field note 9).
//!
//! A mount concerns guests too. libvirt looks for mounts when its daemon starts, and a guest whose definition names no
//! page size (`<hugepages/>`) gets the first mount of the kernel's default size, or if there is none the first of all
//! (virFileFindHugeTLBFS and qemuGetDomainDefaultHugepath of libvirt; `hugetlbfs_mount` in qemu.conf overrides that).
//! So a mount of another size is never the first one that the agent makes where there is none yet, and a mount that
//! makes such guests change their pages is reported.

use crate::model::code::Code;
use crate::model::fault::Finding;
use crate::model::mounts::HugetlbMount;
use crate::model::policy::MountPolicy;
use crate::model::step::Step;
use crate::model::units::PageSize;

/// The mount for pages of one size, or the steps that make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountPlan {
    /// Path of a usable mount.
    Use(String),
    /// Steps that make a mount, for none is usable. The last one makes that mount; one before it makes a mount of the
    /// default size for guests.
    Make {
        steps: Vec<Step>,
        /// Effect on guests that name no page size.
        finding: Option<Finding>,
    },
}

/// Finds a usable mount of `size` among `seen`; the agent's own path is preferred, then the first. `default` is the
/// kernel's default size, `None` if unknown.
pub fn plan(
    size: PageSize,
    default: Option<PageSize>,
    seen: &[HugetlbMount],
    policy: &MountPolicy,
) -> MountPlan {
    let own = own_path(size, policy);
    let good = |mount: &&HugetlbMount| mount.is_good_for(size);
    let found = seen.iter().filter(good).find(|m| m.path == own).or_else(|| seen.iter().find(good));
    if let Some(mount) = found {
        return MountPlan::Use(mount.path.clone());
    }
    let first = default.filter(|default| seen.is_empty() && *default != size);
    let sizes = first.into_iter().chain([size]);
    let steps = sizes.map(|size| Step::Mount { path: own_path(size, policy), size }).collect();
    let now = of_guests(default, seen).filter(|now| default == Some(size) && now.page_size != size);
    MountPlan::Make { steps, finding: now.map(|now| change(size, &own, now)) }
}

/// Finding on a kernel's `default` size of which no mount is there. Mounts count that something else hides: libvirt
/// reads the same table.
pub fn finding(default: Option<PageSize>, seen: &[HugetlbMount]) -> Option<Finding> {
    let default = default.filter(|default| seen.iter().all(|mount| mount.page_size != *default))?;
    let effect = match of_guests(Some(default), seen) {
        Some(HugetlbMount { path, page_size, .. }) => {
            format!("get pages of {page_size}, from the first mount ({path})")
        }
        None => "do not start".to_string(),
    };
    let text = format!(
        "hugepages of {default}, this kernel's default size, have no mount: virtual machines whose definition names no \
         page size (<hugepages/>) {effect}. Name the size there (<page size=…/>), or mount the default size \
         (`systemctl start dev-hugepages.mount`) and restart libvirt's daemon, which looks for mounts when it starts"
    );
    Some(Finding::new(Code::DefaultPagesUnmounted, text))
}

/// Mount from which libvirt's guests without a page size get theirs.
fn of_guests(default: Option<PageSize>, seen: &[HugetlbMount]) -> Option<&HugetlbMount> {
    seen.iter().find(|mount| Some(mount.page_size) == default).or_else(|| seen.first())
}

fn change(size: PageSize, path: &str, now: &HugetlbMount) -> Finding {
    let text = format!(
        "{path} is the only mount of {size}, this kernel's default size: virtual machines whose definition names no page \
         size (<hugepages/>) get pages of {size} there once libvirt's daemon is restarted, and not of {} from {} as \
         before. Name the size there (<page size=…/>), or set hugetlbfs_mount = \"{}\" in /etc/libvirt/qemu.conf",
        now.page_size, now.path, now.path
    );
    Finding::new(Code::GuestPagesChange, text)
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

    const DEFAULT: Option<PageSize> = Some(PageSize::MIB_2);

    /// Steps of a plan as size and path, and the code of its finding.
    fn made(
        size: PageSize,
        default: Option<PageSize>,
        seen: &[HugetlbMount],
    ) -> (Vec<String>, Option<Code>) {
        let MountPlan::Make { steps, finding } = plan(size, default, seen, &policy()) else {
            panic!("nothing is made")
        };
        (steps.iter().map(Step::subject).collect(), finding.map(|finding| finding.code))
    }

    #[test]
    fn a_mount_of_the_right_size_is_used_wherever_it_is() {
        let seen = [mount("/dev/hugepages", PageSize::GIB_1), mount("/mnt/huge", PageSize::MIB_2)];
        let plan = |size| plan(size, DEFAULT, &seen, &policy());
        assert_eq!(plan(PageSize::MIB_2), MountPlan::Use("/mnt/huge".into()));
        assert_eq!(plan(PageSize::GIB_1), MountPlan::Use("/dev/hugepages".into()));
    }

    #[test]
    fn a_mount_of_another_size_read_only_or_hidden_is_no_mount() {
        let mut read_only = mount("/mnt/ro", PageSize::MIB_2);
        read_only.writable = false;
        let mut hidden = mount("/mnt/hidden", PageSize::MIB_2);
        hidden.reachable = false;
        let seen = [mount("/dev/hugepages", PageSize::GIB_1), read_only, hidden];
        let own = vec!["/dev/hugepages2m (pagesize=2M)".to_string()];
        assert_eq!(made(PageSize::MIB_2, DEFAULT, &seen), (own, None));
    }

    #[test]
    fn guests_without_a_page_size_keep_theirs_or_it_is_reported() {
        let (small, large) = (PageSize::MIB_2, PageSize::GIB_1);
        let huge = PageSize::from_mib(512).unwrap();
        let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let small_step = "/dev/hugepages2m (pagesize=2M)";
        // Nothing is mounted: the default size comes before another one.
        assert_eq!(made(small, Some(small), &[]), (own(&[small_step]), None));
        assert_eq!(made(small, None, &[]), (own(&[small_step]), None));
        let steps = own(&["/dev/hugepages1g (pagesize=1G)", small_step]);
        assert_eq!(made(small, Some(large), &[]), (steps, None));
        let steps = own(&["/dev/hugepages512m (pagesize=512M)", small_step]);
        assert_eq!(made(small, Some(huge), &[]), (steps, None), "arm64 with pages of 64 KiB");
        // The first mount stays the first one.
        let first = [mount("/dev/hugepages", large)];
        assert_eq!(made(small, Some(large), &first), (own(&[small_step]), None));
        assert_eq!(made(small, Some(huge), &first), (own(&[small_step]), None));
        // Here a mount of the default size comes before it.
        let changes = Some(Code::GuestPagesChange);
        assert_eq!(made(small, Some(small), &first), (own(&[small_step]), changes));
    }

    #[test]
    fn default_size_without_a_mount_is_reported_with_what_guests_get() {
        let text = |default, seen: &[HugetlbMount]| finding(default, seen).map(|it| it.text);
        let large = [mount("/mnt/a b", PageSize::GIB_1)];
        assert_eq!(text(None, &[]), None, "the kernel has no hugepages");
        assert_eq!(text(Some(PageSize::GIB_1), &large), None);
        let others = text(DEFAULT, &large).unwrap();
        assert!(others.contains("pages of 1G, from the first mount (/mnt/a b)"), "{others}");
        assert!(text(DEFAULT, &[]).unwrap().contains("do not start"));
    }
}
