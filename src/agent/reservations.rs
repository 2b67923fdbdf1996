//! Ends of reservations: leases that run out, guests that exit, and what a try to give pages back or to fill the reserve
//! for arrivals left to be done later.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::memory::Published;
use super::observe::memory::MemoryObserver;
use super::pools::Pools;
use crate::model::backoff::Backoff;
use crate::model::reservation::Holder;
use crate::wait;

/// Time for which a lease lasts at least after the agent's start, in seconds: its caller could not renew it while no
/// agent ran.
const GRACE_SECONDS: u64 = 30;
/// Delays of tries to give back pages that were in use, and to fill the reserve.
const RETRY: Backoff = Backoff::steady(Duration::from_secs(10), Duration::from_secs(600));
/// Longest wait for a lease's end, so that a clock that was read wrong does no harm.
const MOST_WAIT: Duration = Duration::from_secs(3600);

/// Follows the reservations for as long as the agent runs. Begins after the pages of the last boot were restored.
pub async fn follow(pools: Pools, observer: MemoryObserver) {
    let mut records = pools.watch();
    if records.wait_for(|it| it.ledger.restored).await.is_err() {
        return;
    }
    if let Err(fault) = pools.extend_leases(GRACE_SECONDS).await {
        tracing::warn!(code = %fault.code, "the leases of reservations could not be extended: {fault}");
    }
    let (mut failed, mut failures, mut due) = (0_u32, 0, Instant::now());
    loop {
        let now = Instant::now();
        // A growth that the kernel cannot meet slows the whole machine: not with each reservation.
        let tries = now >= due;
        let left = match pools.settle(tries).await {
            Ok(left) => left,
            Err(fault) => {
                failed = failed.saturating_add(1);
                let pause = RETRY.delay(failed, 0);
                tracing::warn!(code = %fault.code, "reservations could not be settled, which is tried again in {pause:?}: {fault}");
                // What has ended stays on record, so that waiting for an end would return at once.
                sleep(pause).await;
                continue;
            }
        };
        failed = 0;
        if tries {
            failures = if left { failures + 1 } else { 0 };
            due = now + if left { RETRY.delay(failures, 0) } else { Duration::ZERO };
        }
        let published = records.borrow_and_update().clone();
        let mut exits: FuturesUnordered<_> =
            holders(&published).map(|holder| observer.ended(holder)).collect();
        let lease = Instant::now() + lease_left(&published, &observer);
        tokio::select! {
            // Each is cancel-safe: settling looks at all of them anew.
            () = changed(&mut records, &published) => {}
            Some(()) = exits.next() => {}
            () = sleep_until(if failures > 0 { lease.min(due) } else { lease }) => {}
        }
    }
}

/// Returns when the reservations differ from those in `before`.
async fn changed(records: &mut watch::Receiver<Published>, before: &Published) {
    loop {
        wait::change(records).await;
        if records.borrow_and_update().ledger.reservations != before.ledger.reservations {
            return;
        }
    }
}

/// Processes that have the pages of reservations.
fn holders(published: &Published) -> impl Iterator<Item = Holder> {
    published.ledger.reservations.iter().filter_map(|it| it.holder())
}

/// Time until the next lease ends.
fn lease_left(published: &Published, observer: &MemoryObserver) -> Duration {
    let leases = published.ledger.reservations.iter().filter(|it| it.holder().is_none());
    let Some(end) = leases.map(|it| it.lease.end).min() else { return MOST_WAIT };
    let left = end.saturating_sub(observer.since_boot().unwrap_or_default());
    // One second more, as both are whole seconds.
    Duration::from_secs(left.saturating_add(1)).min(MOST_WAIT)
}
