//! Pools, processors and cpusets as a node's sysfs tells them, and what is planned on that.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use vhost_agent::config::Settings;
use vhost_agent::host::facts::Meminfo;
use vhost_agent::host::parent_group::ParentGroup;
use vhost_agent::host::pools::PoolFiles;
use vhost_agent::host::{Root, cpus, cpuset};
use vhost_agent::model::cpu::{Cpu, CpuUse};
use vhost_agent::model::ledger::Ledger;
use vhost_agent::model::pools::{Placement, PoolGoal, PoolWant, PoolsSeen};
use vhost_agent::model::target::CoreRequest;
use vhost_agent::model::units::PageSize;
use vhost_agent::plan::{cores, hugepages};
use vhost_agent_fuzz::Tree;

fuzz_target!(|input: &[u8]| {
    let tree = Tree::of(input);
    let root = Root::new(tree.path());
    processors(&root);
    if let Some(seen) = pools(&root) {
        grow(&seen);
    }
});

fn processors(root: &Root) {
    let containers = cpuset::of_containers(root, &ParentGroup::Default);
    assert!(containers.as_ref().is_none_or(|cpus| !cpus.is_empty()));
    let Ok(cpus) = cpus::cpus(root) else { return };
    assert!(cpus.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert!(cpus.iter().all(|cpu| cpu.siblings.is_empty() || cpu.siblings.contains(&cpu.id)));
    let used = CpuUse { containers: containers.clone(), ..CpuUse::default() };
    for count in [1, 2, u32::MAX] {
        let Ok(chosen) = cores::choose(&CoreRequest::Count(count), &cpus, &used) else { continue };
        assert_eq!(chosen.cores.as_slice().len(), count as usize);
        for core in chosen.cores.as_slice() {
            let is_known = |cpu: &Cpu| !cpu.isolated && !cpu.siblings.is_empty();
            assert!(cpus.iter().any(|cpu| cpu.id == *core && is_known(cpu)));
            assert!(containers.as_ref().is_none_or(|cpus| cpus.contains(core)));
        }
    }
}

fn pools(root: &Root) -> Option<PoolsSeen> {
    let memory = Meminfo::new(root).read();
    let files = PoolFiles::find(root).ok()?;
    let sizes: BTreeSet<PageSize> = files.sizes();
    let pools = files.read_all().ok()?;
    assert!(pools.iter().all(|pool| sizes.contains(&pool.key.size)));
    let reserved = files.reserved(&sizes).ok()?;
    let (cpu_nodes, memory_nodes) = (files.cpu_nodes().ok()?, files.memory_nodes());
    for (node, distances) in &memory_nodes.distances {
        let beside = memory_nodes.beside(*node);
        assert!(!beside.is_empty() && beside.iter().all(|node| distances.contains_key(node)));
    }
    Some(PoolsSeen { pools, reserved, cpu_nodes, memory_nodes, memory: memory.ok()? })
}

fn grow(seen: &PoolsSeen) {
    let policy = Settings::default().pools;
    let mut ledger = Ledger::new("boot");
    for pool in &seen.pools {
        ledger.set_grown(pool.key, pool.total, pool.persistent());
    }
    ledger.reconcile(seen);
    let grown = ledger.by_pool();
    for (size, pages) in
        [(PageSize::MIB_2, 1024), (PageSize::GIB_1, 1), (PageSize::MIB_2, u64::MAX)]
    {
        let want = PoolWant { size, pages, placement: Placement::Spread, move_shortfall: true };
        for goal in [PoolGoal::Free(vec![want]), PoolGoal::Grown(grown.clone())] {
            let take = hugepages::OnShortfall::TakeTheRest;
            let _ = hugepages::grow(&goal, seen, &grown, &policy, &Default::default(), take);
        }
    }
    let (mut limit, mut missing) = (grown.clone(), ledger.lost());
    hugepages::keep(&mut limit, &mut missing, 256, seen);
    let _ = hugepages::give_back(&limit, seen);
}
