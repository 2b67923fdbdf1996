//! Reservations of pages for guests, and the reserve for guests that arrive by migration.
//!
//! Each is a goal: so many pages stay free. A request grows the pools until its goal holds beside all others, and only
//! then is recorded. Nobody counts whose pages are whose: what was grown here is temporary, and temporary pages beyond
//! those of all reservations and of the reserve are given back as far as they are free and no goal needs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::growth::Growth;
use super::release::Shrink;
use super::{MemoryOrder, MemoryWork};
use crate::agent::owner_gone;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::TargetSettings;
use crate::model::pools::{PagesByPool, PoolGoal, PoolWant, PoolsSeen, pages_list, pages_map};
use crate::model::prepare::StepReport;
use crate::model::reservation::{
    Holder, Lease, MOST_RESERVATIONS, Reservation, ReservationName, ReservationRequest,
    ReservationState, add_pages, pages_beyond, pages_of,
};
use crate::model::status::TargetStatuses;
use crate::model::target::{Desired, TargetState};
use crate::model::work::WorkId;
use crate::plan::hugepages;

/// Targets that take pages of 2 MiB when they come back.
#[derive(Debug)]
pub struct DownTargets {
    pub desired: watch::Receiver<Desired>,
    pub statuses: watch::Receiver<TargetStatuses>,
    pub policy: TargetSettings,
}

impl DownTargets {
    /// Pages of 2 MiB that each desired target takes that is down.
    fn pages(&self) -> Vec<u64> {
        let (desired, statuses) = (self.desired.borrow(), self.statuses.borrow());
        // A process that has started has its pages, whether it answers or not.
        let has_pages = |name| {
            let health = statuses.get(name).and_then(|status| status.health.as_ref());
            health.is_some_and(|it| it.pid.is_some() && it.state != TargetState::Starting)
        };
        let down = desired.targets.values().filter(|spec| !has_pages(&spec.name));
        down.map(|spec| self.policy.pages(spec)).collect()
    }
}

impl MemoryWork {
    /// Free pages, by pool, that are kept for open reservations and, with `arrivals`, for guests that arrive.
    pub(super) fn kept_free(&self, arrivals: bool) -> PagesByPool {
        let mut kept = self.records.ledger().promised();
        if arrivals {
            add_pages(&mut kept, self.records.arrival());
        }
        kept
    }

    /// As [`MemoryWork::kept_free`], with the pages of targets that are down: on the pools that have most, as that is
    /// where a target finds them.
    fn kept_free_beside_targets(&self, seen: &PoolsSeen, arrivals: bool) -> PagesByPool {
        let mut kept = self.kept_free(arrivals);
        for pages in self.targets.iter().flat_map(DownTargets::pages) {
            let taken = hugepages::taken_by_target(pages, &seen.without(&kept));
            add_pages(&mut kept, &taken);
        }
        kept
    }

    /// Temporary pages, by pool, that there may be: those of all reservations and of the reserve for arrivals.
    pub(super) fn most_temporary(&self) -> PagesByPool {
        let mut most = pages_of(self.records.ledger().reservations.iter());
        add_pages(&mut most, self.records.arrival());
        most
    }

    /// Reserves pages: grows the pools until they are free beside all that is kept already. A known reservation with
    /// the same pages only gets a longer lease. Returns the reservation, and `true` if it is new.
    ///
    /// # Errors
    /// When the pages cannot be had (what was grown is given back), the name is taken, or the agent has not restored its
    /// own pages yet.
    pub fn reserve(
        &mut self,
        request: &ReservationRequest,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<(Reservation, bool), Fault> {
        if !self.is_restored() {
            let text =
                "the agent restores the pages of the last boot first: call again in a moment";
            return Err(Fault::new(Code::PoolsBusy, text));
        }
        let now = self.observer.since_boot()?;
        self.drop_ended(now)?;
        let lease = lease(now, request.lease_seconds.into());
        if let Some(known) = self.records.reservation(&request.name) {
            renewable(known, request)?;
            let renewed =
                self.change(&request.name, |it| it.lease = it.lease.clone().longer(lease))?;
            return Ok((renewed, false));
        }
        if self.records.ledger().reservations.len() >= MOST_RESERVATIONS {
            let text = format!("the node has {MOST_RESERVATIONS} reservations: delete some");
            return Err(Fault::new(Code::TooManyReservations, text));
        }
        self.progress = self.progress.of(WorkId::next());
        let mut growth = Growth::of_temporary(PagesByPool::new());
        let made = self.make_room(request, cancelled, &mut growth).and_then(|pages| {
            let made = Reservation {
                name: request.name.clone(),
                wants: request.wants.clone(),
                pages: pages_list(&pages),
                arrival: request.arrival,
                state: ReservationState::Open,
                lease,
            };
            self.records.change_reservations(|all| all.push(made.clone()))?;
            Ok(made)
        });
        match made {
            Ok(made) => {
                tracing::info!(
                    reservation = %made.name, seconds = request.lease_seconds,
                    "pages are reserved for {}: {}", made.name, describe(&made)
                );
                Ok((made, true))
            }
            Err(fault) => {
                let order = order(request.wants.clone(), cancelled);
                self.undo_after(Err(fault), &order, &mut growth);
                let fault = growth.report.errors.into_iter().next();
                Err(fault.unwrap_or_else(owner_gone))
            }
        }
    }

    /// Grows the pools for `request`; returns the pages by pool.
    fn make_room(
        &mut self,
        request: &ReservationRequest,
        cancelled: &Arc<AtomicBool>,
        growth: &mut Growth,
    ) -> Result<PagesByPool, Fault> {
        self.seen = None;
        let seen = self.observer.pools()?;
        // An interrupted growth is settled before anything is decided.
        self.records.reconcile(&seen);
        let beside = self.kept_free_beside_targets(&seen, !request.arrival);
        let mut pages = PagesByPool::new();
        for want in &request.wants {
            growth.aside = beside.clone();
            add_pages(&mut growth.aside, &pages);
            let grown = self.grow(&order(vec![want.clone()], cancelled), growth);
            let free = self.observer.pools().map(|seen| seen.without(&growth.aside));
            // The pages of this request are given back if it fails.
            growth.aside = beside.clone();
            grown?;
            add_pages(&mut pages, &hugepages::share_out(want, &free?)?);
        }
        match cancelled.load(Ordering::Relaxed) {
            true => Err(Fault::new(Code::Cancelled, "nobody waits for these pages any more")),
            false => Ok(pages),
        }
    }

    /// Records that the guest of a reservation has its pages: in the process `pid`, after whose exit they are given
    /// back, or in one that only the caller knows.
    ///
    /// # Errors
    /// When there is no such reservation or process, or the record cannot be written.
    pub fn claim(
        &mut self,
        name: &ReservationName,
        pid: Option<u32>,
    ) -> Result<Reservation, Fault> {
        let holder = match pid {
            None => None,
            Some(pid) => Some(self.observer.holder(pid).ok_or_else(|| {
                let text =
                    format!("no process has the pid {pid} that is to have the pages of {name}");
                Fault::new(Code::ReservationHolderUnknown, text)
            })?),
        };
        self.change(name, |it| it.state = ReservationState::Claimed(holder))
    }

    /// Ends a reservation and gives back what nobody needs any more; `false` if there is none of that name.
    ///
    /// # Errors
    /// When the record cannot be written: the reservation stays then. Pages that cannot be given back now are given
    /// back later.
    pub fn release(&mut self, name: &ReservationName) -> Result<bool, Fault> {
        let there = self.records.reservation(name).is_some();
        self.records.change_reservations(|all| all.retain(|it| it.name != *name))?;
        if let Err(fault) = self.give_back_surplus(&mut Vec::new()) {
            tracing::warn!(code = %fault.code, reservation = %name, "pages that were reserved for {name} are given back later: {fault}");
        }
        Ok(there)
    }

    /// Drops reservations that have ended, gives back temporary pages that nobody needs and, with `fill`, fills up the
    /// reserve for arrivals. Returns `true` if something is left to be done later.
    ///
    /// # Errors
    /// When the machine cannot be read, or the record not be written.
    pub fn settle(&mut self, fill: bool) -> Result<bool, Fault> {
        if !self.is_restored() {
            return Ok(true);
        }
        if !self.records.ledger().reservations.is_empty() {
            self.drop_ended(self.observer.since_boot()?)?;
        }
        self.give_back_surplus(&mut Vec::new())?;
        let is_full = !fill || self.fill_reserve(&PagesByPool::new(), &mut Vec::new())?;
        let ledger = self.records.ledger();
        let temporary = pages_map(&ledger.temporary);
        Ok(!is_full || !pages_beyond(&temporary, &self.most_temporary()).is_empty())
    }

    /// Extends the leases of reservations that ended while no agent ran by `seconds`, so that their callers can renew
    /// them.
    ///
    /// # Errors
    /// When the machine cannot be read, or the record not be written.
    pub fn extend_leases(&mut self, seconds: u64) -> Result<(), Fault> {
        if self.records.ledger().reservations.is_empty() {
            return Ok(());
        }
        let least = lease(self.observer.since_boot()?, seconds);
        self.records.change_reservations(|all| {
            all.iter_mut().for_each(|it| it.lease = it.lease.clone().longer(least.clone()));
        })
    }

    fn drop_ended(&mut self, now: u64) -> Result<(), Fault> {
        let observer = self.observer.clone();
        let ended = |it: &Reservation| match it.holder() {
            Some(Holder { pid, .. }) => observer.holder(pid) != it.holder(),
            None => it.lease.end <= now,
        };
        for it in self.records.ledger().reservations.iter().filter(|it| ended(it)) {
            let why = match it.holder() {
                Some(holder) => format!("its process {} has exited", holder.pid),
                None => "its lease ran out".to_string(),
            };
            tracing::info!(reservation = %it.name, "the reservation {} ended: {why}", it.name);
        }
        self.records.change_reservations(|all| all.retain(|it| !ended(it)))
    }

    fn change(
        &mut self,
        name: &ReservationName,
        change: impl FnOnce(&mut Reservation),
    ) -> Result<Reservation, Fault> {
        let changed = self.records.change_reservations(|all| {
            let found = all.iter_mut().find(|it| it.name == *name)?;
            change(found);
            Some(found.clone())
        })?;
        changed.ok_or_else(|| {
            Fault::new(Code::ReservationUnknown, format!("there is no reservation {name}"))
        })
    }

    /// Gives back temporary pages beyond those of all reservations and the reserve, as far as they are free and no goal
    /// needs them.
    pub(super) fn give_back_surplus(&mut self, steps: &mut Vec<StepReport>) -> Result<(), Fault> {
        if self.records.ledger().temporary.is_empty() && self.records.ledger().intent.is_none() {
            return Ok(());
        }
        self.seen = None;
        let seen = self.observer.pools()?;
        self.records.reconcile(&seen);
        let temporary = pages_map(&self.records.ledger().temporary);
        let limit = pages_beyond(&temporary, &self.most_temporary());
        if limit.is_empty() {
            return Ok(());
        }
        let aside = self.kept_free_beside_targets(&seen, true);
        let (_, fault) = self.shrink(Shrink { limit, aside, temporary: true }, false, steps);
        fault.map_or(Ok(()), Err)
    }

    /// Grows the pools until the reserve for arrivals is free beside all reservations and the pages in `beside`, as far
    /// as the kernel has pages. `true` if it is full.
    pub(super) fn fill_reserve(
        &mut self,
        beside: &PagesByPool,
        steps: &mut Vec<StepReport>,
    ) -> Result<bool, Fault> {
        let wants = hugepages::wants_of(self.records.arrival());
        if wants.is_empty() {
            return Ok(true);
        }
        self.progress = self.progress.of(WorkId::next());
        self.seen = None;
        let seen = self.observer.pools()?;
        let mut aside = self.kept_free_beside_targets(&seen, false);
        add_pages(&mut aside, beside);
        let mut growth = Growth::of_temporary(aside);
        let order = MemoryOrder { keep_partial: true, ..order(wants, &Arc::default()) };
        let filled = self.grow(&order, &mut growth);
        if let Err(fault) = &filled {
            tracing::debug!(code = %fault.code, "the reserve for arrivals is not full: {fault}");
        }
        steps.append(&mut growth.report.steps);
        Ok(filled.is_ok())
    }
}

/// Lease of `seconds` that begins at `now`, in seconds since the boot.
fn lease(now: u64, seconds: u64) -> Lease {
    let until = SystemTime::now() + Duration::from_secs(seconds);
    let until = humantime::format_rfc3339_seconds(until).to_string();
    Lease { end: now.saturating_add(seconds), until }
}

/// Order to have the pages of `wants` free.
fn order(wants: Vec<PoolWant>, cancelled: &Arc<AtomicBool>) -> MemoryOrder {
    MemoryOrder {
        work: WorkId::next(),
        goal: PoolGoal::Free(wants),
        mounts: Vec::new(),
        keep_partial: false,
        dry_run: false,
        cancelled: cancelled.clone(),
    }
}

/// Refuses to renew `known` by a request for something else, or once its guest has the pages.
fn renewable(known: &Reservation, request: &ReservationRequest) -> Result<(), Fault> {
    let (code, text) = if !known.is_open() {
        let text =
            "its guest has the pages: release it (DELETE) before another guest of that name starts";
        (Code::ReservationConflict, text)
    } else if known.wants != request.wants {
        (Code::ReservationConflict, "it is for other pages: release it (DELETE) first")
    } else {
        return Ok(());
    };
    Err(Fault::new(code, format!("the reservation {} cannot be renewed: {text}", known.name)))
}

/// Pages of a reservation by pool, as text.
fn describe(reservation: &Reservation) -> String {
    let parts = reservation.pages.iter().map(|part| format!("{} of {}", part.pages, part.key()));
    parts.collect::<Vec<_>>().join(", ")
}
