//! Explanation of a target's exit by what its code and its last output show, and by facts of this machine.

use super::blocking;
use super::target_resources::parent_group;
use crate::host::{Root, cpu_flags, hugetlb_limit};
use crate::model::exit::{ExitCause, explain_instruction, explain_pages};
use crate::model::policy::EnginePolicy;
use crate::model::units::PageSize;

/// Explains an exit, with a leading separator; empty if nothing explains it.
pub async fn explained(
    root: &Root,
    engine: &EnginePolicy,
    exit_code: Option<i64>,
    printed: &str,
) -> String {
    let Some(cause) = ExitCause::of(exit_code, printed) else { return String::new() };
    let (root, engine) = (root.clone(), engine.clone());
    let explain = move || match cause {
        ExitCause::Instruction => Some(explain_instruction(cpu_flags::model(&root).as_ref())),
        ExitCause::Page | ExitCause::Memory => {
            let parent = parent_group(&root, &engine, None);
            let limit = hugetlb_limit::of_containers(&root, &parent, PageSize::MIB_2);
            explain_pages(cause, limit.as_ref())
        }
    };
    let text = blocking(explain).await.ok().flatten();
    text.map_or(String::new(), |text| format!("; {text}"))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the test puts files in place
mod tests {
    use super::*;

    async fn explained_on(files: &[(&str, &str)], code: i64, printed: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for (path, text) in files {
            let path = root.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        explained(&root, &EnginePolicy::default(), Some(code), printed).await
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
}
