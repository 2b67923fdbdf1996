//! Choice of CPUs for a target (field note 16): its reactors spin, so they get CPUs that nobody else counts on, on
//! one NUMA node.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::pins::Pins;
use crate::model::code::Code;
use crate::model::cpu::{CoreList, Cpu, CpuUse};
use crate::model::fault::{Fault, Finding};
use crate::model::numa::MemoryNodes;
use crate::model::target::CoreRequest;
use crate::model::units::NumaNode;

/// Chosen CPUs, and the NUMA nodes of their memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub cores: CoreList,
    /// Nodes of the CPUs; for a node without memory the nearest ones that have some.
    pub memory_nodes: Vec<NumaNode>,
    /// Further CPUs, for the threads that are no reactors. DPDK's thread that accepts the guests' connections would
    /// otherwise run on a reactor's CPU, which SPDK in interrupt mode does not survive. `None` if there are no further
    /// CPUs.
    pub housekeeping: Option<CoreList>,
    /// Findings on virtual machines and other targets that share `cores`, and on memory far away.
    pub findings: Vec<Finding>,
}

/// Chooses CPUs among those that are online and on which containers may run.
///
/// A list of CPUs is taken as it is. A count is filled from one node that has as many usable CPUs. Of several nodes,
/// the best one has, in this order of weight: enough free memory, the least harm to other users of its CPUs, memory of
/// its own, the most physical cores among the CPUs taken, the most free CPUs.
///
/// On that node, CPUs that harm others least are taken first. Of these, one thread of each core comes before the second
/// threads, and a higher number before a lower one. CPU 0 is taken only if it is the only usable one; an isolated CPU
/// never, nor one whose siblings are unknown, which may share the core of a virtual machine.
///
/// # Errors
/// When a listed CPU is missing, offline or closed to containers, or no node has as many CPUs. The fault has the
/// topology.
pub fn choose(request: &CoreRequest, cpus: &[Cpu], used: &CpuUse) -> Result<Chosen, Fault> {
    let pins = Pins::of(cpus, &used.holders);
    let chosen = match request {
        CoreRequest::These(cores) => these(cores, cpus, used)?,
        CoreRequest::Count(count) => so_many(*count as usize, cpus, used, &pins)?,
    };
    let mut nodes: Vec<NumaNode> = chosen.iter().map(|cpu| cpu.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let memory_nodes = used.memory_nodes.beside_all(nodes.iter().copied());
    let cores = CoreList::of(chosen.iter().map(|cpu| cpu.id).collect()).ok_or_else(|| {
        Fault::new(Code::InvalidCores, "no core is no list of cores: ask for one")
    })?;
    let housekeeping = CoreList::of(housekeeping(&chosen, cpus, used, &pins));
    let mut findings = pins.findings(&chosen);
    findings.extend(remote_memory(&nodes, &used.memory_nodes));
    Ok(Chosen { cores, memory_nodes, housekeeping, findings })
}

/// Finding on those of `nodes`, the nodes of chosen CPUs, that have no memory.
fn remote_memory(nodes: &[NumaNode], memory: &MemoryNodes) -> Option<Finding> {
    let lacking = || nodes.iter().copied().filter(|node| memory.lacks(*node));
    let list = |nodes: Vec<NumaNode>| {
        nodes.iter().map(NumaNode::to_string).collect::<Vec<_>>().join(" and ")
    };
    let (on, from) = (list(lacking().collect()), list(memory.beside_all(lacking())));
    (!on.is_empty()).then(|| {
        let text = format!(
            "on {on}, where the target has cores, is no memory, or none that the engine's containers may use: the \
             target gets that of {from}, the nearest, which takes longer to reach; name cores of another node (cores)"
        );
        Finding::new(Code::MemoryRemote, text)
    })
}

/// CPUs for housekeeping: online, open to containers, not isolated and not among `chosen`. The result is the first of
/// these sets that is not empty: CPUs of the chosen nodes to which nobody is held, CPUs to which nobody is held, CPUs
/// of the chosen nodes, all of them.
fn housekeeping(chosen: &[&Cpu], cpus: &[Cpu], used: &CpuUse, pins: &Pins<'_>) -> Vec<u32> {
    let is_spare =
        |cpu: &&Cpu| !cpu.isolated && may_run(cpu, used) && chosen.iter().all(|it| it.id != cpu.id);
    let is_near = |cpu: &Cpu| chosen.iter().any(|it| it.node == cpu.node);
    let spare = || cpus.iter().filter(|cpu| is_spare(cpu));
    let ids = |wanted: &dyn Fn(&Cpu) -> bool| -> Vec<u32> {
        spare().filter(|cpu| wanted(cpu)).map(|cpu| cpu.id).collect()
    };
    let tries: [&dyn Fn(&Cpu) -> bool; 4] = [
        &|cpu| is_near(cpu) && pins.is_nobodys(cpu),
        &|cpu| pins.is_nobodys(cpu),
        &|cpu| is_near(cpu),
        &|_| true,
    ];
    tries.into_iter().map(ids).find(|found| !found.is_empty()).unwrap_or_default()
}

fn these<'a>(cores: &CoreList, cpus: &'a [Cpu], used: &CpuUse) -> Result<Vec<&'a Cpu>, Fault> {
    let find = |id: &u32| {
        let why = match cpus.iter().find(|cpu| cpu.id == *id) {
            Some(cpu) if may_run(cpu, used) => return Ok(cpu),
            Some(_) => "is outside of the cpuset that bounds the engine's containers",
            None => "is not there or not online",
        };
        let text = format!("core {id} {why}; {}", topology(cpus, used));
        Err(Fault::new(Code::CoresImpossible, text))
    };
    cores.as_slice().iter().map(find).collect()
}

fn so_many<'a>(
    count: usize,
    cpus: &'a [Cpu],
    used: &CpuUse,
    pins: &Pins<'_>,
) -> Result<Vec<&'a Cpu>, Fault> {
    let mut usable: Vec<&Cpu> =
        cpus.iter().filter(|cpu| is_for_targets(cpu) && may_run(cpu, used)).collect();
    if usable.len() > 1 {
        usable.retain(|cpu| cpu.id != 0);
    }
    let mut by_node: BTreeMap<NumaNode, Vec<&Cpu>> = BTreeMap::new();
    for cpu in usable {
        by_node.entry(cpu.node).or_default().push(cpu);
    }
    let best = by_node
        .into_values()
        .filter(|cpus| cpus.len() >= count)
        .map(|cpus| in_order(cpus, pins))
        .max_by_key(|order| merit(order, count, used, pins));
    best.map(|mut order| {
        order.truncate(count);
        order
    })
    .ok_or_else(|| {
        let text = format!(
            "no NUMA node has {count} cores to give (CPU 0, isolated CPUs and those of unknown siblings are left \
             alone); {}: ask for fewer, or name them",
            topology(cpus, used)
        );
        Fault::new(Code::CoresImpossible, text)
    })
}

/// Values by which nodes are compared, the first before the others; more is better. `order` has the CPUs of one node,
/// of which the first `count` would be taken. The values are 1 if enough memory is free, the smallest room of a taken
/// CPU ([`Pins::room`]), 1 if the node has memory, the number of physical cores among the taken CPUs, and the number of
/// CPUs in `order` to whose cores nobody is held.
///
/// Nodes are compared in the order of their numbers, and of equal ones the last is chosen.
fn merit(order: &[&Cpu], count: usize, used: &CpuUse, pins: &Pins<'_>) -> [usize; 5] {
    let node = order.first().map(|cpu| cpu.node);
    let has_enough = node.is_none_or(|node| !used.short_nodes.contains(&node));
    let is_near = node.is_none_or(|node| !used.memory_nodes.lacks(node));
    let taken = || order.iter().take(count);
    let room = taken().map(|cpu| pins.room(cpu)).min().unwrap_or_default();
    let is_first = |(at, cpu): &(usize, &&Cpu)| {
        !order.iter().take(*at).any(|before| before.shares_core_with(cpu))
    };
    let cores = taken().enumerate().filter(is_first).count();
    let free = order.iter().filter(|cpu| pins.room(cpu) == usize::MAX).count();
    [has_enough.into(), room, is_near.into(), cores, free]
}

/// CPUs of one node in the order in which they are taken. Those with the most room ([`Pins::room`]) come first. Of
/// these, one thread of each core comes before the second threads, and a higher number before a lower one.
fn in_order<'a>(mut cpus: Vec<&'a Cpu>, pins: &Pins<'_>) -> Vec<&'a Cpu> {
    cpus.sort_by_key(|cpu| Reverse(cpu.id));
    let (mut order, mut seconds) = (Vec::<&Cpu>::new(), Vec::new());
    for cpu in cpus {
        match order.iter().any(|first| first.shares_core_with(cpu)) {
            true => seconds.push(cpu),
            false => order.push(cpu),
        }
    }
    order.extend(seconds);
    // A stable sort keeps the order of equals.
    order.sort_by_key(|cpu| Reverse(pins.room(cpu)));
    order
}

/// `true` if that CPU may be taken without being named.
fn is_for_targets(cpu: &Cpu) -> bool {
    !cpu.isolated && !cpu.siblings.is_empty()
}

fn may_run(cpu: &Cpu, used: &CpuUse) -> bool {
    used.containers.as_ref().is_none_or(|containers| containers.contains(&cpu.id))
}

fn topology(cpus: &[Cpu], used: &CpuUse) -> String {
    let mut by_node: BTreeMap<NumaNode, Vec<u32>> = BTreeMap::new();
    for cpu in cpus {
        by_node.entry(cpu.node).or_default().push(cpu.id);
    }
    let nodes = by_node.into_iter().filter_map(|(node, ids)| {
        let ids = CoreList::of(ids)?;
        Some(format!("{node} has CPUs {ids}"))
    });
    let confined = used.containers.as_ref().and_then(|cpus| {
        let cpus = CoreList::of(cpus.iter().copied().collect())?;
        Some(format!("containers may use CPUs {cpus}"))
    });
    nodes.chain(confined).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "cores_tests.rs"]
mod tests;
