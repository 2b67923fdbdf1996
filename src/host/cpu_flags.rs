//! Name and flags of the CPUs, from /proc/cpuinfo (proc_cpuinfo(5)).

use std::fs::File;
use std::io::Read;

use super::Root;
use crate::model::exit::CpuModel;

/// Maximum bytes that are read: the first processor, of which there may be hundreds.
const MOST_BYTES: u64 = 16 * 1024;

/// Kind of the first processor; `None` if the kernel does not report its flags.
pub fn model(root: &Root) -> Option<CpuModel> {
    let mut bytes = Vec::new();
    File::open(root.path("/proc/cpuinfo")).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let field = |names: &[&str]| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name.trim()).then(|| value.trim().to_string())
        })
    };
    // x86-64 has flags, aarch64 and loongarch64 have features.
    let flags = field(&["flags", "Features"])?;
    Some(CpuModel {
        name: field(&["model name", "Model Name"]).unwrap_or_default(),
        flags: flags.split_whitespace().map(str::to_string).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        std::fs::create_dir(root.path("/proc")).unwrap();
        std::fs::write(root.path("/proc/cpuinfo"), text).unwrap();
        model(&root).map(|cpu| (cpu.name, cpu.flags.join(" ")))
    }

    // Reduced from /proc/cpuinfo of an x86-64, an aarch64 and a loongarch64 kernel.
    #[test]
    fn the_first_processor_is_read_whatever_the_architecture() {
        let known = |name: &str, flags: &str| Some((name.to_string(), flags.to_string()));
        let x86 =
            "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) CPU E5-2670 v2\nflags\t\t: fpu lm\n\n";
        let twice = format!("{x86}processor\t: 1\nmodel name\t: another\nflags\t\t: none\n");
        assert_eq!(of(&twice), known("Intel(R) Xeon(R) CPU E5-2670 v2", "fpu lm"));
        let arm =
            "processor\t: 0\nBogoMIPS\t: 200.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x48\n";
        assert_eq!(of(arm), known("", "fp asimd"));
        let loong =
            "system type\t: generic\n\nModel Name\t: Loongson-3A5000\nFeatures\t: cpucfg lam\n";
        assert_eq!(of(loong), known("Loongson-3A5000", "cpucfg lam"));
        assert_eq!(of("processor\t: 0\n"), None);
    }
}
