//! Hugepages that a node needs: those of a target, of its guests, and of the agent's deep probe. All are pages of 2 MiB.

use super::policy::{MEMORY_STEP_MIB, TargetSettings, VOLUMES_PER_STEP};
use super::target::{TargetKind, TargetSpec};
use super::units::PageSize;

/// Pages that a deep probe shares with the target while it runs.
pub const PROBE_PAGES: u64 = 1;
/// Pages that each GiB of a guest's memory takes: all of it comes from hugepages.
pub const PAGES_PER_GIB: u64 = PageSize::GIB_1.kib() / PageSize::MIB_2.kib();
/// Pages that SPDK takes where its command names no memory; it takes more when it needs them
/// (packaging/doc/facts.md, "Start and stop").
pub const UNNAMED_PAGES: u64 = 200;

/// Pages that the target `spec` takes at least.
pub fn least_pages(spec: &TargetSpec, settings: &TargetSettings) -> u64 {
    match settings.pages(spec) {
        0 if spec.kind == TargetKind::BuiltIn || !settings.is_huge(spec.kind) => 0,
        0 => UNNAMED_PAGES,
        pages => pages,
    }
}

/// Steps of [`MEMORY_STEP_MIB`] that a target gets for `volumes` volumes.
pub fn memory_steps(volumes: u64) -> u64 {
    volumes.div_ceil(VOLUMES_PER_STEP).max(1)
}

/// Number of volumes for which `mib` MiB of hugepages suffice.
pub fn volumes_within(mib: u64) -> u64 {
    mib.saturating_mul(VOLUMES_PER_STEP) / MEMORY_STEP_MIB
}

/// Explains for what `pages` free pages suffice on a node where the target `spec` is yet to start.
pub fn explain(pages: u64, spec: &TargetSpec, settings: &TargetSettings) -> String {
    let takes = least_pages(spec, settings);
    let why = match (takes, settings.pages(spec)) {
        (0, _) if spec.kind == TargetKind::BuiltIn => "the built-in target takes none".to_string(),
        (0, _) => format!("{} takes none (--no-huge)", spec.name),
        (_, 0) => format!(
            "{} takes about {UNNAMED_PAGES} and more when it needs them (its command names no {{memoryMib}})",
            spec.name
        ),
        _ => {
            let (mib, volumes) = (spec.memory_mib, volumes_within(spec.memory_mib));
            format!("{} takes {takes} ({mib} MiB, for {volumes} volumes)", spec.name)
        }
    };
    let needed = takes.saturating_add(PROBE_PAGES);
    let rest = match pages.checked_sub(needed) {
        Some(rest) => format!(
            "the other {rest} are for guests with hugepages, all of whose memory is in them ({} MiB)",
            rest.saturating_mul(PageSize::MIB_2.kib()) / 1024
        ),
        None => format!("that is {} too few", needed - pages),
    };
    format!(
        "of {pages} free pages of 2 MiB, {why}, a deep probe {PROBE_PAGES}; {rest}; each GiB of a guest takes {PAGES_PER_GIB} \
         (--pages, pools.default_pages)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATIONS: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/doc/operations.md"));

    #[test]
    fn sizing_table_of_the_documentation_follows_from_the_constants() {
        for (guests, gib, volumes) in
            [(2, 1, 2), (10, 4, 10), (40, 8, 80), (100, 16, 1000), (200, 8, 2000)]
        {
            let target = memory_steps(volumes) * MEMORY_STEP_MIB / 2;
            let memory = guests * gib * PAGES_PER_GIB;
            let all = target + memory + PROBE_PAGES;
            let row = format!(
                "| {guests} × {gib} GiB, {volumes} volumes | {target} | {memory} | {PROBE_PAGES} | {all} |"
            );
            assert!(OPERATIONS.contains(&row), "operations.md lacks: {row}");
        }
        for number in [MEMORY_STEP_MIB, VOLUMES_PER_STEP, PAGES_PER_GIB, UNNAMED_PAGES] {
            assert!(OPERATIONS.contains(&number.to_string()), "operations.md lacks {number}");
        }
    }

    fn text(pages: u64, kind: TargetKind, command: &str) -> String {
        let words = command.split(' ').map(str::to_string).collect();
        let settings = TargetSettings { spdk_command: words, ..TargetSettings::example() };
        let spec = TargetSpec { kind, memory_mib: 512, ..TargetSpec::example("a") };
        explain(pages, &spec, &settings)
    }

    #[test]
    fn pages_are_explained_by_their_users() {
        let named = text(1024, TargetKind::Spdk, "vhost -s {memoryMib}");
        for words in [
            "of 1024 free pages of 2 MiB, a takes 256 (512 MiB, for 800 volumes), a deep probe 1",
            "the other 767 are for guests with hugepages, all of whose memory is in them (1534 MiB)",
            "each GiB of a guest takes 512",
        ] {
            assert!(named.contains(words), "{named}");
        }
        let few = text(9, TargetKind::Spdk, "vhost -s {memoryMib}");
        assert!(few.contains("that is 248 too few"), "{few}");
        let unnamed = text(1024, TargetKind::Spdk, "vhost");
        assert!(unnamed.contains("a takes about 200") && unnamed.contains("the other 823"));
        let without = text(1024, TargetKind::Spdk, "vhost --no-huge -s {memoryMib}");
        assert!(without.contains("a takes none (--no-huge)"), "{without}");
        let built_in = text(9, TargetKind::BuiltIn, "vhost");
        assert!(built_in.contains("the built-in target takes none, a deep probe 1; the other 8"));
    }
}
