//! Metric families, from one snapshot of the agent.
//!
//! Labels that callers name are bounded: there are at most 64 targets, and volumes are counted for each target, not
//! listed one by one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::page::{ALONE, Page};
use crate::controller::outbox::Census;
use crate::controller::report::ReportCounts;
use crate::model::buffers::BufferWaits;
use crate::model::footprint::Footprint;
use crate::model::pools::{Pool, PoolKey};
use crate::model::status::TargetReport;
use crate::model::target::{TargetName, TargetState};
use crate::model::units::PageSize;

/// Values of one scrape, read from the agent.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) ready: bool,
    /// Lines of the log that were not written in time.
    pub(super) lost_lines: u64,
    /// Number of overdue pieces of work, by owner.
    pub(super) overdue: Vec<(&'static str, u64)>,
    pub(super) process: Option<Footprint>,
    pub(super) census: Census,
    pub(super) reports: ReportCounts,
    pub(super) targets: Vec<TargetFigures>,
    pub(super) pools: Vec<PoolFigures>,
    /// Reserved pages of each size.
    pub(super) reserved: BTreeMap<PageSize, u64>,
}

#[derive(Debug)]
pub(super) struct TargetFigures {
    pub(super) report: TargetReport,
    pub(super) wanted: bool,
    pub(super) exits: u64,
    pub(super) sessions: u64,
    pub(super) last_answer: Option<Duration>,
    /// Requests that had to wait for an I/O buffer; `None` if the target does not count them.
    pub(super) buffer_waits: Option<BufferWaits>,
}

#[derive(Debug)]
pub(super) struct PoolFigures {
    pub(super) pool: Pool,
    /// Pages grown by the agent in this boot and not given back.
    pub(super) grown: u64,
    /// Pages of the pool that the agent restores at each boot: its reservations, and pages that it keeps beyond them.
    pub(super) wanted: u64,
    /// Free pages that are kept for open reservations.
    pub(super) promised: u64,
    /// Free pages that are kept for guests that arrive by migration.
    pub(super) arrival: u64,
}

const STATES: [TargetState; 6] = [
    TargetState::Absent,
    TargetState::Starting,
    TargetState::Serving,
    TargetState::Degraded,
    TargetState::Paused,
    TargetState::Failed,
];

impl Collector for Gathered {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page::new(encoder);
        self.agent(&mut page)?;
        self.process(&mut page)?;
        self.tasks(&mut page)?;
        self.callbacks(&mut page)?;
        self.reports(&mut page)?;
        self.targets(&mut page)?;
        self.volumes(&mut page)?;
        self.pools(&mut page)
    }
}

impl Gathered {
    fn agent(&self, page: &mut Page<'_>) -> fmt::Result {
        let about = ("vhost_build_info", "The agent that runs; always 1.");
        page.gauges(about, [([("version", env!("CARGO_PKG_VERSION"))], 1)])?;
        let about = ("vhost_ready", "Whether calls are taken.");
        page.gauge(about, Some(self.ready.into()))?;
        let help = "Lines of the log that nobody took in time.";
        page.counters(("vhost_log_lines_lost", help), [(ALONE, self.lost_lines)])?;
        let about = ("vhost_work_overdue", "Pieces of work that take longer than they may.");
        page.gauges(about, self.overdue.iter().map(|(owner, count)| ([("owner", *owner)], *count)))
    }

    /// Process metrics, under the names that every exporter has for them.
    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(own) = &self.process else { return Ok(()) };
        let about = ("process_cpu_seconds", "CPU time of the agent, in user and kernel.");
        page.counter(about, own.cpu.as_secs_f64())?;
        let about = ("process_resident_memory_bytes", "Memory of the agent that is in RAM.");
        page.gauge(about, Some(own.resident_bytes))?;
        let about = ("process_virtual_memory_bytes", "Address space of the agent.");
        page.gauge(about, Some(own.virtual_bytes))?;
        let about = ("process_threads", "Threads of the agent.");
        page.gauge(about, Some(own.threads))?;
        let about = ("process_open_fds", "Open file descriptors of the agent.");
        page.gauge(about, Some(own.open_files))?;
        page.gauge(("process_max_fds", "How many it may have open."), own.most_files)?;
        let about = ("process_start_time_seconds", "When the agent was started, since 1970.");
        page.seconds(about, [(ALONE, own.started.as_secs_f64())])
    }

    fn tasks(&self, page: &mut Page<'_>) -> fmt::Result {
        let Census { at_work, going_on, counts, .. } = &self.census;
        let by_call = |counts: &BTreeMap<&'static str, u64>| -> Vec<_> {
            counts.iter().map(|(call, count)| ([("call", *call)], *count)).collect()
        };
        let about = ("vhost_tasks_in_progress", "Asynchronous calls in progress.");
        page.gauges(about, by_call(at_work))?;
        let help = "Tasks that run on after the controller's timeout for them.";
        page.gauge(("vhost_tasks_overdue", help), Some(*going_on as u64))?;
        let about = ("vhost_tasks_accepted", "Asynchronous calls that were accepted.");
        page.counters(about, by_call(&counts.taken_in))?;
        let help = "Asynchronous calls that were ignored, for their task was known.";
        page.counters(("vhost_tasks_repeated", help), [(ALONE, counts.repeated)])?;
        let refused =
            counts.refused.iter().map(|(code, count)| ([("code", code.as_str())], *count));
        page.counters(("vhost_tasks_refused", "Asynchronous calls that were refused."), refused)
    }

    fn callbacks(&self, page: &mut Page<'_>) -> fmt::Result {
        let Census { waiting, oldest, counts, .. } = &self.census;
        let about =
            ("vhost_callbacks_pending", "Results that are pending delivery to the controller.");
        page.gauge(about, Some(*waiting as u64))?;
        let help = "Age of the oldest pending result; 0 where there is none.";
        let age = oldest.unwrap_or_default().as_secs_f64();
        page.seconds(("vhost_callbacks_oldest_age_seconds", help), [(ALONE, age)])?;
        let attempts = [
            ([("outcome", "delivered")], counts.taken),
            ([("outcome", "not-expected")], counts.not_waited_for),
            ([("outcome", "failed")], counts.failed),
        ];
        let about = ("vhost_callback_attempts", "Attempts to deliver a result to the controller.");
        page.counters(about, attempts)?;
        let help = "Results that expired before they were delivered (callbacks.max_age).";
        page.counters(("vhost_callbacks_expired", help), [(ALONE, counts.given_up)])
    }

    fn reports(&self, page: &mut Page<'_>) -> fmt::Result {
        let counts = &self.reports;
        let attempts = [
            ([("outcome", "accepted")], counts.taken),
            ([("outcome", "unknown")], counts.unknown),
            ([("outcome", "failed")], counts.failed),
            ([("outcome", "superseded")], counts.overtaken),
        ];
        let help = "Attempts to send a status report to the controller.";
        page.counters(("vhost_report_attempts", help), attempts)?;
        let about =
            ("vhost_report_last_accepted", "1 if the controller accepted the last report, else 0.");
        page.gauge(about, counts.last_taken.map(u64::from))?;
        let help = "When the controller accepted a report last, since 1970.";
        page.gauge(("vhost_report_last_accepted_timestamp_seconds", help), counts.taken_at)
    }

    fn targets(&self, page: &mut Page<'_>) -> fmt::Result {
        let each = |figure: fn(&TargetFigures) -> u64| {
            let line = move |it| (target(it), figure(it));
            self.targets.iter().map(line)
        };
        let words = STATES.map(|state| (state, state.to_string()));
        let states = self.targets.iter().flat_map(|it| {
            let [name] = target(it);
            words.iter().map(move |(state, word)| {
                ([name, ("state", word.as_str())], u64::from(it.report.state == *state))
            })
        });
        let about =
            ("vhost_target_state", "1 for the current state of a target, 0 for the others.");
        page.gauges(about, states)?;
        let about = ("vhost_target_desired", "1 if a target is desired, else 0.");
        page.gauges(about, each(|it| it.wanted.into()))?;
        let answers =
            self.targets.iter().filter_map(|it| Some((target(it), it.last_answer?.as_secs_f64())));
        let help = "Age of the last answer of a target's control socket.";
        page.seconds(("vhost_target_last_answer_age_seconds", help), answers)?;
        let about = ("vhost_target_exits", "Exits of a target's process.");
        page.counters(about, each(|it| it.exits))?;
        let about = ("vhost_target_restarts", "Restarts of a target by the agent.");
        page.counters(about, each(|it| it.report.restarts))?;
        let waits = self.targets.iter().filter_map(|it| Some((target(it), it.buffer_waits?)));
        let waits = waits.flat_map(|([name], BufferWaits { small, large })| {
            [([name, ("pool", "small")], small), ([name, ("pool", "large")], large)]
        });
        let help = "Requests in a target that had to wait for an I/O buffer.";
        page.counters(("vhost_target_buffer_waits", help), waits)
    }

    fn volumes(&self, page: &mut Page<'_>) -> fmt::Result {
        let volumes = self.targets.iter().flat_map(|it| {
            let tally = it.report.volumes;
            let known = tally.serving + tally.degraded + tally.stuck;
            let counts = [
                ("pending", tally.wanted.saturating_sub(known)),
                ("serving", tally.serving),
                ("degraded", tally.degraded),
                ("stuck", tally.stuck),
            ];
            let [name] = target(it);
            counts.map(|(state, count)| ([name, ("state", state)], count as u64))
        });
        let about = ("vhost_target_volumes", "Desired volumes of a target, by state.");
        page.gauges(about, volumes)?;
        let help = "Virtual machines connected to a target's volumes, as observed last.";
        let sessions = self.targets.iter().map(|it| (target(it), it.sessions));
        page.gauges(("vhost_target_sessions", help), sessions)?;
        let help = "Volumes whose virtual machine has not reconnected since their target's exit.";
        let gone = |it: &TargetFigures| it.report.volumes.disconnected_sessions as u64;
        let gone = self.targets.iter().map(|it| (target(it), gone(it)));
        page.gauges(("vhost_target_disconnected_sessions", help), gone)
    }

    fn pools(&self, page: &mut Page<'_>) -> fmt::Result {
        type Figure = fn(&PoolFigures) -> u64;
        let families: [(&str, &str, Figure); 7] = [
            ("vhost_pool_pages", "Pages of a pool, surplus ones included.", |it| it.pool.total),
            (
                "vhost_pool_free_pages",
                "Free pages of a pool, some of which may be reserved.",
                |it| it.pool.free,
            ),
            ("vhost_pool_surplus_pages", "Surplus pages of a pool.", |it| it.pool.surplus),
            ("vhost_pool_grown_pages", "Pages of a pool that the agent added and owns.", |it| {
                it.grown
            }),
            (
                "vhost_pool_desired_pages",
                "Pages of a pool that the agent takes again at each boot.",
                |it| it.wanted,
            ),
            (
                "vhost_pool_promised_pages",
                "Free pages of a pool that are kept for open reservations.",
                |it| it.promised,
            ),
            (
                "vhost_pool_arrival_reserve_pages",
                "Free pages of a pool that are kept for guests that arrive by migration.",
                |it| it.arrival,
            ),
        ];
        let names: Vec<(String, String)> =
            self.pools.iter().map(|it| pool_names(it.pool.key)).collect();
        for (name, help, figure) in families {
            let lines = self.pools.iter().zip(&names).map(|(it, (node, size))| {
                ([("node", node.as_str()), ("page_size", size.as_str())], figure(it))
            });
            page.gauges((name, help), lines)?;
        }
        let reserved: Vec<(String, u64)> =
            self.reserved.iter().map(|(size, pages)| (size.to_string(), *pages)).collect();
        let lines = reserved.iter().map(|(size, pages)| ([("page_size", size.as_str())], *pages));
        let help = "Free pages that are promised to somebody, on the whole machine.";
        page.gauges(("vhost_reserved_pages", help), lines)
    }
}

fn target(figures: &TargetFigures) -> [(&'static str, &str); 1] {
    [("target", figures.report.name.as_str())]
}

/// Names of a pool, as sysfs and hugetlbfs write them: `0`, `2M`.
fn pool_names(key: PoolKey) -> (String, String) {
    (key.node.0.to_string(), key.size.to_string())
}

/// Age of the last answer of the target `name`; the least, if `ages` has several of it.
pub(super) fn age_of(ages: &[(TargetName, Duration)], name: &TargetName) -> Option<Duration> {
    ages.iter().filter(|(other, _)| other == name).map(|(_, age)| *age).min()
}

#[cfg(test)]
#[path = "families_tests.rs"]
mod tests;
