//! Return of pages that the agent grew for volumes, once the last volume has been gone for a while.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::memory::ReclaimOrder;
use super::pools::Pools;
use crate::model::target::Desired;
use crate::model::units::PageSize;

/// Follows the desired volumes of the node for as long as the agent runs. Once the node has been without volumes for
/// `after`, pages are given back, except for `keep` pages of 2 MiB.
pub async fn follow(
    mut desired: watch::Receiver<Desired>,
    pools: Pools,
    keep: u64,
    after: Duration,
) {
    let some = |desired: &Desired| !desired.volumes.is_empty();
    let none = |desired: &Desired| desired.volumes.is_empty();
    while desired.wait_for(some).await.is_ok() {
        loop {
            if desired.wait_for(none).await.is_err() {
                return;
            }
            if timeout(after, desired.wait_for(some)).await.is_err() {
                break;
            }
        }
        let order = ReclaimOrder { size: Some(PageSize::MIB_2), keep, ..ReclaimOrder::default() };
        let given = pools.reclaim(order).await;
        let errors = given.map_or_else(|fault| vec![fault], |report| report.errors);
        for fault in errors {
            tracing::warn!(code = %fault.code, "no volume is left, but the agent's hugepages could not be returned to the kernel: {fault}");
        }
    }
}
