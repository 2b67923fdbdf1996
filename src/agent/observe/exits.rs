//! Explanation of a target's exit by what its code and its last output show, and by facts of this machine.

use super::blocking;
use super::target_resources::parent_group;
use crate::host::{Root, cpu_flags, hugetlb_limit};
use crate::model::container::ContainerSeen;
use crate::model::exit::{ExitCause, explain_instruction, explain_pages};
use crate::model::policy::TargetPolicy;
use crate::model::sizing::{UNNAMED_PAGES, least_pages};
use crate::model::units::PageSize;

/// Explains the exit of `container`, with a leading separator; empty if nothing explains it.
pub async fn explained(
    root: &Root,
    policy: &TargetPolicy,
    container: Option<&ContainerSeen>,
    printed: &str,
) -> String {
    let exit_code = container.and_then(|container| container.exit_code);
    let Some(cause) = ExitCause::of(exit_code, printed) else { return String::new() };
    let spec = container.and_then(ContainerSeen::made_for);
    let takes = spec.as_ref().map_or(UNNAMED_PAGES, |spec| least_pages(spec, &policy.target));
    let (root, engine) = (root.clone(), policy.registries.engine.clone());
    let explain = move || match cause {
        ExitCause::Instruction => Some(explain_instruction(cpu_flags::model(&root).as_ref())),
        ExitCause::Page | ExitCause::Memory => {
            let named = spec.as_ref().and_then(|spec| spec.cgroup_parent.as_ref());
            let parent = parent_group(&root, &engine, named);
            let limit = hugetlb_limit::of_containers(&root, &parent, PageSize::MIB_2);
            explain_pages(cause, takes, limit.as_ref())
        }
    };
    let text = blocking(explain).await.ok().flatten();
    text.map_or(String::new(), |text| format!("; {text}"))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the test puts files in place
mod tests {
    use super::*;
    use crate::model::container::SPEC_LABEL;
    use crate::model::target::{TargetKind, TargetSpec};

    /// Container of a target with so much memory, below the group `parent`, that has ended with this code.
    fn ended(code: i64, memory_mib: u64, parent: Option<&str>) -> ContainerSeen {
        let cgroup_parent = parent.map(|parent| parent.parse().unwrap());
        let kind = TargetKind::Spdk;
        let spec = TargetSpec { kind, memory_mib, cgroup_parent, ..TargetSpec::example("a") };
        let label = serde_json::to_string(&spec).unwrap();
        let labels = [(SPEC_LABEL.to_string(), label)].into();
        ContainerSeen { exit_code: Some(code), labels, ..ContainerSeen::default() }
    }

    async fn explained_on(files: &[(&str, &str)], code: i64, printed: &str) -> String {
        explained_of(files, &ended(code, 512, None), printed).await
    }

    async fn explained_of(
        files: &[(&str, &str)],
        container: &ContainerSeen,
        printed: &str,
    ) -> String {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for (path, text) in files {
            let path = root.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        explained(&root, &TargetPolicy::example(), Some(container), printed).await
    }

    #[tokio::test]
    async fn facts_of_the_machine_are_in_the_explanation() {
        let cpuinfo =
            [("/proc/cpuinfo", "model name\t: Xeon\nflags\t: lm pni ssse3 sse4_1 sse4_2 avx\n")];
        let text = explained_on(&cpuinfo, 132, "it printed nothing").await;
        assert!(text.starts_with("; ") && text.contains("Xeon") && text.contains("avx2"), "{text}");
        let dpdk = "ERROR: This system does not support \"VPCLMULQDQ\".";
        assert!(explained_on(&[], 1, dpdk).await.contains("--target-arch"));
        let limit = [("/sys/fs/cgroup/system.slice/hugetlb.2MB.max", "2097152\n")];
        let text = explained_on(&limit, 135, "").await;
        assert!(text.contains("hugetlb.2MB.max allows 1 pages of 2M"), "{text}");
        assert_eq!(explained_on(&cpuinfo, 1, "its own error").await, "");
    }

    #[tokio::test]
    async fn limit_that_leaves_what_the_target_takes_is_not_blamed() {
        // 400 pages for services, and 100 in a slice of the targets' own.
        let limits = [
            ("/sys/fs/cgroup/system.slice/hugetlb.2MB.max", "838860800\n"),
            ("/sys/fs/cgroup/vhost.slice/hugetlb.2MB.max", "209715200\n"),
        ];
        for (mib, parent, blamed) in [
            (800, None, None),
            (802, None, Some("system.slice")),
            (200, Some("vhost.slice"), None),
            (202, Some("vhost.slice"), Some("vhost.slice")),
        ] {
            let text = explained_of(&limits, &ended(135, mib, parent), "").await;
            match blamed {
                Some(slice) => {
                    assert!(text.contains(&format!("{slice}/hugetlb.2MB.max")), "{text}")
                }
                None => assert!(text.contains("too few are free"), "{mib} {parent:?}: {text}"),
            }
        }
    }
}
