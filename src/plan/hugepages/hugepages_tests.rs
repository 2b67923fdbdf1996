//! Every branch of the pool planner, on machines made by hand.

use super::*;
use crate::model::numa::MemoryNodes;
use crate::model::pools::{NodeMemory, Placement, Pool};
use crate::model::units::{NumaNode, PageSize};

pub(super) const MIB: u64 = 1024;

pub(super) fn policy() -> PoolPolicy {
    PoolPolicy { floor_mib: 1024, floor_percent: 5, ..PoolPolicy::default() }
}

pub(super) fn key(node: u32) -> PoolKey {
    PoolKey { size: PageSize::MIB_2, node: NumaNode(node) }
}

/// Nodes with (total, free, surplus) 2 MiB pages each, and 64 GiB of memory, all available.
pub(super) fn machine(pools: &[(u64, u64, u64)]) -> PoolsSeen {
    let pools: Vec<Pool> = (0..)
        .zip(pools)
        .map(|(node, (total, free, surplus))| Pool {
            key: key(node),
            total: *total,
            free: *free,
            surplus: *surplus,
        })
        .collect();
    PoolsSeen {
        cpu_nodes: pools.iter().map(|pool| pool.key.node).collect(),
        pools,
        reserved: BTreeMap::new(),
        memory_nodes: MemoryNodes::default(),
        memory: NodeMemory { total_kib: 64 * 1024 * MIB, available_kib: 64 * 1024 * MIB },
    }
}

pub(super) fn want(pages: u64) -> PoolWant {
    PoolWant { size: PageSize::MIB_2, pages, placement: Placement::Spread, move_shortfall: false }
}

pub(super) fn bound(pages: u64, nodes: &[u32]) -> PoolWant {
    let nodes = nodes.iter().map(|node| NumaNode(*node)).collect();
    PoolWant { placement: Placement::Bound(nodes), ..want(pages) }
}

fn decide(wants: &[PoolWant], seen: &PoolsSeen, trials: &Trials) -> Decision {
    let goal = PoolGoal::Free(wants.to_vec());
    grow(&goal, seen, &PagesByPool::new(), &policy(), trials, OnShortfall::Stop)
}

/// What a decision adds to each pool.
pub(super) fn adds(decision: &Decision) -> PagesByPool {
    let Decision::Steps(steps) = decision else { panic!("{decision:?}") };
    let grows = steps.iter().filter_map(|step| match step {
        Step::Grow(resize) => Some((resize.pool, resize.to - resize.from)),
        _ => None,
    });
    grows.collect()
}

pub(super) fn pages(list: &[(u32, u64)]) -> PagesByPool {
    list.iter().map(|(node, pages)| (key(*node), *pages)).collect()
}

#[test]
fn pages_are_wanted_free_and_what_is_promised_is_not_free() {
    let mut seen = machine(&[(3000, 1024, 0)]);
    assert_eq!(decide(&[want(1024)], &seen, &Trials::new()), Decision::Holds);
    seen.reserved.insert(PageSize::MIB_2, 24);
    assert_eq!(adds(&decide(&[want(1024)], &seen, &Trials::new())), pages(&[(0, 24)]));
}

#[test]
fn pages_promised_on_other_nodes_are_not_grown_again_on_the_named_one() {
    let mut seen = machine(&[(500, 500, 0), (0, 0, 0)]);
    seen.reserved.insert(PageSize::MIB_2, 500);
    assert_eq!(adds(&decide(&[bound(100, &[1])], &seen, &Trials::new())), pages(&[(1, 100)]));
    let seen = PoolsSeen {
        reserved: BTreeMap::from([(PageSize::MIB_2, 30)]),
        ..machine(&[(40, 40, 0), (20, 20, 0)])
    };
    assert_eq!(decide(&[bound(30, &[0])], &seen, &Trials::new()), Decision::Holds);
    assert_eq!(adds(&decide(&[bound(40, &[0])], &seen, &Trials::new())), pages(&[(0, 10)]));
}

#[test]
fn missing_pages_are_spread_so_that_nodes_come_out_even() {
    let cases = [
        (vec![(0, 0, 0), (0, 0, 0)], 1024, pages(&[(0, 512), (1, 512)])),
        (vec![(0, 0, 0), (0, 0, 0)], 1025, pages(&[(0, 513), (1, 512)])),
        (vec![(300, 300, 0), (0, 0, 0)], 1000, pages(&[(0, 200), (1, 500)])),
        (vec![(900, 900, 0), (0, 0, 0)], 1000, pages(&[(1, 100)])),
        (vec![(900, 900, 0), (0, 0, 0), (50, 50, 0)], 1200, pages(&[(1, 150), (2, 100)])),
        (vec![(900, 10, 0), (0, 0, 0)], 30, pages(&[(0, 5), (1, 15)])),
    ];
    for (pools, wanted, expected) in cases {
        let seen = machine(&pools);
        assert_eq!(adds(&decide(&[want(wanted)], &seen, &Trials::new())), expected, "{pools:?}");
    }
}

#[test]
fn a_bound_wish_touches_its_nodes_only() {
    let seen = machine(&[(5000, 5000, 0), (0, 0, 0), (0, 0, 0)]);
    let decision = decide(&[bound(100, &[1])], &seen, &Trials::new());
    assert_eq!(adds(&decision), pages(&[(1, 100)]));
    let decision = decide(&[bound(100, &[1, 2])], &seen, &Trials::new());
    assert_eq!(adds(&decision), pages(&[(1, 50), (2, 50)]));
    match decide(&[bound(100, &[7])], &seen, &Trials::new()) {
        Decision::Refused(fault) => {
            assert_eq!(fault.code, Code::NoSuchNode);
            assert!(fault.text.contains("node7") && fault.text.contains("node0, node1, node2"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pages_are_not_spread_over_nodes_without_processors() {
    let mut seen = machine(&[(0, 0, 0), (0, 0, 0)]);
    seen.cpu_nodes = vec![NumaNode(0)];
    assert_eq!(adds(&decide(&[want(10)], &seen, &Trials::new())), pages(&[(0, 10)]));
}

#[test]
fn nodes_without_memory_get_no_pages_and_theirs_lie_on_the_nearest_ones() {
    // Since Linux 6.1 each node has pools; nodes 0 and 3 have no memory, node 4 has no CPUs.
    let mut seen = machine(&[(0, 0, 0); 5]);
    seen.cpu_nodes.pop();
    let to = |list: [(u32, u32); 3]| BTreeMap::from(list.map(|(node, far)| (NumaNode(node), far)));
    let distances = BTreeMap::from([
        (NumaNode(0), to([(1, 12), (2, 12), (4, 32)])),
        (NumaNode(3), to([(1, 32), (2, 12), (4, 32)])),
    ]);
    seen.memory_nodes = MemoryNodes { distances };
    let added = |seen: &PoolsSeen, want| adds(&decide(&[want], seen, &Trials::new()));
    assert_eq!(added(&seen, want(100)), pages(&[(1, 50), (2, 50)]));
    assert_eq!(added(&seen, bound(100, &[0])), pages(&[(1, 50), (2, 50)]));
    assert_eq!(added(&seen, bound(100, &[3])), pages(&[(2, 100)]));
    assert_eq!(added(&seen, bound(100, &[3, 4])), pages(&[(2, 50), (4, 50)]));
    // Another node makes up for a shortfall, but none of these.
    let trials = Trials::from([(key(2), trial(Effort::Compacted, 100, 0))]);
    let moving = PoolWant { move_shortfall: true, ..bound(100, &[3]) };
    assert_eq!(adds(&decide(&[moving], &seen, &trials)), pages(&[(1, 50), (4, 50)]));
    // Older kernels have no pools of such nodes, and an unknown node is refused there too.
    seen.pools.retain(|pool| [1, 2, 4].contains(&pool.key.node.0));
    assert_eq!(added(&seen, bound(100, &[0])), pages(&[(1, 50), (2, 50)]));
    match decide(&[bound(100, &[7])], &seen, &Trials::new()) {
        Decision::Refused(fault) => assert_eq!(fault.code, Code::NoSuchNode),
        other => panic!("{other:?}"),
    }
    // All CPUs are on nodes without memory.
    seen.cpu_nodes = vec![NumaNode(3)];
    assert_eq!(added(&seen, want(100)), pages(&[(2, 100)]));
}

#[test]
fn a_growth_below_the_floor_is_refused_with_the_numbers() {
    let mut seen = machine(&[(0, 0, 0)]);
    seen.memory.available_kib = 5000 * MIB;
    // 5 % of 64 GiB are 3276 MiB, more than the 1024 MiB.
    assert_eq!(adds(&decide(&[want(861)], &seen, &Trials::new())), pages(&[(0, 861)]));
    match decide(&[want(862)], &seen, &Trials::new()) {
        Decision::Refused(fault) => {
            assert_eq!(fault.code, Code::MemoryFloor);
            for number in ["862 pages", "1724 MiB", "3276 MiB of 5000 MiB", "floor of 3277 MiB"] {
                assert!(fault.text.contains(number), "{} lacks {number}", fault.text);
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_size_without_a_pool_and_an_absurd_count_are_refused() {
    let seen = machine(&[(0, 0, 0)]);
    let refused = |want| match decide(&[want], &seen, &Trials::new()) {
        Decision::Refused(fault) => fault,
        other => panic!("{other:?}"),
    };
    let fault = refused(PoolWant { size: PageSize::GIB_1, ..want(1) });
    assert_eq!(fault.code, Code::PageSizeUnsupported);
    assert!(fault.text.contains("1G") && fault.text.contains("it has: 2M"), "{}", fault.text);
    for count in [u64::MAX, 1 << 40, 32769] {
        assert_eq!(refused(want(count)).code, Code::TooManyPages, "{count}");
    }
}

pub(super) fn trial(effort: Effort, wanted: u64, got: u64) -> GrowthTrial {
    GrowthTrial { effort, wanted, got }
}

#[test]
fn more_effort_is_made_step_by_step_and_the_cache_is_dropped_only_when_allowed() {
    let seen = machine(&[(100, 100, 0)]);
    let again = |effort, policy: &PoolPolicy| {
        let trials = Trials::from([(key(0), trial(effort, 512, 100))]);
        let goal = PoolGoal::Free(vec![want(512)]);
        grow(&goal, &seen, &PagesByPool::new(), policy, &trials, OnShortfall::Stop)
    };
    let grow_rest = Step::Grow(ResizePool { pool: key(0), from: 100, to: 512 });
    assert_eq!(
        again(Effort::Plain, &policy()),
        Decision::Steps(vec![Step::Compact(NumaNode(0)), grow_rest.clone()])
    );
    match again(Effort::Compacted, &policy()) {
        Decision::Short(fault) => {
            assert_eq!(fault.code, Code::PagesShort);
            assert!(
                fault.text.contains("node0 gave 100 of 512 wanted pages of 2M"),
                "{}",
                fault.text
            );
        }
        other => panic!("{other:?}"),
    }
    let dropping = PoolPolicy { drop_page_cache: true, ..policy() };
    assert_eq!(
        again(Effort::Compacted, &dropping),
        Decision::Steps(vec![Step::DropPageCache, grow_rest])
    );
    assert!(matches!(again(Effort::CacheDropped, &dropping), Decision::Short(_)));
}

#[test]
fn a_shortfall_moves_to_another_node_only_when_asked_to() {
    let seen = machine(&[(100, 100, 0), (0, 0, 0)]);
    let trials = Trials::from([(key(0), trial(Effort::Compacted, 512, 100))]);
    assert!(matches!(decide(&[bound(512, &[0])], &seen, &trials), Decision::Short(_)));
    assert!(matches!(decide(&[want(1024)], &seen, &trials), Decision::Short(_)));
    let moving = PoolWant { move_shortfall: true, ..bound(512, &[0]) };
    assert_eq!(adds(&decide(std::slice::from_ref(&moving), &seen, &trials)), pages(&[(1, 412)]));
    // Before node 0 was tried, it is asked first.
    assert_eq!(
        adds(&decide(std::slice::from_ref(&moving), &seen, &Trials::new())),
        pages(&[(0, 412)])
    );
    // What an earlier call moved there holds, and node 0 is not asked again.
    let moved = machine(&[(100, 100, 0), (412, 412, 0)]);
    let goal = PoolGoal::Free(vec![moving]);
    let grown = pages(&[(0, 100), (1, 412)]);
    let decision = grow(&goal, &moved, &grown, &policy(), &Trials::new(), OnShortfall::Stop);
    assert_eq!(decision, Decision::Holds);
}

#[test]
fn a_restore_takes_what_is_missing_of_the_agents_pages_and_goes_on_past_a_short_node() {
    let seen = machine(&[(700, 0, 0), (0, 0, 0)]);
    let goal = PoolGoal::Grown(pages(&[(0, 512), (1, 640), (5, 10)]));
    let trials = Trials::from([(key(1), trial(Effort::Compacted, 640, 0))]);
    let grown = pages(&[(0, 12)]);
    let decision = grow(&goal, &seen, &grown, &policy(), &trials, OnShortfall::TakeTheRest);
    assert_eq!(adds(&decision), pages(&[(0, 500)]));
    let all = pages(&[(0, 512)]);
    let decision = grow(&goal, &seen, &all, &policy(), &trials, OnShortfall::TakeTheRest);
    assert!(matches!(decision, Decision::Short(_)), "{decision:?}");
}

#[test]
fn the_agents_pages_of_all_sizes_take_no_more_than_their_share() {
    let seen = machine(&[(100, 100, 0)]);
    let huge = PoolKey { size: PageSize::GIB_1, node: NumaNode(0) };
    // 75 % of 64 GiB are 48 GiB, of which it has 40, and of them 8 in large pages; those that others grew do not count.
    let grown: PagesByPool = [(key(0), 16_384), (huge, 8)].into();
    let policy = PoolPolicy { floor_mib: 0, floor_percent: 0, ..PoolPolicy::default() };
    let next = |goal: &PoolGoal, on_shortfall| {
        grow(goal, &seen, &grown, &policy, &Trials::new(), on_shortfall)
    };
    let free = |pages| PoolGoal::Free(vec![want(100 + pages)]);
    let most = 4095;
    assert_eq!(adds(&next(&free(most), OnShortfall::Stop)), pages(&[(0, most)]));
    match next(&free(most + 1), OnShortfall::Stop) {
        Decision::Refused(fault) => {
            assert_eq!(fault.code, Code::PagesLimit);
            for part in ["8192 MiB", "40960 MiB", "75 %", "65536 MiB", "pools.max_percent"] {
                assert!(fault.text.contains(part), "{fault}");
            }
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(adds(&next(&free(most + 9), OnShortfall::TakeTheRest)), pages(&[(0, most)]));
    // What a boot took away comes back.
    let restored = PoolGoal::Grown(pages(&[(0, 30_000)]));
    assert_eq!(adds(&next(&restored, OnShortfall::Stop)), pages(&[(0, 30_000 - 16_384)]));
}

#[test]
fn restore_takes_surplus_pages_first_and_no_more_than_it_lacks() {
    let mut seen = machine(&[(412, 0, 412), (300, 0, 300), (90, 0, 60)]);
    let goal = PoolGoal::Grown(pages(&[(0, 432), (1, 240), (2, 50)]));
    let grown = pages(&[(2, 10)]);
    let persistent = |seen: &PoolsSeen| {
        let decision =
            grow(&goal, seen, &grown, &policy(), &Trials::new(), OnShortfall::TakeTheRest);
        let Decision::Steps(steps) = decision else { panic!("{decision:?}") };
        let to = steps.iter().map(|step| match step {
            Step::Grow(ResizePool { pool, to, .. }) => (pool.node.0, *to),
            other => panic!("{other:?}"),
        });
        to.collect::<Vec<_>>()
    };
    assert_eq!(persistent(&seen), [(0, 432), (1, 240), (2, 70)]);
    // Those take no memory.
    seen.memory.available_kib = 0;
    assert_eq!(persistent(&seen), [(1, 240), (2, 70)]);
}

#[test]
fn what_may_come_out_short_is_taken_up_to_the_floor() {
    let mut seen = machine(&[(0, 0, 0), (0, 0, 0)]);
    seen.memory.available_kib = (3277 + 2 * 500) * MIB;
    let goal = PoolGoal::Grown(pages(&[(0, 400), (1, 400)]));
    let next = |seen: &PoolsSeen, grown: &PagesByPool| {
        grow(&goal, seen, grown, &policy(), &Trials::new(), OnShortfall::TakeTheRest)
    };
    assert_eq!(adds(&next(&seen, &PagesByPool::new())), pages(&[(0, 400), (1, 100)]));
    seen.memory.available_kib = 3277 * MIB;
    let rest = next(&seen, &pages(&[(0, 400), (1, 100)]));
    assert!(matches!(rest, Decision::Refused(fault) if fault.code == Code::MemoryFloor));
}

#[test]
fn the_largest_pages_are_taken_first_and_the_cache_is_dropped_once() {
    let mut seen = machine(&[(0, 0, 0), (0, 0, 0)]);
    let big = PoolKey { size: PageSize::GIB_1, node: NumaNode(0) };
    seen.pools.push(Pool { key: big, total: 0, free: 0, surplus: 0 });
    let dropping = PoolPolicy { drop_page_cache: true, ..policy() };
    let short = trial(Effort::Compacted, 10, 0);
    let trials = Trials::from([(key(0), short), (key(1), short)]);
    let goal = PoolGoal::Free(vec![want(20), PoolWant { size: PageSize::GIB_1, ..want(1) }]);
    let decision = grow(&goal, &seen, &PagesByPool::new(), &dropping, &trials, OnShortfall::Stop);
    let Decision::Steps(steps) = decision else { panic!("{decision:?}") };
    let names: Vec<_> = steps.iter().map(|step| (step.name(), step.subject())).collect();
    let expected = [
        ("dropPageCache", "page cache"),
        ("grow", "node0/1G"),
        ("grow", "node0/2M"),
        ("grow", "node1/2M"),
    ];
    assert_eq!(names, expected.map(|(name, subject)| (name, subject.to_string())));
}

#[test]
fn pages_are_given_back_only_when_they_are_free_not_promised_and_within_the_limit() {
    let mut seen = machine(&[(1000, 300, 0), (1000, 50, 0)]);
    let shrinks = |seen: &PoolsSeen, limit: &[(u32, u64)]| -> Vec<(u32, u64)> {
        let steps = give_back(&pages(limit), seen);
        let given = steps.iter().map(|step| match step {
            Step::Shrink(resize) => (resize.pool.node.0, resize.from - resize.to),
            other => panic!("{other:?}"),
        });
        given.collect()
    };
    assert_eq!(shrinks(&seen, &[(0, 200), (1, 200)]), [(0, 200), (1, 50)]);
    seen.reserved.insert(PageSize::MIB_2, 320);
    assert_eq!(shrinks(&seen, &[(0, 200), (1, 200)]), [(0, 30)]);
    seen.reserved.insert(PageSize::MIB_2, 9999);
    assert_eq!(shrinks(&seen, &[(0, 200), (1, 200)]), []);
}

#[test]
fn free_pages_of_others_count_as_kept_and_are_never_given_back() {
    let given = |others: u64, kept: u64| {
        let seen = machine(&[(others + 12, others + 12, 0)]);
        let mut limit = pages(&[(0, 12)]);
        keep(&mut limit, &mut PagesByPool::new(), kept, &seen);
        let steps = give_back(&limit, &seen);
        let given = steps.iter().map(|step| match step {
            Step::Shrink(resize) => resize.from - resize.to,
            other => panic!("{other:?}"),
        });
        given.sum::<u64>()
    };
    assert_eq!([given(0, 10), given(6, 10), given(1030, 10), given(1030, 1034)], [2, 8, 12, 8]);
}

#[test]
fn of_missing_pages_only_those_that_are_to_stay_free_are_kept() {
    let kept = |free: u64, kept: u64| {
        let mut missing = pages(&[(0, 30), (1, 30)]);
        keep(&mut PagesByPool::new(), &mut missing, kept, &machine(&[(90, free, 0), (9, 0, 0)]));
        missing.into_values().collect::<Vec<_>>()
    };
    assert_eq!(
        [kept(0, 0), kept(8, 50), kept(60, 50), kept(0, 99)],
        [[0, 0], [30, 12], [0, 0], [30, 30]]
    );
}
