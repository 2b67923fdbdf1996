//! Exits of a target that its image and the node explain: an instruction that the CPU lacks, a hugepage that the kernel
//! refuses.

use super::pools::PageLimit;

/// Exit code of a container whose process was ended by signal `n`, less `n`.
const SIGNALLED: i64 = 128;
/// Signals that end a target, by number (signal(7)).
const SIGNALS: [(i64, &str); 7] = [
    (4, "SIGILL"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (15, "SIGTERM"),
];

/// Words of programs that miss CPU flags: of the shell, of DPDK before it starts (`rte_cpu_is_supported`), and of glibc
/// in images that were built for a newer level of x86-64.
const WITHOUT_INSTRUCTION: [&str; 5] = [
    "Illegal instruction",
    "This system does not support \"",
    "unsupported cpu type",
    "CPU does not support x86-64-v",
    "CPU ISA level is lower than required",
];
/// Words of programs whose hugepage was refused when they touched it: of the shell, and of DPDK where it catches SIGBUS.
const WITHOUT_PAGE: [&str; 2] = ["Bus error", "SIGBUS"];
/// Words of SPDK and DPDK for too few hugepages.
const WITHOUT_MEMORY: [&str; 2] = ["Not enough memory available", "couldn't get hugepages"];

/// Flags that each level of x86-64 adds, as /proc/cpuinfo names them (System V ABI for AMD64, "Micro-Architecture
/// Levels").
static LEVELS: [(&str, &[&str]); 3] = [
    ("x86-64-v2", &["cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"]),
    ("x86-64-v3", &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]),
    ("x86-64-v4", &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
];
/// Level of every CPU for x86-64.
const LOWEST_LEVEL: &str = "x86-64";
/// Flag of every CPU for x86-64, and of no other one.
const X86_64: &str = "lm";

/// Name of the signal behind the exit code of a container, if a signal ended its process.
pub fn signal_of(exit_code: i64) -> Option<&'static str> {
    SIGNALS.iter().find(|(number, _)| SIGNALLED + number == exit_code).map(|(_, name)| *name)
}

/// Cause of an exit, as far as its code or the last output shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    /// Instruction that the CPU does not have.
    Instruction,
    /// Hugepage that the kernel refused when it was touched.
    Page,
    /// Hugepages that the program did not get.
    Memory,
}

impl ExitCause {
    /// Cause of an exit with this code and these last words; `None` if they show none.
    pub fn of(exit_code: Option<i64>, printed: &str) -> Option<ExitCause> {
        let says = |words: &[&str]| words.iter().any(|word| printed.contains(word));
        match exit_code.and_then(signal_of) {
            Some("SIGILL") => Some(ExitCause::Instruction),
            Some("SIGBUS") => Some(ExitCause::Page),
            _ if says(&WITHOUT_INSTRUCTION) => Some(ExitCause::Instruction),
            _ if says(&WITHOUT_PAGE) => Some(ExitCause::Page),
            _ if says(&WITHOUT_MEMORY) => Some(ExitCause::Memory),
            _ => None,
        }
    }
}

/// Kind of the node's CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuModel {
    /// Name by its maker; empty if the kernel reports none.
    pub name: String,
    /// Flags, as the kernel names them.
    pub flags: Vec<String>,
}

impl CpuModel {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|it| it == flag)
    }

    /// Highest level of x86-64 that the CPU has, and the flags of the levels above that it lacks; `None` for another
    /// architecture.
    fn level(&self) -> Option<(&'static str, Vec<&'static str>)> {
        let is_complete = |(_, flags): &&(&str, &[&str])| flags.iter().all(|flag| self.has(flag));
        let level = LEVELS.iter().take_while(is_complete).last().map_or(LOWEST_LEVEL, |it| it.0);
        let flags = LEVELS.iter().flat_map(|(_, flags)| flags.iter().copied());
        self.has(X86_64).then(|| (level, flags.filter(|flag| !self.has(flag)).collect()))
    }
}

/// Explains an exit for lack of an instruction: what the node's CPU has and lacks, and what to do.
pub fn explain_instruction(cpu: Option<&CpuModel>) -> String {
    let named = |cpu: &CpuModel| match cpu.name.as_str() {
        "" => "it".to_string(),
        name => name.to_string(),
    };
    let (facts, arch) = match cpu.map(|cpu| (named(cpu), cpu.level(), &cpu.flags)) {
        Some((name, Some((level, lacks)), _)) => {
            let lacks = match lacks.is_empty() {
                true => String::new(),
                false => format!(", and lacks {}", lacks.join(" ")),
            };
            (format!(" ({name} has all flags of {level}{lacks})"), format!("={level}"))
        }
        Some((name, None, flags)) => (format!(" ({name} has {})", flags.join(" ")), String::new()),
        None => Default::default(),
    };
    format!(
        "the image was built for another CPU than this node has{facts}: take an image that was built for this one \
         (SPDK: ./configure --target-arch{arch}), or, where the node is a virtual machine, give it the CPU of its host"
    )
}

/// Explains an exit for lack of hugepages of a target that takes at least `takes`, and what to do; `None` if nothing is
/// known. `limit` bounds those of the containers, and is the reason only if it leaves fewer: the target's own are given
/// back with its exit.
pub fn explain_pages(cause: ExitCause, takes: u64, limit: Option<&PageLimit>) -> Option<String> {
    match (limit.filter(|limit| limit.left() < takes), cause) {
        (Some(limit), _) => Some(format!(
            "containers may not have all hugepages: {limit}; raise that, or let the target take less (--memory-mib, \
             target.memory_mib)"
        )),
        (None, ExitCause::Page) => Some(
            "the kernel refused it a hugepage: too few are free on the NUMA node of its cores (`vhost-agent status`), or a \
             control group limits them (hugetlb.2MB.max)"
                .to_string(),
        ),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::PageSize;

    #[test]
    fn causes_are_told_by_the_code_or_by_what_was_printed() {
        use ExitCause::{Instruction, Memory, Page};
        for (code, printed, cause) in [
            (132, "", Some(Instruction)),
            // A shell in the image: opi-poc#159.
            (1, "Illegal instruction (core dumped)", Some(Instruction)),
            // DPDK: opi-poc#262, ceph-nvmeof#311.
            (1, "ERROR: This system does not support \"RDSEED\".", Some(Instruction)),
            (234, "EAL: FATAL: unsupported cpu type.", Some(Instruction)),
            // glibc of RHEL 9, on CPUs older than 2009.
            (127, "Fatal glibc error: CPU does not support x86-64-v2", Some(Instruction)),
            // spdk#597: in a container whose control group allows fewer pages.
            (135, "", Some(Page)),
            (1, "EAL: SIGBUS: Cannot mmap more hugepages of size 2 MB", Some(Page)),
            (234, "EAL: Not enough memory available on socket 0! Requested: 512MB", Some(Memory)),
            (137, "", None),
            (1, "the reactor is lost", None),
        ] {
            assert_eq!(ExitCause::of(Some(code), printed), cause, "{code} {printed}");
        }
        assert_eq!(ExitCause::of(None, ""), None);
    }

    fn cpu(name: &str, flags: &str) -> CpuModel {
        CpuModel { name: name.into(), flags: flags.split(' ').map(str::to_string).collect() }
    }

    #[test]
    fn what_the_cpu_lacks_and_an_image_for_it_are_named() {
        // Ivy Bridge, as in ceph-nvmeof#382.
        let v2 = "fpu lm pni ssse3 cx16 sse4_1 sse4_2 popcnt xsave avx f16c lahf_lm";
        let text = explain_instruction(Some(&cpu("Xeon E5-2670 v2", v2)));
        let facts = "(Xeon E5-2670 v2 has all flags of x86-64-v2, and lacks avx2 bmi1 bmi2 fma abm movbe avx512f";
        assert!(text.contains(facts) && text.contains("--target-arch=x86-64-v2)"), "{text}");
        let text = explain_instruction(Some(&cpu("QEMU Virtual CPU", "fpu lm pni cx16 lahf_lm")));
        assert!(text.contains("all flags of x86-64, and lacks popcnt ssse3"), "{text}");
        let all = LEVELS.iter().flat_map(|(_, flags)| flags.iter().copied()).collect::<Vec<_>>();
        let text = explain_instruction(Some(&cpu("", &format!("lm {}", all.join(" ")))));
        assert!(text.contains("(it has all flags of x86-64-v4):"), "{text}");
        let text = explain_instruction(Some(&cpu("", "fp asimd aes")));
        assert!(
            text.contains("(it has fp asimd aes)") && text.contains("--target-arch)"),
            "{text}"
        );
        assert!(explain_instruction(None).contains("than this node has: take"));
    }

    #[test]
    fn a_limit_of_hugepages_is_named_where_pages_were_missing() {
        let file = "/sys/fs/cgroup/system.slice/hugetlb.2MB.max".to_string();
        let limit = PageLimit { file, size: PageSize::MIB_2, pages: 128, used: 28 };
        for cause in [ExitCause::Page, ExitCause::Memory] {
            let text = explain_pages(cause, 101, Some(&limit)).unwrap();
            let words =
                "system.slice/hugetlb.2MB.max allows 128 pages of 2M, of which 100 are left";
            assert!(text.contains(words) && text.contains("memory_mib"), "{text}");
        }
        for limit in [None, Some(&limit)] {
            let text = explain_pages(ExitCause::Page, 100, limit).unwrap();
            assert!(text.contains("too few are free") && !text.contains("128"), "{text}");
            assert_eq!(explain_pages(ExitCause::Memory, 100, limit), None);
        }
    }
}
