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
#[path = "page_records_tests.rs"]
mod tests;
