//! Guests of the node's volumes: observed periodically, for all targets at once, while some are connected.
//!
//! No call, no start of a target and no pass over its volumes waits for an observation: its result is published, and
//! each target's task reads it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::observe::guests::GuestObserver;
use crate::model::guest::Guests;
use crate::model::status::{TargetStatus, TargetStatuses};
use crate::model::target::TargetState;

/// Minimum pause between two observations, each of which reads the name of every process.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// Number of times that an observation is postponed to leave the processors to a starting target. With more, a target
/// that never comes up would keep the guests of other targets unknown.
const MOST_PUT_OFF: usize = 3;
/// Failed observations in a row after which the last result is not valid any more.
const MOST_FAILED: usize = 3;

/// Observes guests for as long as the agent runs, with `pause` between two observations.
pub async fn follow(
    observer: GuestObserver,
    statuses: watch::Receiver<TargetStatuses>,
    pause: Duration,
    seen: watch::Sender<Arc<Guests>>,
) {
    let (mut put_off, mut failed) = (0, 0);
    loop {
        sleep(pause.max(LEAST_PAUSE)).await;
        let (sockets, busy) = {
            let statuses = statuses.borrow();
            (connected(&statuses), statuses.values().any(comes_up))
        };
        if busy && put_off < MOST_PUT_OFF {
            put_off += 1;
            continue;
        }
        put_off = 0;
        if sockets.is_empty() {
            continue;
        }
        let found = observer.look(sockets.clone()).await;
        failed = if found.is_some() { 0 } else { failed + 1 };
        if failed == MOST_FAILED {
            tracing::warn!(
                "the reconnect settings of the guests are unknown: their processes could not be read {failed} times in a row; \
                 if one hangs in the kernel, `ps -eo pid,stat,comm` lists that process with the state D"
            );
        }
        // The last result stays valid over a few failures. A result equal to the last is published too: its guest may
        // be another one.
        if found.is_some() || failed >= MOST_FAILED {
            let unknown = || sockets.into_iter().map(|socket| (socket, None)).collect();
            seen.send_replace(Arc::new(found.unwrap_or_else(unknown)));
        }
    }
}

/// Sockets with a connected virtual machine.
fn connected(statuses: &TargetStatuses) -> BTreeSet<String> {
    let volumes = statuses.values().flat_map(|status| status.volume_statuses.values());
    volumes.filter(|it| it.sessions > 0).map(|it| it.socket_path.clone()).collect()
}

fn comes_up(status: &TargetStatus) -> bool {
    status.health.as_ref().is_some_and(|health| health.state == TargetState::Starting)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the test puts files in place
mod tests {
    use std::fs;

    use tokio::time::{Instant, advance, timeout};

    use super::*;
    use crate::host::Root;
    use crate::model::policy::VolumePolicy;
    use crate::model::target::TargetHealth;
    use crate::model::volume::{VolumeStatus, Volumes};

    fn status(state: TargetState, sessions: usize) -> TargetStatuses {
        let socket_path = "/s/v".to_string();
        let volume = VolumeStatus { sessions, socket_path, ..VolumeStatus::unknown() };
        let health = TargetHealth {
            name: "a".parse().unwrap(),
            state,
            reason: String::new(),
            since: String::new(),
            version: None,
            age_ms: None,
            pid: None,
        };
        let volume_statuses = Arc::new(Volumes::from([("v".parse().unwrap(), volume)]));
        let status =
            TargetStatus { health: Some(health), volume_statuses, ..TargetStatus::default() };
        [("a".parse().unwrap(), status)].into()
    }

    /// A procfs with one machine, which connects to the volume.
    fn proc_of_one() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/proc/70")).unwrap();
        fs::write(root.path("/proc/70/comm"), "kvm\n").unwrap();
        fs::write(root.path("/proc/70/cmdline"), "kvm\0-chardev\0socket,path=/s/v\0").unwrap();
        fs::write(root.path("/proc/70/status"), "Uid:\t0\t0\t0\t0\n").unwrap();
        (folder, root)
    }

    fn machine_in(guests: &Guests) -> Option<String> {
        guests["/s/v"].as_ref().map(|guest| guest.machine.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn guests_are_looked_for_while_some_are_connected_and_not_while_a_target_comes_up() {
        let (_folder, root) = proc_of_one();
        let (statuses, seen) = (watch::Sender::default(), watch::Sender::default());
        let mut guests = seen.subscribe();
        let pause = Duration::from_secs(10);
        let observer = GuestObserver::new(&root, VolumePolicy::default());
        tokio::spawn(follow(observer, statuses.subscribe(), pause, seen));
        let began = Instant::now();
        for unneeded in [TargetStatuses::new(), status(TargetState::Serving, 0)] {
            statuses.send_replace(unneeded);
            assert!(timeout(Duration::from_secs(28), guests.changed()).await.is_err());
        }
        statuses.send_replace(status(TargetState::Starting, 1));
        guests.changed().await.unwrap();
        assert_eq!(machine_in(&guests.borrow_and_update()).as_deref(), Some("kvm (pid 70)"));
        assert_eq!(began.elapsed().as_secs(), 90, "it was put off three times");
        statuses.send_replace(status(TargetState::Serving, 1));
        guests.changed().await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn guests_are_unknown_once_several_looks_have_failed() {
        let (_folder, root) = proc_of_one();
        let cmdline = root.path("/proc/70/cmdline");
        fs::remove_file(&cmdline).unwrap();
        nix::unistd::mkfifo(&cmdline, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let statuses = watch::Sender::new(status(TargetState::Serving, 1));
        let seen = watch::Sender::default();
        let mut guests = seen.subscribe();
        let observer = GuestObserver::new(&root, VolumePolicy::default());
        tokio::spawn(follow(observer, statuses.subscribe(), Duration::from_secs(10), seen));
        let mut passed = 0;
        // The clock does not go on by itself while a look hangs.
        while passed < 60 && !guests.has_changed().unwrap() {
            advance(Duration::from_secs(1)).await;
            passed += 1;
        }
        // Lets the hanging look go.
        fs::write(&cmdline, "kvm").unwrap();
        assert!((30..=40).contains(&passed), "{passed}");
        assert_eq!(machine_in(&guests.borrow_and_update()), None);
    }
}
