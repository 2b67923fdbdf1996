//! Test disk (canary) of the agent on a target: a small malloc bdev and a vhost controller on it. Both have the same
//! name, which identifies the agent's process. They are created for one probe and removed after it.
//!
//! A controller is deleted only once it is observed without a session (packaging/doc/facts.md, "Traps"), and a bdev
//! only once no controller is on it. A disk that cannot be removed in time stays and is reported; a later probe removes
//! it, as it does the disks of an agent that died.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::disk::{DISK, SECTOR};
use crate::host::Root;
use crate::host::process::started;
use crate::model::code::Code;
use crate::model::fault::{Fault, chain};
use crate::model::names::PROBE_PREFIX as PREFIX;
use crate::model::path::{CleanPath, validate_length};
use crate::model::volume::Backing;
use crate::spdk::disks::Controller;
use crate::spdk::{Spdk, SpdkError};

/// Interval of the checks for the end of a session.
const PAUSE: Duration = Duration::from_millis(10);
/// Storage of the disk: memory of the target.
const MEMORY: Backing =
    Backing::Malloc { size_mib: (DISK >> 20) as u64, block_size: SECTOR as u32 };

/// Test disk of this agent on one target.
#[derive(Debug)]
pub(super) struct Canary {
    spdk: Spdk,
    name: String,
    /// Set once the creation has begun: from then on there may be something to remove.
    begun: bool,
}

/// Time left until the deadline `by`.
fn left(by: Instant) -> Duration {
    by.saturating_duration_since(Instant::now())
}

/// Fault for a call of a probe that failed with `error`.
pub(super) fn rpc_fault(error: &SpdkError) -> Fault {
    let code = match error {
        SpdkError::Absent { .. }
        | SpdkError::Unreachable { .. }
        | SpdkError::QueueFull { .. }
        | SpdkError::Broken { .. }
        | SpdkError::Timeout { .. } => Code::DeepNotAnswering,
        SpdkError::Refused { .. } | SpdkError::Garbage { .. } | SpdkError::NotSent { .. } => {
            Code::DeepRefused
        }
    };
    Fault::new(code, chain(error))
}

impl Canary {
    /// Canary with the given `number`, which must be unique in this process; nothing is created yet.
    pub(super) fn new(spdk: &Spdk, root: &Root, number: u64) -> Canary {
        let pid = std::process::id();
        let since = started(root, pid).unwrap_or_default();
        let name = format!("{PREFIX}{pid}-{since}-{number}");
        Canary { spdk: spdk.clone(), name, begun: false }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Creates the bdev and the controller. Returns the paths at which the agent may see the controller's socket; each
    /// ends with the canary's name.
    pub(super) async fn make(
        &mut self,
        root: &Root,
        control: &CleanPath,
        by: Instant,
    ) -> Result<Vec<PathBuf>, Fault> {
        let folder = Path::new(control.as_str()).parent().unwrap_or(Path::new("/"));
        let usual = folder.join(&self.name).display().to_string();
        // Checked first: SPDK would truncate a long name, and replace any socket at the resulting path.
        validate_length(&usual.parse()?)?;
        self.begun = true;
        let bdev = self.spdk.create_bdev(&self.name, &MEMORY, left(by));
        let controller = self.spdk.create_controller(&self.name, &self.name, false, None, left(by));
        // The calls are sent in this order on one connection, without waiting for the target's next poll.
        let (bdev, controller, made) = tokio::join!(biased; bdev, controller, self.seen(by));
        bdev.and(controller).map_err(|e| rpc_fault(&e))?;
        let made = made?.map(|made| made.socket).unwrap_or_default();
        let mut paths = vec![root.path(&usual)];
        if !made.is_empty() {
            if Path::new(&made).file_name() != Some(self.name.as_ref()) {
                let text = format!("the target made the socket of {} at {made}", self.name);
                return Err(Fault::new(Code::DeepRefused, text));
            }
            paths.insert(0, root.path(&made));
        }
        Ok(paths)
    }

    async fn seen(&self, by: Instant) -> Result<Option<Controller>, Fault> {
        let all = self.spdk.controllers(left(by)).await.map_err(|e| rpc_fault(&e))?;
        Ok(all.into_iter().find(|one| one.ctrlr == self.name))
    }

    /// Looks at the time `at` whether the target has refused to start the connected session. Returns `false` if that time is
    /// after `by`, or the target does not answer by then.
    pub(super) async fn is_refused(&self, at: Instant, by: Instant) -> bool {
        sleep_until(at.min(by)).await;
        if at >= by {
            return false;
        }
        let seen = self.seen(by).await.ok().flatten();
        let sessions = seen.map(|seen| seen.sessions).unwrap_or_default();
        sessions.iter().any(|session| !session.started && session.max_queues > 0)
    }

    /// Removes the controller, once no session is connected, and the bdev.
    ///
    /// # Errors
    /// When the canary could not be removed by the deadline `by`; it stays on the target.
    pub(super) async fn remove(&self, by: Instant) -> Result<(), Fault> {
        if !self.begun {
            return Ok(());
        }
        self.take_away(by).await.map_err(|fault| {
            let text = format!(
                "{} stays on the target, and the next deep probe will try to take it away: {}",
                self.name, fault.text
            );
            Fault::new(Code::DeepCanaryLeft, text)
        })
    }

    async fn take_away(&self, by: Instant) -> Result<(), Fault> {
        while let Some(seen) = self.seen(by).await? {
            if seen.sessions.is_empty() {
                match self.spdk.delete_controller(&self.name, left(by)).await {
                    Ok(()) => break,
                    Err(e) if e.is_not_found() => break,
                    // SPDK before 24.09 also returns this error while a session is still being closed.
                    Err(e) if e.is_busy() => {}
                    Err(e) => return Err(rpc_fault(&e)),
                }
            }
            if left(by) <= PAUSE {
                let text = "its session has not ended, though its connection has".to_string();
                return Err(Fault::new(Code::DeepSessionLeft, text));
            }
            sleep(PAUSE).await;
        }
        match self.spdk.delete_bdev(&self.name, &MEMORY, left(by)).await {
            Err(e) if !e.is_not_found() => Err(rpc_fault(&e)),
            _ => Ok(()),
        }
    }
}

/// Removes the canaries of agents that died, and own ones that are not in use. A failure is logged, and that canary
/// stays. `at_work` returns the numbers of own canaries in use on any target, because one target may be known by two
/// paths. It is called after the disks are listed, so that a canary created later is not in the list.
pub(super) async fn clear_leftovers(
    spdk: &Spdk,
    root: &Root,
    at_work: impl Fn() -> BTreeSet<u64>,
    by: Instant,
) {
    let within = left(by);
    let (controllers, bdevs) = tokio::join!(spdk.controllers(within), spdk.bdevs(within));
    let (Ok(controllers), Ok(bdevs)) = (controllers, bdevs) else { return };
    let names = controllers.iter().map(|one| &one.ctrlr).chain(bdevs.iter().map(|one| &one.name));
    let at_work = at_work();
    let orphans: BTreeSet<&String> = names.filter(|name| is_orphan(root, &at_work, name)).collect();
    for name in orphans {
        let connected =
            controllers.iter().any(|one| one.ctrlr == *name && !one.sessions.is_empty());
        if connected {
            tracing::warn!(%name, "the disk {name} of an earlier deep probe has a session, and is not removed");
            continue;
        }
        match (Canary { spdk: spdk.clone(), name: name.clone(), begun: true }).take_away(by).await {
            Ok(()) => tracing::info!(%name, "the disk {name} of an earlier deep probe was removed"),
            Err(fault) => {
                tracing::warn!(%name, "the disk {name} of an earlier deep probe could not be removed: {}", fault.text)
            }
        }
    }
}

/// `true` if `name` is the name of a canary whose agent has died, or of an own canary with a number that is not in
/// `at_work`.
fn is_orphan(root: &Root, at_work: &BTreeSet<u64>, name: &str) -> bool {
    let Some((pid, since, number)) = maker(name) else { return false };
    match pid == std::process::id() {
        true => !at_work.contains(&number),
        false => started(root, pid) != Some(since),
    }
}

/// Pid and start time of the agent that created the canary `name`, and the canary's number; `None` if it is no canary's
/// name.
fn maker(name: &str) -> Option<(u32, u64, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let pid = parts.next()?.parse().ok()?;
    let (since, number) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((pid, since, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_wholly_a_canarys_are_taken_for_one() {
        assert_eq!(maker("vhost-agent-probe-7-4711-0"), Some((7, 4711, 0)));
        for name in
            ["disk", "vhost-agent-probe-", "vhost-agent-probe-7-1", "vhost-agent-probe-7-1-0-x"]
        {
            assert_eq!(maker(name), None, "{name}");
        }
    }

    #[test]
    fn what_another_living_agent_made_or_we_use_is_not_touched() {
        let (root, parent) = (Root::new("/"), std::os::unix::process::parent_id());
        let (since, pid) = (started(&root, parent).unwrap(), std::process::id());
        let at_work = BTreeSet::from([1]);
        let is_orphan = |pid: u32, since: u64, number: u64| {
            is_orphan(&root, &at_work, &format!("{PREFIX}{pid}-{since}-{number}"))
        };
        assert!(!is_orphan(parent, since, 0) && is_orphan(parent, since + 1, 0));
        assert!(!is_orphan(pid, 0, 1) && is_orphan(pid, 0, 0));
    }
}
