//! Ledger of hugepages: for each pool, the pages that the agent grew, and those of them that something else took away.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::code::Code;
use super::fault::Finding;
use super::pools::{PagesByPool, Pool, PoolKey, PoolPages, PoolsSeen, pages_list, pages_map};
use super::reservation::{Reservation, pages_of};
use super::units::PageSize;

/// Pages of each pool that exist because the agent grew them, in this boot.
///
/// Pages vanish at a reboot, so the ledger is worthless under another boot id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// `/proc/sys/kernel/random/boot_id` of the boot that the ledger describes.
    pub boot_id: String,
    /// Set if the reservations were restored in this boot.
    pub restored: bool,
    /// Set if the mounts were made again in this boot.
    #[serde(default)]
    pub mounted: bool,
    /// Persistent pages that the agent grew and has not given back.
    pub grown: Vec<PoolPages>,
    /// All persistent pages of the pools in `grown` and `whole`, when last observed.
    #[serde(default)]
    pub persistent: Vec<PoolPages>,
    /// Pools from which something else took pages of the agent. An entry is removed when the agent has as many pages
    /// again, or gives up the lost ones.
    #[serde(default)]
    pub whole: Vec<WholePool>,
    /// Pages in `grown` that were grown for reservations and the reserve for arrivals. They are given back once no
    /// reservation is left for them, and are not restored after a reboot.
    #[serde(default)]
    pub temporary: Vec<PoolPages>,
    /// Reservations of guests; void after a reboot, which ends the guests.
    #[serde(default)]
    pub reservations: Vec<Reservation>,
    /// Growth that was begun and whose outcome is not recorded yet.
    pub intent: Option<Intent>,
}

/// State of a pool before something else took pages of the agent from it, in persistent pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WholePool {
    #[serde(flatten)]
    pub key: PoolKey,
    /// Pages that the agent had grown.
    pub grown: u64,
    /// All pages of the pool.
    pub persistent: u64,
}

/// Growth that is about to be written to the kernel, in persistent pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    pub pool: PoolKey,
    /// Pages before the growth.
    pub from: u64,
    /// Desired pages after the growth.
    pub to: u64,
    /// Set if the pages are temporary.
    #[serde(default)]
    pub temporary: bool,
}

impl Ledger {
    /// Empty ledger for the boot `boot_id`.
    pub fn new(boot_id: impl Into<String>) -> Ledger {
        Ledger { boot_id: boot_id.into(), ..Ledger::default() }
    }

    /// Pages that the agent grew in the pool `key`.
    pub fn grown(&self, key: PoolKey) -> u64 {
        self.grown.iter().find(|p| p.key() == key).map_or(0, |p| p.pages)
    }

    /// Pages in `grown` of the pool `key` that are temporary.
    pub fn temporary(&self, key: PoolKey) -> u64 {
        self.temporary.iter().find(|p| p.key() == key).map_or(0, |p| p.pages)
    }

    /// Pages that the agent grew in the pool `key` and that are not temporary.
    pub fn lasting(&self, key: PoolKey) -> u64 {
        self.grown(key).saturating_sub(self.temporary(key))
    }

    /// Sets the temporary pages of the pool `key`.
    pub fn set_temporary(&mut self, key: PoolKey, pages: u64) {
        let mut all = pages_map(&self.temporary);
        all.insert(key, pages);
        self.temporary = pages_list(&all);
    }

    /// Pages that are kept free for open reservations, by pool.
    pub fn promised(&self) -> PagesByPool {
        pages_of(self.reservations.iter().filter(|it| it.is_open()))
    }

    /// Pages in `grown`, by pool.
    pub fn by_pool(&self) -> PagesByPool {
        pages_map(&self.grown)
    }

    /// Pages that the agent keeps, by pool: the grown ones, and those that something else took and that were not given
    /// up.
    pub fn kept(&self) -> PagesByPool {
        let mut kept = self.by_pool();
        for whole in &self.whole {
            let pages = kept.entry(whole.key).or_default();
            *pages = whole.grown.max(*pages);
        }
        kept
    }

    /// Pages that something else took away and that are still missing, by pool. Pages that others have put back count
    /// as theirs, and are not missing.
    pub fn lost(&self) -> PagesByPool {
        let last = pages_map(&self.persistent);
        let lost = |whole: &WholePool| {
            let of_all =
                last.get(&whole.key).map_or(0, |last| whole.persistent.saturating_sub(*last));
            (whole.key, of_all.min(whole.grown.saturating_sub(self.grown(whole.key))))
        };
        self.whole.iter().map(lost).filter(|(_, pages)| *pages > 0).collect()
    }

    /// Sets the grown pages of the pool `key` to `pages`, and its observed total to `persistent`. Zero `pages` removes
    /// the pool from `grown`.
    pub fn set_grown(&mut self, key: PoolKey, pages: u64, persistent: u64) {
        let mut all = self.by_pool();
        let mut seen = pages_map(&self.persistent);
        all.insert(key, pages);
        seen.insert(key, persistent);
        self.grown = pages_list(&all);
        self.set_temporary(key, self.temporary(key).min(pages));
        let kept = self.kept();
        seen.retain(|key, _| kept.get(key).is_some_and(|pages| *pages > 0));
        // A total of zero is kept, for it is an observation; `pages_list` would drop it.
        self.persistent = seen.iter().map(|(key, pages)| key.pages(*pages)).collect();
    }

    /// Page sizes of the pools in which the agent keeps pages or has begun a growth.
    pub fn sizes(&self) -> BTreeSet<PageSize> {
        let kept = self.kept().into_keys().map(|key| key.size);
        kept.chain(self.intent.map(|intent| intent.pool.size)).collect()
    }

    /// Corrects the ledger by the observed pools `seen`, after a time in which the agent did not watch them.
    ///
    /// Only pages that are surely the agent's are ever given back. So a growth that was begun counts only if the pool
    /// has exactly the intended number of pages. If something lowered a pool, the missing pages are taken to be the
    /// agent's. Returns `true` if the ledger changed.
    pub fn reconcile(&mut self, seen: &PoolsSeen) -> bool {
        let before = self.clone();
        let intent = self.intent.take();
        let last = pages_map(&self.persistent);
        let lost = self.lost();
        for key in self.kept().into_keys() {
            let (grown, there) = (self.grown(key), seen.pool(key).map_or(0, Pool::persistent));
            let last = last.get(&key).copied().unwrap_or(there);
            let left = grown.saturating_sub(last.saturating_sub(there)).min(there);
            if left < grown {
                let lacks = (grown - left).saturating_add(lost.get(&key).copied().unwrap_or(0));
                self.note_loss(
                    WholePool { key, grown, persistent: last },
                    there.saturating_add(lacks),
                );
            }
            self.set_grown(key, left, there);
        }
        if let Some(intent) = intent
            && let Some(pool) = seen.pool(intent.pool)
            && pool.persistent() == intent.to
        {
            let gained = intent.to.saturating_sub(intent.from);
            self.set_grown(intent.pool, self.grown(intent.pool) + gained, pool.persistent());
            if intent.temporary {
                self.set_temporary(intent.pool, self.temporary(intent.pool) + gained);
            }
        }
        self.keep_at_most(&self.kept());
        *self != before
    }

    /// Records `before`, the state of a pool before a loss. `least` is the total of pages at which the pool would lack
    /// none.
    fn note_loss(&mut self, before: WholePool, least: u64) {
        match self.whole.iter_mut().find(|whole| whole.key == before.key) {
            Some(whole) => {
                whole.grown = whole.grown.max(before.grown);
                whole.persistent = whole.persistent.max(least);
            }
            None => {
                let persistent = before.persistent.max(least);
                self.whole.push(WholePool { persistent, ..before });
            }
        }
    }

    /// Gives up lost pages until the agent keeps at most `most` pages in each pool. Returns `true` if there were any.
    pub fn keep_at_most(&mut self, most: &PagesByPool) -> bool {
        let before = self.whole.clone();
        let grown = self.by_pool();
        let pages = |of: &PagesByPool, key| of.get(&key).copied().unwrap_or(0);
        for whole in &mut self.whole {
            let less = whole.grown.saturating_sub(pages(most, whole.key));
            whole.grown -= less;
            // Without the pages that are given up, the pool's total would have been lower by as many.
            whole.persistent = whole.persistent.saturating_sub(less);
        }
        self.whole.retain(|whole| whole.grown > pages(&grown, whole.key));
        self.whole != before
    }

    /// Finding of lost pages; `None` if none are lost.
    pub fn finding(&self) -> Option<Finding> {
        let all = self.lost();
        let lost = all.iter().map(|(key, pages)| format!("{pages} of {key}"));
        let lost = lost.collect::<Vec<_>>().join(", ");
        let text = format!(
            "something else took away hugepages that the agent keeps ({lost}): virtual machines and targets may find too few. \
             `vhost-agent pools restore` takes them again, `vhost-agent reclaim` gives them up with all that nobody uses"
        );
        (!all.is_empty()).then(|| Finding::new(Code::PagesLost, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::NumaNode;

    const KEY: PoolKey = PoolKey { size: PageSize::MIB_2, node: NumaNode(0) };

    fn seen(total: u64, surplus: u64) -> PoolsSeen {
        PoolsSeen {
            pools: vec![Pool { key: KEY, total, free: 0, surplus }],
            ..PoolsSeen::default()
        }
    }

    #[test]
    fn a_growth_cut_off_by_a_crash_is_claimed_only_when_it_is_there_to_the_page() {
        for (total, claimed) in [(110, 110 - 100), (109, 0), (100, 0), (120, 0)] {
            let mut ledger = Ledger::new("b");
            ledger.intent = Some(Intent { pool: KEY, from: 100, to: 110, temporary: false });
            assert!(ledger.reconcile(&seen(total, 0)));
            assert_eq!(ledger.grown(KEY), claimed, "total {total}");
            assert_eq!(ledger.intent, None);
        }
    }

    #[test]
    fn when_somebody_lowers_a_pool_the_agents_pages_are_the_ones_that_went() {
        let mut ledger = Ledger::new("b");
        ledger.set_grown(KEY, 50, 200);
        assert!(ledger.reconcile(&seen(190, 10)));
        assert_eq!(ledger.grown(KEY), 30, "20 persistent pages fewer");
        assert!(!ledger.reconcile(&seen(190, 10)), "nothing more to reconcile");
        ledger.reconcile(&seen(900, 0));
        assert_eq!(ledger.grown(KEY), 30, "what others add is theirs");
        ledger.reconcile(&seen(880, 0));
        assert_eq!(ledger.grown(KEY), 10);
        ledger.reconcile(&seen(0, 0));
        assert!(ledger.grown.is_empty());
    }

    fn lost(ledger: &Ledger) -> u64 {
        ledger.lost().values().sum()
    }

    #[test]
    fn lost_pages_are_reported_until_they_are_grown_again() {
        let mut ledger = Ledger::new("b");
        ledger.set_grown(KEY, 50, 200);
        assert_eq!(ledger.finding(), None);
        ledger.reconcile(&seen(170, 0));
        ledger.reconcile(&seen(170, 0));
        assert_eq!((ledger.grown(KEY), lost(&ledger)), (20, 30), "once");
        let finding = ledger.finding().unwrap();
        assert!(
            finding.code == Code::PagesLost && finding.text.contains("(30 of node0/2M)"),
            "{}",
            finding.text
        );
        ledger.reconcile(&seen(0, 0));
        assert_eq!((ledger.grown(KEY), lost(&ledger)), (0, 50), "and no more than it had");
        ledger.set_grown(KEY, 40, 40);
        assert_eq!(lost(&ledger), 10);
        ledger.set_grown(KEY, 50, 50);
        assert_eq!((lost(&ledger), ledger.finding()), (0, None));
        ledger.reconcile(&seen(50, 0));
        assert!(ledger.whole.is_empty());
    }

    #[test]
    fn lost_pages_stay_lost_when_the_growth_that_made_up_for_them_is_undone() {
        let mut ledger = Ledger::new("b");
        ledger.set_grown(KEY, 50, 200);
        ledger.reconcile(&seen(170, 0));
        ledger.set_grown(KEY, 90, 240);
        assert_eq!(lost(&ledger), 0);
        ledger.set_grown(KEY, 20, 170);
        assert_eq!(lost(&ledger), 30);
        ledger.set_grown(KEY, 35, 185);
        assert_eq!(lost(&ledger), 15, "all but those in use are given back");
    }

    #[test]
    fn pages_that_others_put_back_are_neither_claimed_nor_missing() {
        let mut ledger = Ledger::new("b");
        ledger.set_grown(KEY, 50, 200);
        ledger.reconcile(&seen(0, 0));
        ledger.reconcile(&seen(180, 0));
        assert_eq!((ledger.grown(KEY), lost(&ledger)), (0, 20));
        ledger.reconcile(&seen(900, 0));
        assert_eq!((ledger.grown(KEY), lost(&ledger)), (0, 0));
        ledger.set_grown(KEY, 10, 910);
        ledger.reconcile(&seen(905, 0));
        assert_eq!((ledger.grown(KEY), lost(&ledger)), (5, 5), "of the new ones");
        ledger.reconcile(&seen(0, 0));
        assert_eq!((ledger.grown(KEY), lost(&ledger)), (0, 50), "no more than it ever had");
    }
}
