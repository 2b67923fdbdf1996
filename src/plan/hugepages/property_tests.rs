//! The pool planner against a small kernel that is played: it gives pages as long as a node has some.

use proptest::prelude::*;

use super::tests::{MIB, adds, bound, key, machine, policy, trial, want};
use super::*;
use crate::model::pools::Pool;
use crate::model::units::PageSize;

/// A machine as the property tests make it up.
#[derive(Debug, Clone)]
struct Played {
    seen: PoolsSeen,
    /// Pages that each node can still give, plainly and after compaction.
    plain: Vec<u64>,
    compacted: Vec<u64>,
}

impl Played {
    /// Does as the kernel does: gives what it has, without a word.
    fn apply(&mut self, step: &Step, trials: &mut Trials, taken: &mut PagesByPool) {
        match step {
            Step::Compact(node) => {
                let node = node.0 as usize;
                self.plain[node] += std::mem::take(&mut self.compacted[node]);
            }
            Step::Grow(resize) => {
                let node = resize.pool.node.0 as usize;
                let pool = &mut self.seen.pools[node];
                assert_eq!(resize.from, pool.total, "planned on what is there");
                assert!(resize.to > resize.from, "a growth grows");
                let wanted = resize.to - resize.from;
                let got = wanted.min(self.plain[node]);
                self.plain[node] -= got;
                pool.total += got;
                pool.free += got;
                self.seen.memory.available_kib -= PageSize::MIB_2.kib_of(got);
                *taken.entry(resize.pool).or_default() += got;
                if got < wanted {
                    trials
                        .entry(resize.pool)
                        .and_modify(|trial| trial.effort = next_effort(Some(trial.effort)))
                        .or_insert(trial(Effort::Plain, wanted, got));
                }
            }
            other => panic!("{other:?} is not for growing"),
        }
    }
}

fn played() -> impl Strategy<Value = Played> {
    let node = (0u64..2000, 0u64..2000, 0u64..300, 0u64..3000, 0u64..500);
    let nodes = prop::collection::vec(node, 1..5);
    (nodes, 0u64..3000, 4_000u64..40_000).prop_map(|(nodes, promised, available_mib)| {
        let pools: Vec<(u64, u64, u64)> = nodes
            .iter()
            .map(|(used, free, surplus, ..)| (used + free, *free, (*surplus).min(*used)))
            .collect();
        let mut seen = machine(&pools);
        let free: u64 = pools.iter().map(|(_, free, _)| free).sum();
        seen.reserved.insert(PageSize::MIB_2, promised.min(free));
        seen.memory.available_kib = available_mib * MIB;
        Played {
            seen,
            plain: nodes.iter().map(|(.., plain, _)| *plain).collect(),
            compacted: nodes.iter().map(|(.., compacted)| *compacted).collect(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn growing_ends_keeps_the_floor_and_leaves_nothing_to_plan(
        mut played in played(),
        pages in 0u64..6000,
        nodes in prop::option::of(prop::collection::btree_set(0u32..4, 1..4)),
        move_shortfall: bool,
        keep: bool,
    ) {
        let nodes: Option<Vec<u32>> = nodes.map(|set| set.into_iter().collect());
        let mut wish = nodes.as_ref().map_or_else(|| want(pages), |nodes| bound(pages, nodes));
        wish.move_shortfall = move_shortfall;
        let goal = PoolGoal::Free(vec![wish.clone()]);
        let on_shortfall = if keep { OnShortfall::TakeTheRest } else { OnShortfall::Stop };
        let before = played.seen.clone();
        let (mut trials, mut taken) = (Trials::new(), PagesByPool::new());
        let mut rounds = 0;
        let end = loop {
            rounds += 1;
            prop_assert!(rounds < 32, "it comes to an end");
            let steps = match grow(&goal, &played.seen, &taken, &policy(), &trials, on_shortfall) {
                Decision::Steps(steps) => steps,
                end => break end,
            };
            if rounds == 1 {
                let named = |pool: &&Pool| nodes.as_ref().is_none_or(|n| n.contains(&pool.key.node.0));
                let free = |pools: &[&Pool]| pools.iter().map(|pool| pool.free).sum::<u64>();
                let (asked, others): (Vec<&Pool>, Vec<&Pool>) = before.pools.iter().partition(named);
                let promised = before.reserved(PageSize::MIB_2).saturating_sub(free(&others));
                let missing = pages + promised - free(&asked);
                let planned = adds(&Decision::Steps(steps.clone())).values().sum::<u64>();
                prop_assert!(planned == missing || keep && planned < missing);
            }
            for step in &steps {
                played.apply(step, &mut trials, &mut taken);
            }
        };
        // The floor holds, whatever happened.
        let floor = floor_kib(&policy(), before.memory.total_kib);
        prop_assert!(taken.is_empty() || played.seen.memory.available_kib >= floor);
        // Nothing was taken away, and only the named nodes were grown.
        for (old, new) in before.pools.iter().zip(&played.seen.pools) {
            prop_assert!(new.total >= old.total && new.free - old.free == new.total - old.total);
            let named = nodes.as_ref().is_none_or(|nodes| nodes.contains(&old.key.node.0));
            prop_assert!(named || move_shortfall || new.total == old.total);
        }
        if end == Decision::Holds {
            let again = grow(&goal, &played.seen, &taken, &policy(), &Trials::new(), on_shortfall);
            prop_assert_eq!(again, Decision::Holds);
            let free: u64 = played.seen.pools.iter().map(|pool| pool.free).sum();
            prop_assert!(free - before.reserved(PageSize::MIB_2) >= pages);
            let named = |pool: &&Pool| nodes.as_ref().is_none_or(|n| n.contains(&pool.key.node.0));
            let there: u64 = played.seen.pools.iter().filter(named).map(|pool| pool.free).sum();
            prop_assert!(there >= pages || move_shortfall);
        }
    }

    #[test]
    fn giving_back_never_takes_what_is_used_promised_or_someone_elses(
        played in played(),
        limit in prop::collection::vec(0u64..4000, 4),
    ) {
        let limit: PagesByPool = (0..).zip(&limit).map(|(node, pages)| (key(node), *pages)).collect();
        let mut given = 0;
        for step in give_back(&limit, &played.seen) {
            let Step::Shrink(resize) = step else { panic!("{step:?}") };
            let pool = played.seen.pool(resize.pool).unwrap();
            let give = resize.from - resize.to;
            prop_assert_eq!(resize.from, pool.total);
            prop_assert!(give > 0 && give <= pool.free, "in use");
            prop_assert!(give <= limit[&resize.pool], "not the agent's");
            given += give;
        }
        let free: u64 = played.seen.pools.iter().map(|pool| pool.free).sum();
        prop_assert!(given <= free - played.seen.reserved(PageSize::MIB_2), "promised");
    }
}
