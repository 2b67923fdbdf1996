//! Test disk of the agent on a target: a small malloc bdev and a vhost controller on it, both under one name that
//! identifies their owner, created for one probe and removed after it.
//!
//! A controller is only deleted once it is observed without a session (packaging/doc/facts.md, "Traps"), a bdev only when
//! no controller is on it. What cannot be removed in time stays, is reported, and is removed by the next probe; so are
//! leftovers of an agent that died.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

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

/// Interval of the checks for the session's end.
const PAUSE: Duration = Duration::from_millis(10);
/// Storage of the disk.
const MEMORY: Backing =
    Backing::Malloc { size_mib: (DISK >> 20) as u64, block_size: SECTOR as u32 };

/// Test disk of this agent.
#[derive(Debug)]
pub(super) struct Canary {
    spdk: Spdk,
    name: String,
    /// Set once creation was begun: then there is something to remove.
    begun: bool,
}

/// Time left until a deadline.
fn left(by: Instant) -> Duration {
    by.saturating_duration_since(Instant::now())
}

/// Fault of a probe's failed call.
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
    /// Names a canary; nothing is created yet.
    pub(super) fn new(spdk: &Spdk, root: &Root, number: u64) -> Canary {
        let pid = std::process::id();
        let since = started(root, pid).unwrap_or_default();
        let name = format!("{PREFIX}{pid}-{since}-{number}");
        Canary { spdk: spdk.clone(), name, begun: false }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Creates it; returns the paths at which its socket may be visible from here, all of which end with its name.
    pub(super) async fn make(
        &mut self,
        root: &Root,
        control: &CleanPath,
        by: Instant,
    ) -> Result<Vec<PathBuf>, Fault> {
        let folder = Path::new(control.as_str()).parent().unwrap_or(Path::new("/"));
        let usual = folder.join(&self.name).display().to_string();
        // SPDK would truncate the name and take whatever socket is there.
        validate_length(&usual.parse()?)?;
        self.begun = true;
        let bdev = self.spdk.create_bdev(&self.name, &MEMORY, left(by));
        let controller = self.spdk.create_controller(&self.name, &self.name, false, None, left(by));
        // One after the other on one connection, without waiting for the target's next poll.
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

    /// Removes it, once nobody is connected to it.
    ///
    /// # Errors
    /// When that failed by the deadline; it stays.
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
                    // Before 24.09 this error is also returned while the end of a session is not complete.
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

/// Removes leftovers of dead agents. Failures are logged, and the disk stays. `at_work` returns the numbers of our own
/// canaries in use, as a target can be known by two paths. It is called after the disks are listed, so that a canary
/// created later is not among them.
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
            tracing::warn!(%name, "a disk that a probe left has a session, and is left alone");
            continue;
        }
        match (Canary { spdk: spdk.clone(), name: name.clone(), begun: true }).take_away(by).await {
            Ok(()) => tracing::info!(%name, "a disk that a probe left was taken away"),
            Err(fault) => tracing::warn!(%name, "a disk that a probe left stays: {}", fault.text),
        }
    }
}

/// `true` for the name of a canary whose agent is gone, or of one of our own that is not in use.
fn is_orphan(root: &Root, at_work: &BTreeSet<u64>, name: &str) -> bool {
    let Some((pid, since, number)) = maker(name) else { return false };
    match pid == std::process::id() {
        true => !at_work.contains(&number),
        false => started(root, pid) != Some(since),
    }
}

/// Pid and start time of the agent that created it, and its number.
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
