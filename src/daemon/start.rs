//! Way of the agent from its start to readiness: mounts, pages of the last boot, targets.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{interval, timeout};

use super::owners::Core;
use crate::api::AgentPhase;
use crate::model::target::{TargetKind, TargetSpec};

/// Longest time for which the start waits for the hugetlbfs mounts.
const MOUNT_WAIT: Duration = Duration::from_secs(10);
/// Interval of extending systemd's start timeout.
const START_WORD: Duration = Duration::from_secs(15);
/// Extension of systemd's start timeout that is requested each time, in microseconds.
const START_EXTENSION_USEC: u32 = 60_000_000;

/// Restores the pages of the last boot (once a boot) and the mounts, starts the targets, then announces readiness.
pub(super) async fn become_ready(core: &Core, phase: &watch::Sender<AgentPhase>) {
    // Mounts before any target starts: one that is made anew without its mount goes without hugepages.
    mount_again(core).await;
    for fault in extending_start_timeout(core.pools.restore(true)).await.errors {
        tracing::warn!(code = %fault.code, "hugepages were not all restored after the reboot: {}", fault.text);
    }
    core.targets.start_all();
    phase.send_if_modified(|phase| {
        let starting = *phase == AgentPhase::Starting;
        if starting {
            *phase = AgentPhase::Serving;
        }
        starting
    });
    if let Err(e) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(
            error = %e,
            "systemd could not be notified that the agent is ready, and may stop it after TimeoutStartSec: {e}"
        );
    }
}

/// Makes the hugetlbfs mounts again, once a boot. One that takes long is made in the background.
async fn mount_again(core: &Core) {
    // The built-in target goes without hugepages where there is no mount.
    let takes_pages = |spec: &TargetSpec| spec.kind != TargetKind::BuiltIn;
    let has_targets = core.desired.watch().borrow().targets.values().any(takes_pages);
    match timeout(MOUNT_WAIT, core.pools.mount_again(has_targets)).await {
        Ok(report) => report.errors.iter().for_each(|fault| {
            tracing::warn!(code = %fault.code, "a hugetlbfs mount was not restored: {}", fault.text);
        }),
        Err(_) => tracing::warn!(
            "a hugetlbfs mount was not restored within {MOUNT_WAIT:?}: targets may start without hugepages"
        ),
    }
}

/// Extends systemd's timeout while a part of the start lasts: the kernel may look for pages for longer
/// than TimeoutStartSec (sd_notify(3), EXTEND_TIMEOUT_USEC).
async fn extending_start_timeout<T>(part: impl Future<Output = T>) -> T {
    tokio::pin!(part);
    let mut word = interval(START_WORD);
    loop {
        tokio::select! {
            // Pinned: goes on when the extension is due first.
            done = &mut part => return done,
            // Cancel-safe: a tick stays due.
            _ = word.tick() => {
                let more = sd_notify::NotifyState::ExtendTimeoutUsec(START_EXTENSION_USEC);
                let _ = sd_notify::notify(&[more]);
            }
        }
    }
}
