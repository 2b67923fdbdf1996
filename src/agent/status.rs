//! Status of the node, merged from all owners and published for the controller and the API.
//!
//! ```text
//! statuses, desired targets, identity, pools ──▶ one task ──▶ NodeReport, each change a new generation
//! ```
//! A change of a target's state is published with the pools as observed last, for news of an exit must
//! not wait for counters.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::events::Events;
use super::memory::Published;
use super::observe::blocking;
use super::observe::memory::MemoryObserver;
use crate::model::event::What;
use crate::model::fault::{Fault, Finding};
use crate::model::identity::HostIdentity;
use crate::model::pools::{PagesByPool, Pool};
use crate::model::status::{NodeReport, PoolReport, TargetStatuses, target_reports};
use crate::model::target::Desired;
use crate::plan::shortages::Shortages;
use crate::wait;
use crate::watchdog::Heartbeat;

/// Interval of observing the pools: other programs take pages and give them back without notice.
const POOLS_PAUSE: Duration = Duration::from_secs(10);

/// Sources of the status.
#[derive(Debug)]
pub struct Sources {
    pub statuses: watch::Receiver<TargetStatuses>,
    pub desired: watch::Receiver<Desired>,
    /// Ledger of the agent's pages.
    pub records: watch::Receiver<Published>,
    /// Identity of this host at the controller.
    pub identity: watch::Receiver<HostIdentity>,
    /// Observer of the pools.
    pub memory: MemoryObserver,
    /// Publisher for new findings.
    pub events: Events,
}

/// Subscription to the newest report.
pub type Reports = watch::Receiver<Arc<NodeReport>>;

type Observing = Pin<Box<dyn Future<Output = Result<Vec<PoolReport>, Fault>> + Send>>;

struct StatusObserver {
    sources: Sources,
    pools: Vec<PoolReport>,
    look: Option<Observing>,
    /// Set if the ledger has changed since the current observation began.
    look_again: bool,
    /// Set if the last observation failed, which is logged once.
    blind: bool,
    /// Finding of lost pages that was published last.
    finding: Option<Finding>,
    /// Findings of too few free pages for guests.
    shortages: Shortages,
    reports: watch::Sender<Arc<NodeReport>>,
}

/// Starts the task. Blocks for some counters.
///
/// # Errors
/// When the boot id cannot be read.
pub fn start(sources: Sources, heartbeat: Heartbeat) -> Result<Reports, Fault> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = NodeReport {
        boot_id: sources.memory.boot_id()?,
        agent_version: env!("CARGO_PKG_VERSION").to_string(),
        // Begins at the time in ms, so that generations grow over restarts: no run changes its status more often than
        // once per ms.
        generation: u64::try_from(since_1970.as_millis()).unwrap_or_default(),
        at: now(),
        ..NodeReport::default()
    };
    let records = sources.records.borrow().clone();
    let looked = pool_reports(&sources.memory, records);
    let reports = watch::Sender::new(Arc::new(first));
    let mut status = StatusObserver {
        sources,
        pools: Vec::new(),
        look: None,
        look_again: false,
        blind: false,
        finding: None,
        shortages: Shortages::default(),
        reports,
    };
    status.looked(looked);
    status.publish();
    let reports = status.reports.subscribe();
    let mut ticks = interval(POOLS_PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(status.run(ticks, heartbeat));
    Ok(reports)
}

impl StatusObserver {
    async fn run(mut self, mut ticks: Interval, mut heartbeat: Heartbeat) {
        loop {
            tokio::select! {
                // Each is cancel-safe: unseen changes stay changes, a tick and a heartbeat stay due, and the
                // observation is kept.
                () = wait::change(&mut self.sources.statuses) => {}
                () = wait::change(&mut self.sources.desired) => {}
                () = wait::change(&mut self.sources.identity) => {}
                () = wait::change(&mut self.sources.records) => self.look_now(),
                _ = ticks.tick() => self.look_now(),
                pools = wait::end(&mut self.look) => self.looked(pools),
                () = heartbeat.due() => continue,
            }
            self.publish();
        }
    }

    fn look_now(&mut self) {
        if self.look.is_some() {
            self.look_again = true;
            return;
        }
        let (memory, records) = (self.sources.memory.clone(), self.sources.records.clone());
        self.look = Some(Box::pin(async move {
            let records = records.borrow().clone();
            blocking(move || pool_reports(&memory, records)).await?
        }));
    }

    fn looked(&mut self, pools: Result<Vec<PoolReport>, Fault>) {
        self.look = None;
        match pools {
            Ok(pools) => (self.pools, self.blind) = (pools, false),
            Err(fault) if !self.blind => {
                self.blind = true;
                tracing::warn!(
                    code = %fault.code,
                    "the hugepage pools could not be read, and are reported as last read: {}", fault.text
                );
            }
            Err(_) => {}
        }
        if std::mem::take(&mut self.look_again) {
            self.look_now();
        }
    }

    /// Publishes a change of the finding of lost pages.
    fn publish_lost_pages(&mut self) {
        // From the owner's ledger alone: an observation from here may race with a change by the owner.
        let finding = self.sources.records.borrow().ledger.finding();
        if finding == self.finding {
            return;
        }
        match &finding {
            Some(finding) => {
                tracing::warn!(code = %finding.code, "{}", finding.text);
                self.sources.events.publish(What::Finding(finding.clone()));
            }
            None => tracing::info!("none of the agent's hugepages are missing any more"),
        }
        self.finding = finding;
    }

    /// Publishes the node's status if it has changed.
    fn publish(&mut self) {
        self.publish_lost_pages();
        for finding in self.shortages.see(&self.pools, Instant::now()) {
            tracing::warn!(code = %finding.code, "{}", finding.text);
            self.sources.events.publish(What::Finding(finding));
        }
        let now = now();
        self.reports.send_if_modified(|newest| {
            let statuses = self.sources.statuses.borrow();
            let desired = self.sources.desired.borrow();
            let of_pools = self.finding.iter().chain(self.shortages.findings());
            let of_targets = statuses.values().flat_map(|status| &status.findings);
            let next = NodeReport {
                host_uuid: self.sources.identity.borrow().host_uuid.clone(),
                targets: target_reports(&statuses, &desired, &newest.targets, &now),
                pools: self.pools.clone(),
                findings: of_pools.chain(of_targets).cloned().collect(),
                ..(**newest).clone()
            };
            let changed = next != **newest;
            if changed {
                let generation = newest.generation + 1;
                *newest = Arc::new(NodeReport { generation, at: now.clone(), ..next });
            }
            changed
        });
    }
}

/// Observes the pools. Blocks.
fn pool_reports(memory: &MemoryObserver, records: Published) -> Result<Vec<PoolReport>, Fault> {
    let Published { mut ledger, arrival, .. } = records;
    let promised = ledger.promised();
    let pages = |of: &PagesByPool, pool: &Pool| of.get(&pool.key).copied().unwrap_or(0);
    let seen = memory.counters()?;
    // Others may have changed the pools since the agent last did.
    ledger.reconcile(&seen);
    let report = |pool: &Pool| PoolReport {
        size_kib: pool.key.size.kib(),
        node: pool.key.node,
        pages: pool.total,
        free_pages: pool.free,
        grown_pages: ledger.grown(pool.key),
        reserved_pages: pages(&promised, pool),
        arrival_pages: pages(&arrival, pool),
    };
    Ok(seen.pools.iter().map(report).collect())
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::host::Root;
    use crate::model::code::Code;
    use crate::model::ledger::Ledger;
    use crate::model::pools::{PoolKey, PoolsSeen};
    use crate::model::target::{TargetHealth, TargetSpec, TargetState};
    use crate::model::units::{NumaNode, PageSize};
    use crate::watchdog::Watchdog;

    struct Played {
        root: tempfile::TempDir,
        statuses: watch::Sender<TargetStatuses>,
        desired: watch::Sender<Desired>,
        records: watch::Sender<Published>,
        identity: watch::Sender<HostIdentity>,
        events: Events,
        reports: Reports,
    }

    const POOL: &str = "sys/devices/system/node/node0/hugepages/hugepages-2048kB";

    impl Played {
        fn start() -> Played {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in [
                ("proc/sys/kernel/random/boot_id", "the-boot\n"),
                ("proc/meminfo", "MemTotal: 1 kB\nMemAvailable: 1 kB\n"),
                (&format!("{POOL}/nr_hugepages"), "8\n"),
                (&format!("{POOL}/free_hugepages"), "5\n"),
                (&format!("{POOL}/surplus_hugepages"), "0\n"),
            ] {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            let (desired, identity) = (watch::Sender::default(), watch::Sender::default());
            let ledger = Ledger::new("the-boot");
            let records =
                watch::Sender::new(Published { ledger, remembered: true, ..Published::default() });
            let (statuses, events) = (watch::Sender::default(), Events::default());
            let sources = Sources {
                statuses: statuses.subscribe(),
                desired: desired.subscribe(),
                records: records.subscribe(),
                identity: identity.subscribe(),
                memory: MemoryObserver::new(&Root::new(root.path())).unwrap(),
                events: events.clone(),
            };
            let reports = start(sources, Watchdog::default().register()).unwrap();
            Played { root, statuses, desired, records, identity, events, reports }
        }

        fn publish(&self, health: TargetHealth) {
            self.statuses.send_modify(|all| {
                all.entry(health.name.clone()).or_default().health = Some(health.clone());
            });
        }

        async fn next(&mut self) -> Arc<NodeReport> {
            let changed = tokio::time::timeout(Duration::from_secs(20), self.reports.changed());
            changed.await.expect("a new generation").unwrap();
            self.reports.borrow_and_update().clone()
        }
    }

    fn health(state: TargetState, age_ms: u64) -> TargetHealth {
        TargetHealth {
            name: "a".parse().unwrap(),
            state,
            reason: "why".to_string(),
            since: "then".to_string(),
            version: None,
            age_ms: Some(age_ms),
            pid: None,
        }
    }

    #[tokio::test]
    async fn each_change_is_a_new_generation_and_a_new_age_is_none() {
        let mut played = Played::start();
        let first = played.reports.borrow_and_update().clone();
        assert_eq!((first.boot_id.as_str(), first.host_uuid.as_str()), ("the-boot", ""));
        assert_eq!((first.pools[0].pages, first.pools[0].free_pages), (8, 5));
        let mut generation = first.generation;
        let mut newer = |report: &NodeReport| {
            assert_eq!(report.generation, generation + 1);
            generation = report.generation;
        };
        let spec = TargetSpec::example("a");
        played.desired.send_modify(|d| drop(d.targets.insert(spec.name.clone(), spec)));
        let report = played.next().await;
        assert_eq!(report.targets[0].state, TargetState::Starting);
        newer(&report);
        played.publish(health(TargetState::Serving, 1));
        let report = played.next().await;
        assert_eq!(report.targets[0].state, TargetState::Serving);
        newer(&report);
        // An age, and what is known already, change nothing; so the next generation is the identity's.
        played.publish(health(TargetState::Serving, 2));
        played.desired.send_modify(|_| {});
        tokio::task::yield_now().await;
        played.identity.send_modify(|identity| identity.host_uuid = "5f0c".to_string());
        let report = played.next().await;
        assert_eq!(report.host_uuid, "5f0c");
        newer(&report);
    }

    #[tokio::test]
    async fn pools_are_observed_again_when_the_records_change() {
        let mut played = Played::start();
        played.reports.borrow_and_update();
        let counter = |name: &str| played.root.path().join(POOL).join(name);
        std::fs::write(counter("nr_hugepages"), "9\n").unwrap();
        played.records.send_modify(|_| {});
        assert_eq!(played.next().await.pools[0].pages, 9);
    }

    #[tokio::test]
    async fn lost_pages_are_a_finding_and_one_event_until_they_are_there_again() {
        let mut played = Played::start();
        let mut events = played.events.follow(None).1;
        played.reports.borrow_and_update();
        let key = PoolKey { size: PageSize::MIB_2, node: NumaNode(0) };
        let lose = |records: &mut Published| {
            records.ledger.set_grown(key, 3, 8);
            let pools = vec![Pool { key, total: 6, free: 5, surplus: 0 }];
            records.ledger.reconcile(&PoolsSeen { pools, ..PoolsSeen::default() });
        };
        played.records.send_modify(lose);
        while played.next().await.findings.first().is_none_or(|it| it.code != Code::PagesLost) {}
        played.records.send_modify(|_| {});
        played.records.send_modify(|records| records.ledger.set_grown(key, 3, 8));
        while !played.next().await.findings.is_empty() {}
        let What::Finding(event) = events.try_recv().unwrap().what else { panic!("another event") };
        assert_eq!((event.code, events.try_recv().is_err()), (Code::PagesLost, true));
    }

    #[tokio::test]
    async fn findings_about_a_target_are_findings_of_the_node() {
        let mut played = Played::start();
        played.publish(health(TargetState::Degraded, 1));
        let finding = Finding::new(Code::BuffersExhausted, "a: its buffers are exhausted");
        played.statuses.send_modify(|all| {
            all.values_mut().for_each(|status| status.findings = vec![finding.clone()]);
        });
        while played.next().await.findings != [finding.clone()] {}
    }

    #[tokio::test]
    async fn a_target_that_is_neither_wanted_nor_there_drops_out() {
        let mut played = Played::start();
        played.publish(health(TargetState::Failed, 1));
        assert_eq!(played.next().await.targets.len(), 1);
        played.publish(health(TargetState::Absent, 1));
        assert!(played.next().await.targets.is_empty());
    }
}
