//! Processors, from sysfs (Documentation/admin-guide/cputopology.rst).

use std::collections::BTreeMap;

use super::files::{parse_list, read_list, read_text};
use super::{HostError, Root, numa};
use crate::model::cpu::Cpu;
use crate::model::units::NumaNode;

const CPUS: &str = "/sys/devices/system/cpu";
/// Lists of the threads of a core; the second name is that of kernels since 5.4, which have both.
const SIBLINGS: [&str; 2] = ["thread_siblings_list", "core_cpus_list"];

/// Topology of a CPU, as far as it is known. The kernel shows -1 for a number that the firmware did not tell, an empty
/// list, or no folder at all: for a CPU that went offline meanwhile, or on a machine without such information.
struct Topology {
    id: u32,
    node: NumaNode,
    package: Option<u32>,
    die: Option<u32>,
    core: Option<u32>,
    /// Threads of the core, by the kernel's list; empty if unknown.
    listed: Vec<u32>,
}

/// Reads all online CPUs. A CPU of unknown topology hides no other one; its siblings are empty where they cannot be
/// told by other means.
///
/// # Errors
/// When the list of online CPUs or that of a node's CPUs cannot be read.
pub fn cpus(root: &Root) -> Result<Vec<Cpu>, HostError> {
    let online = read_list(&root.path(format!("{CPUS}/online")))?;
    let isolated = isolated(root);
    let nodes = node_of_cpus(root)?;
    let node = |id: u32| nodes.get(&id).copied().unwrap_or(NumaNode(0));
    let all: Vec<Topology> =
        online.into_iter().map(|id| Topology::read(root, id, node(id))).collect();
    let cpu = |it: &Topology| Cpu {
        id: it.id,
        node: it.node,
        core: it.core,
        package: it.package,
        siblings: it.siblings(&all),
        isolated: isolated.contains(&it.id),
    };
    Ok(all.iter().map(cpu).collect())
}

impl Topology {
    fn read(root: &Root, id: u32, node: NumaNode) -> Topology {
        let folder = root.path(format!("{CPUS}/cpu{id}/topology"));
        let number = |name: &str| read_text(&folder.join(name)).ok()?.parse().ok();
        let list = |name: &&str| read_list(&folder.join(name)).ok();
        let listed = SIBLINGS.iter().filter_map(list).find(|listed| listed.contains(&id));
        Topology {
            id,
            node,
            package: number("physical_package_id"),
            die: number("die_id"),
            core: number("core_id"),
            listed: listed.unwrap_or_default(),
        }
    }

    /// Threads of the CPU's core, itself included, by the kernel's list. Without a list, the CPUs with the same numbers
    /// are taken for them, which are too many rather than too few. Without numbers, the CPU is alone, unless the
    /// machine has cores with several threads: then it is unknown whose core it may share, and the result is empty.
    fn siblings(&self, all: &[Topology]) -> Vec<u32> {
        if !self.listed.is_empty() {
            return self.listed.clone();
        }
        if self.core.is_some() {
            let place = |it: &Topology| (it.node, it.package, it.die, it.core);
            let same = all.iter().filter(|it| place(it) == place(self));
            return same.map(|it| it.id).collect();
        }
        let has_threads = all.iter().any(|it| it.listed.len() > 1);
        if has_threads { Vec::new() } else { vec![self.id] }
    }
}

/// CPUs that are kept from the scheduler. Kernels before 4.1 tell these on their command line only.
fn isolated(root: &Root) -> Vec<u32> {
    if let Ok(list) = read_text(&root.path(format!("{CPUS}/isolated"))) {
        return parse_list(&list).unwrap_or_default();
    }
    let line = read_text(&root.path("/proc/cmdline")).unwrap_or_default();
    // The last one counts.
    let mut lists = line.split_whitespace().filter_map(|word| word.strip_prefix("isolcpus="));
    lists.next_back().and_then(|list| parse_list(list).ok()).unwrap_or_default()
}

fn node_of_cpus(root: &Root) -> Result<BTreeMap<u32, NumaNode>, HostError> {
    let mut nodes = BTreeMap::new();
    for (node, folder) in numa::nodes(root)? {
        nodes.extend(read_list(&folder.join("cpulist"))?.into_iter().map(|cpu| (cpu, node)));
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Siblings of each CPU with these files below `/sys/devices/system/cpu`.
    fn siblings(online: &str, files: &[(&str, &str)]) -> Vec<(u32, Vec<u32>)> {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for (name, text) in files.iter().chain(&[("online", online)]) {
            let path = root.path(CPUS).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        cpus(&root).unwrap().into_iter().map(|cpu| (cpu.id, cpu.siblings)).collect()
    }

    #[test]
    fn cpus_without_lists_of_siblings_are_alone_or_with_those_of_the_same_numbers() {
        // github.com/util-linux/util-linux/issues/1810: Linux 5.15.68 with empty lists.
        let empty = [
            ("cpu0/topology/thread_siblings_list", ""),
            ("cpu0/topology/core_id", "0"),
            ("cpu0/topology/physical_package_id", "0"),
            ("cpu1/topology/thread_siblings_list", ""),
            ("cpu1/topology/core_id", "1"),
            ("cpu1/topology/physical_package_id", "0"),
        ];
        assert_eq!(siblings("0-1", &empty), [(0, vec![0]), (1, vec![1])]);
        // github.com/pytorch/cpuinfo/pull/421: a riscv64 board.
        let minus_one = [("cpu0/topology/core_id", "-1"), ("cpu1/topology/core_id", "-1")];
        assert_eq!(siblings("0-1", &minus_one), [(0, vec![0]), (1, vec![1])]);
        assert_eq!(siblings("0-1", &[]), [(0, vec![0]), (1, vec![1])], "no folder at all");
        let threads = [("cpu0/topology/core_id", "3"), ("cpu1/topology/core_id", "3")];
        assert_eq!(siblings("0-1", &threads), [(0, vec![0, 1]), (1, vec![0, 1])]);
        let dies = [threads.as_slice(), &[("cpu1/topology/die_id", "1")]].concat();
        assert_eq!(siblings("0-1", &dies), [(0, vec![0]), (1, vec![1])]);
    }

    #[test]
    fn cpu_of_unknown_topology_hides_no_other_one() {
        // github.com/kubernetes/kubernetes/issues/89859: CPUs without a topology folder.
        let files = [
            ("cpu0/topology/core_cpus_list", "0,2"),
            ("cpu2/topology/thread_siblings_list", "0,2"),
            ("cpu3/topology/thread_siblings_list", "garbage"),
            ("cpu4/topology/thread_siblings_list", "5"),
        ];
        let expected = [(0, vec![0, 2]), (1, vec![]), (2, vec![0, 2]), (3, vec![]), (4, vec![])];
        assert_eq!(siblings("0-4", &files), expected, "whose core they share is unknown");
    }

    #[test]
    fn isolated_cpus_are_on_the_command_line_of_old_kernels() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for path in ["/proc", CPUS] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        let line = "BOOT_IMAGE=/vmlinuz-3.10.0 isolcpus=1 ro isolcpus=2-3,5\n";
        fs::write(root.path("/proc/cmdline"), line).unwrap();
        assert_eq!(isolated(&root), [2, 3, 5]);
        fs::write(root.path(CPUS).join("isolated"), "4\n").unwrap();
        assert_eq!(isolated(&root), [4]);
    }
}
