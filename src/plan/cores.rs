//! Choosing CPUs for a target (field note 16): its reactors spin, so they get CPUs that nobody else
//! counts on, on one NUMA node.

use std::collections::BTreeMap;

use crate::model::cpu::{CoreList, Cpu};
use crate::model::fault::Fault;
use crate::model::target::CoreWish;
use crate::model::units::NumaNode;

/// CPUs, and the NUMA nodes they are on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The CPUs.
    pub cores: CoreList,
    /// Their nodes.
    pub nodes: Vec<NumaNode>,
}

/// Chooses CPUs among those that are online.
///
/// A list is honoured as it is. A count is filled from one node: the one with the most cores to give,
/// the highest numbers first, a core's second thread only when there are not enough cores; never CPU 0
/// while there is another, never one that is isolated for somebody else.
///
/// # Errors
/// When the machine has not these, or not so many on one node; the fault has the topology.
pub fn choose(wish: &CoreWish, cpus: &[Cpu]) -> Result<Chosen, Fault> {
    match wish {
        CoreWish::These(cores) => these(cores, cpus),
        CoreWish::Count(count) => so_many(*count as usize, cpus),
    }
}

fn these(cores: &CoreList, cpus: &[Cpu]) -> Result<Chosen, Fault> {
    let find = |id: &u32| cpus.iter().find(|cpu| cpu.id == *id);
    let missing: Vec<u32> =
        cores.as_slice().iter().copied().filter(|id| find(id).is_none()).collect();
    if let Some(first) = missing.first() {
        let text = format!("core {first} is not there or not online; {}", topology(cpus));
        return Err(Fault::new("cores-impossible", text));
    }
    let mut nodes: Vec<NumaNode> =
        cores.as_slice().iter().filter_map(find).map(|cpu| cpu.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    Ok(Chosen { cores: cores.clone(), nodes })
}

fn so_many(count: usize, cpus: &[Cpu]) -> Result<Chosen, Fault> {
    let usable = |cpu: &&Cpu| !cpu.isolated && (cpu.id != 0 || cpus.len() == 1);
    let mut by_node: BTreeMap<NumaNode, Vec<&Cpu>> = BTreeMap::new();
    for cpu in cpus.iter().filter(usable) {
        by_node.entry(cpu.node).or_default().push(cpu);
    }
    let chosen = by_node
        .iter()
        .map(|(node, cpus)| (*node, in_order(cpus)))
        .filter(|(_, order)| order.len() >= count)
        .max_by_key(|(node, order)| (order.len(), *node))
        .and_then(|(node, mut order)| {
            order.truncate(count);
            Some(Chosen { cores: CoreList::of(order)?, nodes: vec![node] })
        });
    chosen.ok_or_else(|| {
        let text = format!(
            "no NUMA node has {count} cores to give (CPU 0 and isolated CPUs are left alone); {}: ask \
             for fewer, or name them",
            topology(cpus)
        );
        Fault::new("cores-impossible", text)
    })
}

/// The CPUs of a node in the order in which they are taken: one thread of each core, then the others.
fn in_order(cpus: &[&Cpu]) -> Vec<u32> {
    let mut order = Vec::new();
    let mut seconds = Vec::new();
    let mut cores = Vec::new();
    for cpu in cpus.iter().rev() {
        match cores.contains(&(cpu.package, cpu.core)) {
            true => seconds.push(cpu.id),
            false => {
                cores.push((cpu.package, cpu.core));
                order.push(cpu.id);
            }
        }
    }
    order.extend(seconds);
    order
}

fn topology(cpus: &[Cpu]) -> String {
    let mut by_node: BTreeMap<NumaNode, Vec<u32>> = BTreeMap::new();
    for cpu in cpus {
        by_node.entry(cpu.node).or_default().push(cpu.id);
    }
    let nodes = by_node.into_iter().filter_map(|(node, ids)| {
        let ids = CoreList::of(ids)?;
        Some(format!("{node} has CPUs {ids}"))
    });
    nodes.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nodes` nodes with `cores` cores of two threads each; threads are numbered as Linux does on x86:
    /// first one of each core, then the others.
    fn machine(nodes: u32, cores: u32) -> Vec<Cpu> {
        let all = nodes * cores;
        let cpu = |id: u32| {
            let core = id % all;
            let siblings = vec![core, core + all];
            let node = NumaNode(core / cores);
            Cpu { id, node, core, package: core / cores, siblings, isolated: false }
        };
        (0..all * 2).map(cpu).collect()
    }

    fn chosen(count: u32, cpus: &[Cpu]) -> Vec<u32> {
        choose(&CoreWish::Count(count), cpus).unwrap().cores.as_slice().to_vec()
    }

    #[test]
    fn distinct_cores_of_one_node_come_first_and_second_threads_last() {
        let cpus = machine(2, 4);
        let chose = choose(&CoreWish::Count(2), &cpus).unwrap();
        assert_eq!((chose.cores.as_slice(), &chose.nodes[..]), (&[14, 15][..], &[NumaNode(1)][..]));
        assert_eq!(chosen(4, &cpus), [12, 13, 14, 15]);
        assert_eq!(chosen(5, &cpus), [7, 12, 13, 14, 15], "a second thread when cores are out");
        let fault = choose(&CoreWish::Count(9), &cpus).unwrap_err();
        assert_eq!(fault.code, "cores-impossible");
        assert!(fault.text.contains("node1 has CPUs 4,5,6,7,12,13,14,15"), "{fault}");
    }

    #[test]
    fn cpu_0_and_isolated_ones_are_left_alone() {
        let mut cpus = machine(1, 2);
        assert_eq!(chosen(2, &cpus), [2, 3]);
        cpus[3].isolated = true;
        assert_eq!(chosen(2, &cpus), [1, 2]);
        assert!(choose(&CoreWish::Count(3), &cpus).is_err());
        assert_eq!(chosen(1, &cpus[..1]), [0], "there is no other");
    }

    #[test]
    fn a_list_is_honoured_and_one_that_cannot_be_is_refused_with_the_topology() {
        let cpus = machine(2, 2);
        let wish = |text: &str| CoreWish::These(text.parse().unwrap());
        let chose = choose(&wish("[0,6]"), &cpus).unwrap();
        assert_eq!((chose.cores.as_slice(), chose.nodes.len()), (&[0, 6][..], 2));
        let fault = choose(&wish("[1,8]"), &cpus).unwrap_err();
        assert!(fault.text.contains("core 8") && fault.text.contains("node0 has"), "{fault}");
    }
}
