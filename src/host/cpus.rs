//! Processors, from sysfs (Documentation/admin-guide/cputopology.rst).

use std::collections::BTreeMap;

use super::files::{entries, parse_list, read_list, read_number, read_text};
use super::{HostError, Root};
use crate::model::cpu::Cpu;
use crate::model::units::NumaNode;

const CPUS: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";

/// Reads all online CPUs.
///
/// # Errors
/// When the list of online CPUs or the topology of a CPU cannot be read.
pub fn cpus(root: &Root) -> Result<Vec<Cpu>, HostError> {
    let online = read_list(&root.path(format!("{CPUS}/online")))?;
    let isolated_text = read_text(&root.path(format!("{CPUS}/isolated"))).unwrap_or_default();
    let isolated = parse_list(&isolated_text).unwrap_or_default();
    let nodes = node_of_cpus(root)?;
    online
        .into_iter()
        .map(|id| {
            let topology = root.path(format!("{CPUS}/cpu{id}/topology"));
            Ok(Cpu {
                id,
                node: nodes.get(&id).copied().unwrap_or(NumaNode(0)),
                core: small(read_number(&topology.join("core_id"))?),
                package: small(read_number(&topology.join("physical_package_id")).unwrap_or(0)),
                siblings: read_list(&topology.join("thread_siblings_list"))?,
                isolated: isolated.contains(&id),
            })
        })
        .collect()
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn node_of_cpus(root: &Root) -> Result<BTreeMap<u32, NumaNode>, HostError> {
    let mut nodes = BTreeMap::new();
    for (name, path) in entries(&root.path(NODES))? {
        let Some(node) = name.strip_prefix("node").and_then(|n| n.parse().ok()) else { continue };
        for cpu in read_list(&path.join("cpulist"))? {
            nodes.insert(cpu, NumaNode(node));
        }
    }
    Ok(nodes)
}
