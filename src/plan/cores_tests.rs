//! Machines of all kinds, and who gets which of their CPUs.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::model::cpu::{Holder, HolderKind};
use crate::model::numa::MemoryNodes;

/// Nobody else is there.
const FREE: CpuUse = CpuUse {
    containers: None,
    memory_nodes: MemoryNodes { distances: BTreeMap::new() },
    holders: Vec::new(),
    short_nodes: BTreeSet::new(),
};

/// `nodes` nodes with `cores` cores of two threads each; threads are numbered as Linux does on x86:
/// first one of each core, then the others.
fn machine(nodes: u32, cores: u32) -> Vec<Cpu> {
    let all = nodes * cores;
    let cpu = |id: u32| {
        let core = id % all;
        let siblings = vec![core, core + all];
        let node = NumaNode(core / cores);
        let package = Some(core / cores);
        Cpu { id, node, core: Some(core), package, siblings, isolated: false }
    };
    (0..all * 2).map(cpu).collect()
}

fn chosen(count: u32, cpus: &[Cpu]) -> Vec<u32> {
    choose(&CoreRequest::Count(count), cpus, &FREE).unwrap().cores.as_slice().to_vec()
}

#[test]
fn distinct_cores_of_one_node_come_first_and_second_threads_last() {
    let cpus = machine(2, 4);
    let chose = choose(&CoreRequest::Count(2), &cpus, &FREE).unwrap();
    assert_eq!(
        (chose.cores.as_slice(), &chose.memory_nodes[..]),
        (&[14, 15][..], &[NumaNode(1)][..])
    );
    assert_eq!(chosen(4, &cpus), [12, 13, 14, 15]);
    assert_eq!(chosen(5, &cpus), [7, 12, 13, 14, 15], "a second thread when cores are out");
    let fault = choose(&CoreRequest::Count(9), &cpus, &FREE).unwrap_err();
    assert_eq!(fault.code, Code::CoresImpossible);
    assert!(fault.text.contains("node1 has CPUs 4,5,6,7,12,13,14,15"), "{fault}");
}

#[test]
fn cpu_0_and_isolated_ones_are_left_alone() {
    let mut cpus = machine(1, 2);
    assert_eq!(chosen(2, &cpus), [2, 3]);
    cpus[3].isolated = true;
    assert_eq!(chosen(2, &cpus), [1, 2]);
    assert!(choose(&CoreRequest::Count(3), &cpus, &FREE).is_err());
    assert_eq!(chosen(1, &cpus[..1]), [0], "there is no other");
}

#[test]
fn threads_that_are_no_reactors_get_cpus_beside_them() {
    let beside = |cpus: &[Cpu], used: &CpuUse, request: &str| {
        let chose = choose(&CoreRequest::These(request.parse().unwrap()), cpus, used).unwrap();
        chose.housekeeping.map(|cpus| cpus.as_slice().to_vec())
    };
    let mut cpus = machine(2, 2);
    assert_eq!(beside(&cpus, &FREE, "[3]"), Some(vec![2, 6, 7]), "of the same node");
    cpus[6].isolated = true;
    let pinned = held_by(vec![vm("a", &[&[2]])]);
    assert_eq!(beside(&cpus, &pinned, "[3]"), Some(vec![7]), "nobody's");
    let pinned = held_by(vec![vm("a", &[&[2], &[7]])]);
    assert_eq!(beside(&cpus, &pinned, "[3]"), Some(vec![0, 1, 4, 5]), "or of the other node");
    let confined = CpuUse { containers: Some([2, 3].into()), ..pinned };
    assert_eq!(beside(&cpus, &confined, "[3]"), Some(vec![2]), "or one of a virtual machine");
    assert_eq!(beside(&machine(1, 1)[..1], &FREE, "[0]"), None);
}

#[test]
fn a_list_is_honoured_and_one_that_cannot_be_is_refused_with_the_topology() {
    let cpus = machine(2, 2);
    let request = |text: &str| CoreRequest::These(text.parse().unwrap());
    let chose = choose(&request("[0,6]"), &cpus, &FREE).unwrap();
    assert_eq!((chose.cores.as_slice(), chose.memory_nodes.len()), (&[0, 6][..], 2));
    let fault = choose(&request("[1,8]"), &cpus, &FREE).unwrap_err();
    assert!(fault.text.contains("core 8") && fault.text.contains("node0 has"), "{fault}");
}

/// One whose threads may run on these CPUs.
fn holder(kind: HolderKind, name: &str, lists: &[&[u32]]) -> Holder {
    let allowed = lists.iter().map(|list| list.to_vec()).collect();
    Holder { kind, name: name.to_string(), allowed }
}

fn held_by(holders: Vec<Holder>) -> CpuUse {
    CpuUse { holders, ..FREE }
}

fn vm(name: &str, lists: &[&[u32]]) -> Holder {
    holder(HolderKind::Machine, name, lists)
}

/// Chosen cores, and the codes of the findings.
fn beside(count: u32, cpus: &[Cpu], holders: Vec<Holder>) -> (Vec<u32>, Vec<Code>) {
    let chose = choose(&CoreRequest::Count(count), cpus, &held_by(holders)).unwrap();
    let codes = chose.findings.iter().map(|finding| finding.code).collect();
    (chose.cores.as_slice().to_vec(), codes)
}

#[test]
fn what_containers_may_not_use_is_never_chosen_and_refused_in_a_list() {
    let cpus = machine(1, 4);
    let within = |containers: &[u32]| CpuUse {
        containers: Some(containers.iter().copied().collect()),
        ..FREE
    };
    let chosen = |count, containers: &[u32]| {
        choose(&CoreRequest::Count(count), &cpus, &within(containers)).map(|chose| chose.cores)
    };
    assert_eq!(chosen(2, &[0, 1, 2, 3]).unwrap().as_slice(), [2, 3]);
    assert_eq!(chosen(1, &[0]).unwrap().as_slice(), [0], "there is no other");
    let fault = chosen(4, &[0, 1, 2, 3]).unwrap_err();
    assert_eq!(fault.code, Code::CoresImpossible);
    assert!(fault.text.contains("containers may use CPUs 0,1,2,3"), "{fault}");
    let request = CoreRequest::These("[3,5]".parse().unwrap());
    let fault = choose(&request, &cpus, &within(&[2, 3])).unwrap_err();
    assert_eq!(fault.code, Code::CoresImpossible);
    for part in ["core 5", "cpuset", "node0 has CPUs 0,1", "containers may use CPUs 2,3"] {
        assert!(fault.text.contains(part), "{part}: {fault}");
    }
    assert!(choose(&request, &cpus, &within(&[3, 5])).is_ok());
}

#[test]
fn cores_of_virtual_machines_are_left_to_them_with_their_second_threads() {
    // CPUs 3 and 7 are one core.
    let cpus = machine(1, 4);
    assert_eq!(beside(1, &cpus, vec![vm("web", &[&[3]])]), (vec![6], vec![]));
    assert_eq!(beside(2, &cpus, vec![vm("web", &[&[3]])]), (vec![5, 6], vec![]));
    let both = vec![vm("web", &[&[3]]), vm("db", &[&[6]])];
    assert_eq!(beside(2, &cpus, both), (vec![4, 5], vec![]), "CPU 0's sibling is free");
    let two = machine(2, 4);
    let other_node = vec![vm("web", &[&[15], &[14], &[13]])];
    assert_eq!(beside(2, &two, other_node), (vec![10, 11], vec![]), "cores before threads");
}

#[test]
fn cores_are_shared_as_a_last_resort_and_reported_by_name() {
    let cpus = machine(1, 2);
    let used = held_by(vec![vm("web", &[&[1]]), vm("db", &[&[2]])]);
    let chose = choose(&CoreRequest::Count(1), &cpus, &used).unwrap();
    assert_eq!(chose.cores.as_slice(), [3]);
    assert_eq!(chose.findings.len(), 1);
    let finding = &chose.findings[0];
    assert_eq!(finding.code, Code::CoresSharedWithVms);
    assert!(finding.text.contains("CPUs 3 ") && finding.text.contains("web"), "{finding:?}");
    assert!(!finding.text.contains("db"), "{finding:?}");
    let request = CoreRequest::These("[2]".parse().unwrap());
    let chose = choose(&request, &cpus, &used).unwrap();
    assert_eq!(chose.cores.as_slice(), [2], "a list is honoured");
    assert!(chose.findings[0].text.contains("db"), "{:?}", chose.findings);
    let many = (0..9).map(|n| vm(&format!("vm{n}"), &[&[2]])).collect();
    let chose = choose(&request, &cpus, &held_by(many)).unwrap();
    assert!(chose.findings[0].text.contains("vm4, 4 more"), "{:?}", chose.findings);
}

#[test]
fn one_with_room_to_move_is_shared_before_one_with_none() {
    let cpus = machine(1, 4);
    let holders = || vec![vm("wide", &[&[1, 2, 3, 5, 6, 7]]), vm("narrow", &[&[3]])];
    let codes = vec![Code::CoresSharedWithVms];
    assert_eq!(beside(1, &cpus, holders()), (vec![4], vec![]));
    assert_eq!(beside(2, &cpus, holders()), (vec![4, 6], codes));
}

#[test]
fn what_may_run_on_a_whole_node_is_pinned_to_nothing() {
    let cpus = machine(2, 2);
    let node1: &[u32] = &[2, 3, 6, 7];
    for list in [node1, &[0, 1, 2, 3, 4, 5, 6, 7], &[2, 3, 6, 7, 9]] {
        assert_eq!(beside(1, &cpus, vec![vm("web", &[list])]), (vec![7], vec![]), "{list:?}");
    }
    assert_eq!(beside(1, &cpus, vec![vm("gone", &[&[9], &[]])]), (vec![7], vec![]), "offline");
}

#[test]
fn another_targets_cores_are_the_last_to_be_taken() {
    let cpus = machine(1, 2);
    let target = |lists| holder(HolderKind::Target, "reactor_3 (pid 7)", lists);
    assert_eq!(beside(1, &cpus, vec![target(&[&[3]])]), (vec![2], vec![]));
    let (cores, codes) = beside(1, &cpus, vec![target(&[&[1]]), vm("db", &[&[2]])]);
    assert_eq!((cores, codes), (vec![2], vec![Code::CoresSharedWithVms]));
    let (_, codes) = beside(3, &cpus, vec![target(&[&[3]]), vm("db", &[&[2]])]);
    assert_eq!(codes, [Code::CoresSharedWithVms, Code::CoresSharedWithTargets]);
}

#[test]
fn physical_cores_are_told_by_siblings_not_by_numbers_that_repeat() {
    // github.com/canonical/lxd/issues/7116: an Opteron 6000, whose two dies have the same numbers of cores. Here two
    // dies with two cores each, in one node.
    let mut cpus = machine(1, 4);
    for cpu in &mut cpus {
        (cpu.core, cpu.package) = (Some(cpu.id % 2), Some(0));
    }
    assert_eq!(chosen(4, &cpus), [4, 5, 6, 7], "4 cores, none twice");
    let pinned = vec![vm("web", &[&[3]])];
    assert_eq!(beside(3, &cpus, pinned), (vec![4, 5, 6], vec![]));
    // A core with a list of one thread only, which the other thread's list contradicts.
    cpus[7].siblings = vec![7];
    assert_eq!(chosen(5, &cpus), [3, 4, 5, 6, 7]);
}

#[test]
fn cpu_of_unknown_siblings_is_taken_only_if_it_is_named() {
    let mut cpus = machine(1, 2);
    cpus[3].siblings.clear();
    assert_eq!(chosen(1, &cpus), [2]);
    let fault = choose(&CoreRequest::Count(3), &cpus, &FREE).unwrap_err();
    assert!(fault.text.contains("unknown siblings"), "{fault}");
    let named = choose(&CoreRequest::These("[3]".parse().unwrap()), &cpus, &FREE).unwrap();
    assert_eq!(
        (named.cores.as_slice(), named.housekeeping.unwrap().as_slice().len()),
        (&[3][..], 3)
    );
}

#[test]
fn cores_on_a_node_without_memory_get_that_of_the_nearest_nodes() {
    // github.com/numactl/numactl/issues/165: nodes 0 and 3 have no memory, and all are equally far.
    let cpus = machine(4, 2);
    let far = BTreeMap::from([(NumaNode(1), 12), (NumaNode(2), 12)]);
    let memory_nodes =
        MemoryNodes { distances: [(NumaNode(0), far.clone()), (NumaNode(3), far)].into() };
    let used = CpuUse { memory_nodes, ..FREE };
    let took = |request: CoreRequest, used: &CpuUse| {
        let chose = choose(&request, &cpus, used).unwrap();
        let nodes: Vec<u32> = chose.memory_nodes.iter().map(|node| node.0).collect();
        let codes: Vec<Code> = chose.findings.iter().map(|finding| finding.code).collect();
        (chose.cores.to_string(), nodes, codes)
    };
    let these = |cores: &str| CoreRequest::These(cores.parse().unwrap());
    let far = vec![Code::MemoryRemote];
    assert_eq!(took(CoreRequest::Count(2), &used), ("12,13".into(), vec![2], vec![]));
    assert_eq!(took(these("[7]"), &used), ("7".into(), vec![1, 2], far.clone()));
    assert_eq!(took(these("[3,7]"), &used), ("3,7".into(), vec![1, 2], far.clone()));
    assert_eq!(took(these("[3]"), &used), ("3".into(), vec![1], vec![]));
    let text = choose(&these("[0,7]"), &cpus, &used).unwrap().findings[0].text.clone();
    assert!(text.contains("on node0 and node3") && text.contains("of node1 and node2"), "{text}");
    // Nobody else's CPUs are taken to be near memory, but memory that is there comes first.
    let holders = vec![vm("a", &[&[2], &[3]]), vm("b", &[&[4], &[5]])];
    let beside_vms = CpuUse { holders, ..used.clone() };
    assert_eq!(took(CoreRequest::Count(1), &beside_vms), ("15".into(), vec![1, 2], far));
    let short_nodes = BTreeSet::from([NumaNode(0), NumaNode(3)]);
    let short = CpuUse { short_nodes, ..beside_vms };
    assert_eq!(took(CoreRequest::Count(1), &short).1, [2]);
}

/// Some machine: its CPUs, and who uses them.
fn played() -> impl Strategy<Value = (Vec<Cpu>, CpuUse)> {
    let lists = prop::collection::vec(prop::collection::vec(0u32..24, 1..6), 0..4);
    let containers = prop::option::of(any::<u32>());
    (1u32..4, 1u32..5, any::<u32>(), any::<u32>(), containers, lists).prop_map(
        |(nodes, cores, offline, isolated, containers, lists)| {
            let has = |mask: u32, id: u32| mask & (1 << id) != 0;
            let mut cpus = machine(nodes, cores);
            // One in four is offline, one in four isolated.
            let rare = |mask: u32| mask & mask.rotate_left(7);
            cpus.retain(|cpu| !has(rare(offline), cpu.id));
            let online: Vec<u32> = cpus.iter().map(|cpu| cpu.id).collect();
            for cpu in &mut cpus {
                cpu.siblings.retain(|id| online.contains(id));
                cpu.isolated = has(rare(isolated), cpu.id);
            }
            let containers =
                containers.map(|mask| (0..24).filter(|id| !has(rare(mask), *id)).collect());
            let holders = lists.iter().map(|list| vm("vm", &[list])).collect();
            (cpus, CpuUse { containers, holders, ..FREE })
        },
    )
}

/// Whether some machine's CPUs are among these, by the plain words of the rule.
fn is_held(cpu: &Cpu, cpus: &[Cpu], used: &CpuUse) -> bool {
    let lists = used.holders.iter().flat_map(|holder| &holder.allowed);
    let pinned = |list: &Vec<u32>| {
        let whole = |node| cpus.iter().filter(|cpu| cpu.node == node).all(|c| list.contains(&c.id));
        !cpus.iter().any(|cpu| whole(cpu.node))
    };
    lists.filter(|list| pinned(list)).flatten().any(|id| cpu.siblings.contains(id))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_chosen_harms_nobody_who_could_be_spared((cpus, used) in played(), count in 1u32..6) {
        let may = |cpu: &&Cpu| {
            !cpu.isolated && used.containers.as_ref().is_none_or(|may| may.contains(&cpu.id))
        };
        let usable: Vec<&Cpu> = cpus.iter().filter(may).collect();
        let usable: Vec<&Cpu> = match usable.len() {
            1 => usable,
            _ => usable.into_iter().filter(|cpu| cpu.id != 0).collect(),
        };
        let on = |node: u32| usable.iter().copied().filter(move |cpu| cpu.node == NumaNode(node));
        let Ok(chose) = choose(&CoreRequest::Count(count), &cpus, &used) else {
            prop_assert!((0..4).all(|node| on(node).count() < count as usize));
            return Ok(());
        };
        let ids = chose.cores.as_slice();
        prop_assert_eq!((ids.len(), chose.memory_nodes.len()), (count as usize, 1));
        let node = chose.memory_nodes[0].0;
        prop_assert!(ids.iter().all(|id| on(node).any(|cpu| cpu.id == *id)), "{:?}", ids);
        let (taken, left): (Vec<&Cpu>, Vec<&Cpu>) = on(node).partition(|cpu| ids.contains(&cpu.id));
        let held = |cpu: &Cpu| is_held(cpu, &cpus, &used);
        let shares = taken.iter().any(|cpu| held(cpu));
        prop_assert_eq!(shares, !chose.findings.is_empty());
        if shares {
            prop_assert!(left.iter().all(|cpu| held(cpu)), "{ids:?} and not {left:?}");
            let spared = |node| on(node).filter(|cpu| !held(cpu)).count() >= count as usize;
            prop_assert!(!(0..4).any(spared), "another node has as many that are free");
        } else {
            let cores: BTreeSet<_> = taken.iter().map(|cpu| cpu.core).collect();
            let other = left.iter().any(|cpu| !held(cpu) && !cores.contains(&cpu.core));
            prop_assert!(cores.len() == taken.len() || !other, "{ids:?} and not {left:?}");
        }
    }
}
