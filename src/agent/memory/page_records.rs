//! Ledger of the pages that the agent grew in this boot, and reservations for the next boot to restore.
//!
//! The ledger is exact to the page, also after a crash: a growth is recorded before it begins. The
//! reservations are the desired state: a prepare raises them, only giving back lowers them, so that a
//! restore that falls short does not make the node forget what it should hold.

use std::collections::BTreeSet;

use tokio::sync::watch;

use super::super::apply::memory::Resized;
use crate::model::fault::Fault;
use crate::model::ledger::{Intent, Ledger};
use crate::model::pools::{
    PagesByPool, Pool, PoolKey, PoolPages, PoolsSeen, pages_list, pages_map,
};
use crate::model::reservation::{Reservation, ReservationName, add_pages};
use crate::model::units::PageSize;
use crate::store::{BootSlot, Durability, Store};

/// File of this boot's ledger.
const LEDGER: &str = "ledger.json";
/// File of the reservations, which are restored after a reboot.
pub(crate) const RESERVATIONS: &str = "reservations.json";

/// Published view of ledger and reservations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// Pages of the pools that the agent grew.
    pub ledger: Ledger,
    /// Set if the reservations on disk cover the ledger.
    pub remembered: bool,
    /// Desired pages, restored after a reboot: the reservations, and kept pages beyond the reservations.
    pub wanted: PagesByPool,
    /// Free pages that are to be kept for guests that arrive by migration, by pool.
    pub arrival: PagesByPool,
}

impl Published {
    /// Free pages that are kept for guests: for open reservations, and for arrivals.
    pub fn kept_free(&self) -> PagesByPool {
        let mut kept = self.ledger.promised();
        add_pages(&mut kept, &self.arrival);
        kept
    }
}

/// Ledger and reservations of one node.
#[derive(Debug)]
pub(super) struct PageRecords {
    store: Store,
    slot: BootSlot,
    ledger: Ledger,
    /// Reservations as on disk.
    reservations: PagesByPool,
    published: watch::Sender<Published>,
    /// Reserve for arrivals, by pool.
    arrival: PagesByPool,
    /// Set if the ledger's file is behind: it still has the intent of a growth that has ended, or the pools as they
    /// were before.
    behind: bool,
    /// Set if the pools changed since `changed_since` was called last.
    changed: bool,
}

impl PageRecords {
    /// Reads ledger and reservations; a ledger of another boot is void. Writes nothing.
    pub(super) fn open(
        store: Store,
        boot_id: String,
        arrival: PagesByPool,
    ) -> Result<PageRecords, Fault> {
        let ledger = store
            .read::<Ledger>(LEDGER, Durability::Boot)?
            .filter(|ledger| ledger.boot_id == boot_id);
        let ledger = ledger.unwrap_or_else(|| Ledger::new(boot_id));
        let reservations =
            store.read::<Vec<PoolPages>>(RESERVATIONS, Durability::Disk)?.unwrap_or_default();
        let reservations = pages_map(&reservations);
        let published =
            Published { ledger: ledger.clone(), remembered: true, ..Published::default() };
        let published = watch::Sender::new(published);
        let slot = store.boot_slot(LEDGER);
        let (behind, changed) = (false, true);
        let records =
            PageRecords { store, slot, ledger, reservations, published, arrival, behind, changed };
        records.publish();
        Ok(records)
    }

    pub(super) fn publishes(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    #[cfg(test)]
    fn reservations(&self) -> &PagesByPool {
        &self.reservations
    }

    /// Brings the ledger in line with the kernel, in memory; [`PageRecords::catch_up`] writes it. Returns `true` if the
    /// two differed.
    pub(super) fn reconcile(&mut self, seen: &PoolsSeen) -> bool {
        let intent = self.ledger.intent;
        let changed = self.ledger.reconcile(seen);
        if changed {
            (self.behind, self.changed) = (true, true);
            self.publish();
        }
        let Some(Intent { pool, from, to, .. }) = intent else { return changed };
        let there = seen.pool(pool).map_or(0, Pool::persistent);
        match unclaimed(from, to, there) {
            0 => tracing::info!(
                %pool, from, to, there,
                "the growth of {pool} from {from} to {to} pages was interrupted at {there} pages: none of them is unaccounted for"
            ),
            left => tracing::warn!(
                %pool, from, to, there, left,
                "the growth of {pool} from {from} to {to} pages was interrupted at {there} pages: {left} of them are not in the \
                 ledger, as others may have grown them; write a smaller number to the pool's nr_hugepages, or reboot, to \
                 return the free ones to the kernel"
            ),
        }
        changed
    }

    /// Brings the ledger in line with the kernel, also in its file.
    pub(super) fn catch_up_with(&mut self, seen: &PoolsSeen) -> Result<(), Fault> {
        self.reconcile(seen);
        if self.behind { self.save() } else { Ok(()) }
    }

    /// Returns `true` if a change of the pools, by the agent or by others, was observed since the last call.
    pub(super) fn changed_since(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Records the intent to grow a pool. Nothing may be grown when this fails.
    pub(super) fn begin(&mut self, intent: Intent) -> Result<(), Fault> {
        self.ledger.intent = Some(intent);
        // An intent is not published.
        let written = self.slot.write(&self.ledger);
        written.inspect_err(|_| self.ledger.intent = None)?;
        Ok(())
    }

    /// Records the outcome of the growth that was begun. If it got all its pages, the intent in the file says the same,
    /// and [`PageRecords::catch_up`] writes the outcome when no caller waits any more.
    pub(super) fn grew(&mut self, resized: &Resized) -> Result<(), Fault> {
        let key = resized.after.key;
        let pages = self.ledger.grown(key).saturating_add(resized.gained());
        let intent = self.ledger.intent.take();
        self.changed = true;
        self.ledger.set_grown(key, pages, resized.after.persistent());
        if intent.is_some_and(|intent| intent.temporary) {
            let temporary = self.ledger.temporary(key).saturating_add(resized.gained());
            self.ledger.set_temporary(key, temporary);
        }
        let as_begun = intent.is_some_and(|intent| {
            (intent.from, intent.to) == (resized.before.persistent(), resized.after.persistent())
        });
        if as_begun {
            self.behind = true;
            self.publish();
            return Ok(());
        }
        self.save()
    }

    /// Writes the ledger where its file is behind.
    pub(super) fn catch_up(&mut self) {
        if self.behind
            && let Err(fault) = self.save()
        {
            tracing::warn!(error = %fault, "the ledger of pages could not be written, and is written with the next change: {fault}");
        }
    }

    /// Records that the growth that was begun did not take place.
    pub(super) fn did_not_grow(&mut self) -> Result<(), Fault> {
        self.ledger.intent = None;
        self.save()
    }

    /// Records pages that were given back, `temporary` ones or others.
    pub(super) fn gave_back(&mut self, resized: &Resized, temporary: bool) -> Result<(), Fault> {
        let key = resized.after.key;
        if temporary {
            let left = self.ledger.temporary(key).saturating_sub(resized.lost());
            self.ledger.set_temporary(key, left);
        }
        let pages = self.ledger.grown(key).saturating_sub(resized.lost());
        self.changed = true;
        self.ledger.set_grown(key, pages, resized.after.persistent());
        self.save()
    }

    /// Makes temporary pages of the sizes `of` lasting as far as they exceed `most`: the caller of a prepare counts on
    /// them.
    pub(super) fn adopt(
        &mut self,
        of: &BTreeSet<PageSize>,
        most: &PagesByPool,
    ) -> Result<(), Fault> {
        let before = self.ledger.temporary.clone();
        for part in self.ledger.temporary.clone().iter().filter(|part| of.contains(&part.size)) {
            let most = most.get(&part.key()).copied().unwrap_or(0);
            if part.pages > most {
                self.ledger.set_temporary(part.key(), most);
            }
        }
        if self.ledger.temporary == before { Ok(()) } else { self.save() }
    }

    /// Replaces the reservations by those that `change` makes of them, in the file too.
    pub(super) fn change_reservations<T>(
        &mut self,
        change: impl FnOnce(&mut Vec<Reservation>) -> T,
    ) -> Result<T, Fault> {
        let before = self.ledger.reservations.clone();
        let changed = change(&mut self.ledger.reservations);
        if self.ledger.reservations != before
            && let Err(fault) = self.save()
        {
            self.ledger.reservations = before;
            self.publish();
            return Err(fault);
        }
        Ok(changed)
    }

    /// Reservation `name`.
    pub(super) fn reservation(&self, name: &ReservationName) -> Option<&Reservation> {
        self.ledger.reservations.iter().find(|it| it.name == *name)
    }

    /// Pages of the reserve for arrivals, by pool.
    pub(super) fn arrival(&self) -> &PagesByPool {
        &self.arrival
    }

    /// Records that this boot has restored the reservations.
    pub(super) fn restored(&mut self) -> Result<(), Fault> {
        self.ledger.restored = true;
        self.save()
    }

    /// Records that the mounts were made again in this boot.
    pub(super) fn mounted(&mut self) -> Result<(), Fault> {
        self.ledger.mounted = true;
        self.save()
    }

    /// Raises the reservations on disk to the ledger; writes nothing when they cover it.
    pub(super) fn remember(&mut self) -> Result<(), Fault> {
        let wanted = self.raised();
        self.write_reservations(wanted)
    }

    /// Lowers the reservations on disk, for the pools that `keys` selects, to the pages in the ledger plus those in
    /// `missing`. Lost pages beyond that are not restored any more.
    pub(super) fn lower(
        &mut self,
        keys: impl Fn(&PoolKey) -> bool,
        missing: &PagesByPool,
    ) -> Result<(), Fault> {
        let mut wanted = self.raised();
        for (key, pages) in wanted.iter_mut().filter(|(key, _)| keys(key)) {
            let missing = missing.get(key).copied().unwrap_or(0);
            *pages = self.ledger.lasting(*key).saturating_add(missing);
        }
        wanted.retain(|_, pages| *pages > 0);
        if self.ledger.keep_at_most(&wanted) {
            self.save()?;
        }
        self.write_reservations(wanted)
    }

    /// Desired pages that the ledger does not have.
    pub(super) fn missing(&self) -> PagesByPool {
        let mut missing = self.raised();
        for (key, pages) in &mut missing {
            *pages = pages.saturating_sub(self.ledger.lasting(*key));
        }
        missing
    }

    /// Pages, by pool, that the ledger is to have after a restore: all desired ones, except lost pages that others have
    /// put back into the pool, as those belong to the others.
    pub(super) fn to_restore(&self) -> PagesByPool {
        let (lost, mut wanted) = (self.ledger.lost(), self.raised());
        for whole in &self.ledger.whole {
            let lost = lost.get(&whole.key).copied().unwrap_or(0);
            let there = self.ledger.grown(whole.key).saturating_add(lost);
            let pages = wanted.entry(whole.key).or_default();
            *pages = pages.saturating_sub(whole.grown.saturating_sub(there));
        }
        wanted
    }

    /// Pages, by pool, that the ledger is to have once lost pages are taken again; only pools that lost some.
    pub(super) fn to_retake(&self) -> PagesByPool {
        let lost = self.ledger.lost().into_iter();
        lost.map(|(key, lost)| (key, self.ledger.grown(key).saturating_add(lost))).collect()
    }

    /// Sizes of the pages that the agent keeps, or is to have again.
    pub(super) fn kept_sizes(&self) -> BTreeSet<PageSize> {
        self.raised().keys().map(|key| key.size).collect()
    }

    fn raised(&self) -> PagesByPool {
        let mut wanted = self.reservations.clone();
        for (key, kept) in self.ledger.kept() {
            let pages = wanted.entry(key).or_default();
            *pages = kept.saturating_sub(self.ledger.temporary(key)).max(*pages);
        }
        wanted
    }

    fn write_reservations(&mut self, wanted: PagesByPool) -> Result<(), Fault> {
        if wanted != self.reservations {
            self.store.write(RESERVATIONS, &pages_list(&wanted), Durability::Disk)?;
            self.reservations = wanted;
            self.publish();
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), Fault> {
        self.publish();
        // Set until the file is written: `catch_up` repeats a write that failed.
        self.behind = true;
        self.slot.write(&self.ledger)?;
        self.behind = false;
        Ok(())
    }

    fn publish(&self) {
        let wanted = self.raised();
        let remembered = wanted == self.reservations;
        let (ledger, arrival) = (self.ledger.clone(), self.arrival.clone());
        self.published.send_replace(Published { ledger, remembered, wanted, arrival });
    }
}

/// Pages that an interrupted growth (from `from` to `to`) may have left among the pages that are `there`, and that the
/// ledger does not claim, as their origin is unknown.
fn unclaimed(from: u64, to: u64, there: u64) -> u64 {
    match there == to {
        true => 0,
        false => there.min(to).saturating_sub(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::NumaNode;

    fn key(node: u32) -> PoolKey {
        PoolKey { size: PageSize::MIB_2, node: NumaNode(node) }
    }

    fn open(dir: &tempfile::TempDir, boot: &str) -> PageRecords {
        let store = Store::open(dir.path(), dir.path()).unwrap();
        PageRecords::open(store, boot.to_string(), PagesByPool::new()).unwrap()
    }

    fn pool(node: u32, total: u64) -> Pool {
        Pool { key: key(node), total, free: 0, surplus: 0 }
    }

    fn resized(node: u32, from: u64, to: u64) -> Resized {
        Resized { before: pool(node, from), after: pool(node, to) }
    }

    #[test]
    fn a_restore_that_came_out_short_does_not_make_the_node_forget() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = open(&dir, "first");
        records.grew(&resized(1, 0, 1024)).unwrap();
        records.remember().unwrap();
        let mut records = open(&dir, "second");
        assert_eq!(records.ledger().grown(key(1)), 0);
        records.grew(&resized(1, 0, 300)).unwrap();
        records.grew(&resized(0, 0, 1)).unwrap();
        records.remember().unwrap();
        let records = open(&dir, "third");
        assert_eq!(*records.reservations(), PagesByPool::from([(key(0), 1), (key(1), 1024)]));
    }

    #[test]
    fn a_growth_that_a_crash_kept_from_being_remembered_is_remembered_later() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir, "boot").grew(&resized(0, 0, 7)).unwrap();
        let mut records = open(&dir, "boot");
        assert!(!records.publishes().borrow().remembered);
        records.remember().unwrap();
        assert!(records.publishes().borrow().remembered);
        assert_eq!(*open(&dir, "next").reservations(), PagesByPool::from([(key(0), 7)]));
    }

    #[test]
    fn a_growth_that_got_all_its_pages_is_known_after_a_crash_before_and_after_the_file_caught_up()
    {
        let dir = tempfile::tempdir().unwrap();
        let mut records = open(&dir, "boot");
        records.begin(Intent { pool: key(0), from: 5, to: 105, temporary: false }).unwrap();
        records.grew(&resized(0, 5, 105)).unwrap();
        assert_eq!(records.publishes().borrow().ledger.grown(key(0)), 100);
        let seen = PoolsSeen { pools: vec![pool(0, 105)], ..PoolsSeen::default() };
        let mut crashed = open(&dir, "boot");
        crashed.reconcile(&seen);
        assert_eq!(crashed.ledger().grown(key(0)), 100);
        records.catch_up();
        let written = open(&dir, "boot");
        assert_eq!((written.ledger().grown(key(0)), written.ledger().intent), (100, None));
    }

    #[test]
    fn pages_of_a_growth_that_was_cut_off_half_way_are_nobodys() {
        for (there, left) in [(640, 0), (1335, 695), (1530, 0), (1600, 890), (512, 0)] {
            assert_eq!(unclaimed(640, 1530, there), left, "{there}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut records = open(&dir, "boot");
        records.begin(Intent { pool: key(0), from: 640, to: 1530, temporary: false }).unwrap();
        let mut next = open(&dir, "boot");
        next.reconcile(&PoolsSeen { pools: vec![pool(0, 1335)], ..PoolsSeen::default() });
        assert_eq!((next.ledger().grown(key(0)), next.ledger().intent), (0, None));
    }

    #[test]
    fn a_growth_that_came_out_short_is_in_the_file_before_its_caller_hears_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = open(&dir, "boot");
        records.begin(Intent { pool: key(0), from: 0, to: 100, temporary: false }).unwrap();
        records.grew(&resized(0, 0, 60)).unwrap();
        assert_eq!(open(&dir, "boot").ledger().grown(key(0)), 60);
    }

    #[test]
    fn lost_pages_are_known_to_the_next_agent_until_they_are_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = open(&dir, "boot");
        records.grew(&resized(0, 0, 100)).unwrap();
        records.remember().unwrap();
        let seen = PoolsSeen { pools: vec![pool(0, 40)], ..PoolsSeen::default() };
        assert_eq!(records.catch_up_with(&seen), Ok(()));
        let mut records = open(&dir, "boot");
        assert_eq!((records.ledger().grown(key(0)), records.ledger().lost()[&key(0)]), (40, 60));
        assert_eq!(records.reservations()[&key(0)], 100, "the next boot takes them");
        records.lower(|key| key.node == NumaNode(1), &PagesByPool::new()).unwrap();
        assert_eq!(records.ledger().lost().len(), 1, "of another pool");
        records.lower(|key| key.node == NumaNode(0), &PagesByPool::new()).unwrap();
        let records = open(&dir, "boot");
        assert_eq!((records.ledger().lost().len(), records.reservations()[&key(0)]), (0, 40));
    }

    #[test]
    fn giving_back_lowers_what_the_next_boot_takes() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = open(&dir, "boot");
        records.grew(&resized(0, 0, 100)).unwrap();
        records.grew(&resized(1, 0, 100)).unwrap();
        records.remember().unwrap();
        records.gave_back(&resized(0, 100, 40), false).unwrap();
        records.gave_back(&resized(1, 100, 40), false).unwrap();
        records.lower(|key| key.node == NumaNode(0), &PagesByPool::new()).unwrap();
        let wanted = PagesByPool::from([(key(0), 40), (key(1), 100)]);
        assert_eq!(*open(&dir, "next").reservations(), wanted);
    }

    #[test]
    fn pages_that_somebody_took_away_are_not_counted_twice_when_they_are_grown_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = open(&dir, "boot");
        // 5000 pages of somebody else are there too.
        records.grew(&resized(0, 5000, 6024)).unwrap();
        records.reconcile(&PoolsSeen { pools: vec![pool(0, 5000)], ..PoolsSeen::default() });
        records.grew(&resized(0, 5000, 6024)).unwrap();
        assert_eq!(records.ledger().grown(key(0)), 1024);
    }
}
