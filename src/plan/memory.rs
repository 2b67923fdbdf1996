//! Memory size of a target for which the request set none.
//!
//! ```text
//! desired volumes ──▶ sized ──▶ the spec that is planned, made and desired
//! ```
//! The size is chosen when a deploy makes a container. A running target keeps its size, unless a new container is
//! requested and enough pages are free. A recovered target keeps the desired size.

use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::{MEMORY_STEP_MIB, TargetPolicy};
use crate::model::sizing::memory_steps;
use crate::model::target::{EnsureOptions, TargetSeen, TargetSpec};

use super::target::TargetPlan;

/// `spec` with the memory that the target gets for `volumes` volumes.
pub fn sized(
    spec: &TargetSpec,
    options: EnsureOptions,
    volumes: usize,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> TargetSpec {
    let with = |memory_mib| TargetSpec { memory_mib, ..spec.clone() };
    if !spec.memory_by_volumes || options.recovers {
        return spec.clone();
    }
    let running = seen.container.as_ref().filter(|container| container.running);
    let has = running.map(|_| seen.made_for().map_or(spec.memory_mib, |it| it.memory_mib));
    let kept = with(has.unwrap_or(spec.memory_mib));
    if has.is_some() && !options.recreate || !policy.target.says_memory(spec.kind) {
        return kept;
    }
    let fits = |sized: &TargetSpec| {
        let planned = TargetPlan::default().bring_up(sized, EnsureOptions::default(), seen, policy);
        let is_short =
            |fault: Fault| matches!(fault.code, Code::MemoryImpossible | Code::PageLimitTooLow);
        !planned.err().is_some_and(is_short)
    };
    let sizes =
        (1..=memory_steps(volumes as u64)).rev().map(|step| step.saturating_mul(MEMORY_STEP_MIB));
    sizes.filter(|mib| has.is_none_or(|has| *mib > has)).map(with).find(fits).unwrap_or(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::container::{ContainerSeen, SPEC_LABEL};
    use crate::model::cpu::Cpu;
    use crate::model::pools::PageLimit;
    use crate::model::target::TargetKind;
    use crate::model::units::{NumaNode, PageSize};
    use crate::plan::target::ensure;

    const LEAVE: EnsureOptions =
        EnsureOptions { recreate: false, force: false, anew: false, recovers: false };
    const RECREATE: EnsureOptions = EnsureOptions { recreate: true, ..LEAVE };

    fn spec(memory_mib: u64) -> TargetSpec {
        TargetSpec {
            kind: TargetKind::Spdk,
            image: Some("spdk:1".into()),
            memory_mib,
            memory_by_volumes: true,
            ..TargetSpec::example("a")
        }
    }

    /// Empty node with `free_pages` free pages.
    fn node(free_pages: u64) -> TargetSeen {
        let cpu = Cpu {
            id: 0,
            node: NumaNode(0),
            core: Some(0),
            package: Some(0),
            siblings: vec![0],
            isolated: false,
        };
        TargetSeen {
            has_image: true,
            huge_dir: Some("/dev/hugepages2m".into()),
            cpus: vec![cpu],
            free_pages: [(NumaNode(0), free_pages)].into(),
            ..TargetSeen::default()
        }
    }

    /// `seen` with a container that was made for `memory_mib`.
    fn with_container(memory_mib: u64, running: bool, seen: TargetSeen) -> TargetSeen {
        let made_for = TargetSpec { memory_by_volumes: false, ..spec(memory_mib) };
        let label = serde_json::to_string(&made_for).unwrap();
        let container = ContainerSeen {
            id: "c0ffee".into(),
            running,
            pid: running.then_some(7),
            exit_code: None,
            oom_killed: false,
            image_id: "sha256:1".into(),
            labels: [(SPEC_LABEL.to_string(), label)].into(),
            error: String::new(),
            restarts: None,
        };
        let version = running.then(|| "SPDK v26.05".to_string());
        TargetSeen { container: Some(container), version, sessions: Some(0), ..seen }
    }

    fn mib(volumes: usize, options: EnsureOptions, seen: &TargetSeen) -> u64 {
        sized(&spec(512), options, volumes, seen, &TargetPolicy::example()).memory_mib
    }

    #[test]
    fn new_target_gets_memory_for_its_volumes_as_far_as_pages_are_free() {
        let ample = node(100_000);
        for (volumes, expected) in [(0, 512), (800, 512), (801, 1024), (1_600, 1024), (5_000, 3584)]
        {
            assert_eq!(mib(volumes, LEAVE, &ample), expected, "{volumes} volumes");
        }
        assert_eq!(mib(5_000, LEAVE, &node(600)), 1024, "as much as there is");
        let limit = PageLimit { file: "f".into(), size: PageSize::MIB_2, pages: 600, used: 0 };
        let limited = TargetSeen { page_limit: Some(limit), ..node(100_000) };
        assert_eq!(mib(5_000, LEAVE, &limited), 1024, "as much as it may have");
        assert_eq!(
            mib(5_000, LEAVE, &node(10)),
            512,
            "and then it is reported how much is missing"
        );
        let promised = |pages| [(NumaNode(0), pages)].into();
        let kept = TargetSeen { promised_pages: promised(99_500), ..ample.clone() };
        assert_eq!(mib(5_000, LEAVE, &kept), 512, "as much as is kept for nobody else");
        let unknown = TargetSeen { free_pages: [].into(), ..ample };
        assert_eq!(mib(801, LEAVE, &unknown), 1024, "it is unknown what is free");
    }

    #[test]
    fn running_target_keeps_its_memory_and_shows_no_drift() {
        for has in [64, 512, 2048] {
            let (runs, policy) =
                (with_container(has, true, node(100_000)), TargetPolicy::example());
            let spec = sized(&spec(512), LEAVE, 5_000, &runs, &policy);
            let plan = ensure(&spec, LEAVE, &runs, &policy).unwrap();
            assert_eq!((spec.memory_mib, plan.steps, plan.drift), (has, vec![], vec![]));
        }
    }

    #[test]
    fn running_target_grows_only_when_a_new_one_is_asked_for_and_pages_are_free() {
        let mib = |has, pages| mib(801, RECREATE, &with_container(has, true, node(pages)));
        assert_eq!((mib(512, 512), mib(512, 511)), (1024, 512));
        assert_eq!((mib(1024, 9_999), mib(2048, 9_999)), (1024, 2048), "and once");
    }

    #[test]
    fn target_that_comes_back_is_as_it_was_desired() {
        for pages in [10, 100_000] {
            let ended = with_container(2048, false, node(pages));
            assert_eq!(mib(801, EnsureOptions { recovers: true, ..LEAVE }, &ended), 512);
        }
    }

    #[test]
    fn memory_that_somebody_set_or_that_no_command_takes_is_left() {
        let policy = TargetPolicy::example();
        let set = TargetSpec { memory_by_volumes: false, ..spec(64) };
        assert_eq!(sized(&set, LEAVE, 5_000, &node(100_000), &policy), set);
        for kind in [TargetKind::Zbs, TargetKind::BuiltIn] {
            let spec = TargetSpec { kind, ..spec(512) };
            assert_eq!(sized(&spec, LEAVE, 5_000, &node(100_000), &policy), spec);
        }
    }
}
