//! Kills of targets that do not answer: the evidence that one needs. Pure.
//!
//! **A kill needs evidence.** A process that makes progress is not stuck. While a request of the agent's own is open
//! that changes something, its silence is explained, up to the deadline of that request. After that it is killed when
//! the kernel says that it is stopped, or when none of its threads (or one of its reactors) has computed, waited for
//! a CPU or done I/O for [`HealPolicy::unresponsive_after`]. Where it computes and answers nothing, a busy target looks
//! like a spinning one: that is reported, and it is killed only after [`HealPolicy::kill_unresponsive_after`], and only
//! if volumes are desired in it.

use std::time::Instant;

use super::lifecycle::Situation;
use super::phase::Phase;
use crate::model::observation::{Activity, Observation};
use crate::model::policy::HealPolicy;

/// Time at which a silent process may be killed, as far as is known by now.
pub(super) fn kill_at(
    phase: &Phase,
    seen: &Observation,
    situation: &Situation,
    policy: &HealPolicy,
) -> Option<Instant> {
    let (since, heard) = match *phase {
        Phase::Unresponsive { since, .. } => (since, true),
        // A process that this agent never heard from may serve its guests, and only have no connection left at its
        // control socket.
        Phase::Starting { pid: Some(_), since } if !situation.bringing_up => (since, false),
        _ => return None,
    };
    if !seen.answers.is_silent() || seen.is_busy() {
        return None;
    }
    let timeout = match heard {
        true => policy.unresponsive_after,
        false => policy.unresponsive_after.max(policy.clear_after),
    };
    match seen.vitals.activity {
        Activity::Stopped => return Some(since + policy.unresponsive_after),
        Activity::Paused | Activity::Unknown => return None,
        Activity::Runs => {}
    }
    // Without users, nobody loses anything by its silence.
    let progress = seen.vitals.progress.filter(|_| situation.has_users)?;
    // Each sign of progress postpones the kill; a process that answers late is only slow.
    let stuck = progress.max(since) + timeout;
    let busy_timeout = policy.kill_unresponsive_after;
    let heard_at = since.max(seen.vitals.replied.unwrap_or(since));
    let in_doubt = (heard && !busy_timeout.is_zero()).then(|| heard_at + busy_timeout);
    Some(in_doubt.map_or(stuck, |at| stuck.min(at)))
}
