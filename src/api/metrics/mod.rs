//! `GET /metrics`: counters and measurements of the agent, for Prometheus.
//!
//! ```text
//! counters where things happen, watch channel, ledger ──┐
//! pools' counters and the own process, off the runtime ─┴▶ Gathered (families) ──▶ page ──▶ text
//! requests that pass (requests) ─────────────────────────────────────────────────┘
//! ```
//! A scrape sends no request to a target or an engine and starts no process. It waits only for the kernel's counters,
//! and only for a limited time. Unknown values are left out.

mod families;
mod page;
mod plain;
mod requests;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use self::families::{Gathered, PoolFigures, TargetFigures, age_of};
use self::requests::Requests;
use super::errors::Problem;
use super::refusals::Refusals;
use super::{AgentPhase, Api, Shared};
use crate::agent::memory::Published;
use crate::agent::observe::figures::Figures;
use crate::controller::report::Tally;
use crate::model::code::Code;
use crate::model::pools::{PagesByPool, Pool, PoolsSeen};
use crate::model::status::{TargetReport, TargetStatus, TargetStatuses};

/// Media type that Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Owners of the work that has a time limit, by their names in `vhost_work_overdue`.
const OWNERS: [&str; 4] = ["engine", "outbox", "pools", "target"];
const PLAIN_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Sources of the metrics that no other dependency of the handlers provides.
#[derive(Debug)]
pub struct Metrics {
    requests: Requests,
    figures: Figures,
    records: watch::Receiver<Published>,
    statuses: watch::Receiver<TargetStatuses>,
    tally: Arc<Tally>,
    refusals: Refusals,
}

impl Metrics {
    pub fn new(
        figures: Figures,
        records: watch::Receiver<Published>,
        statuses: watch::Receiver<TargetStatuses>,
        tally: Arc<Tally>,
        refusals: Refusals,
    ) -> Metrics {
        Metrics { requests: Requests::default(), figures, records, statuses, tally, refusals }
    }

    /// Layer that counts the requests of a router.
    pub(super) fn counting(&self) -> Requests {
        self.requests.clone()
    }
}

/// Page of all metrics: in OpenMetrics if the caller accepts it, else in the older text format.
pub async fn get(State(api): State<Shared>, headers: HeaderMap) -> Response {
    let gathered = gather(&api).await;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(gathered));
    registry.register_collector(Box::new(api.metrics.requests.clone()));
    registry.register_collector(Box::new(api.metrics.refusals.clone()));
    let mut page = String::with_capacity(16 * 1024);
    if let Err(e) = text::encode(&mut page, &registry) {
        let text = format!("the metrics cannot be written: {e}; this is a bug, report it");
        return Problem::new(Code::Internal, text).into_response();
    }
    match wants_open_metrics(&headers) {
        true => ([(header::CONTENT_TYPE, OPEN_METRICS_TYPE)], page).into_response(),
        false => ([(header::CONTENT_TYPE, PLAIN_TYPE)], plain::plain(&page)).into_response(),
    }
}

/// `true` if the header `Accept` names OpenMetrics. Its order of preference is ignored, because only callers that
/// prefer OpenMetrics name it.
fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|it| it.to_str().ok());
    accepted.any(|accepted| accepted.contains(OPEN_METRICS))
}

async fn gather(api: &Api) -> Gathered {
    let seen = api.metrics.figures.look().await;
    let reserved = seen.pools.as_ref().map(|pools| pools.reserved.clone());
    Gathered {
        ready: *api.native.phase.borrow() == AgentPhase::Serving,
        lost_lines: crate::log::lost(),
        overdue: OWNERS.map(|owner| (owner, crate::overdue::count(owner))).to_vec(),
        process: seen.process,
        census: api.outbox.census(),
        reports: api.metrics.tally.read(),
        targets: targets(api),
        pools: seen.pools.map(|pools| pool_figures(&pools, &api.metrics)).unwrap_or_default(),
        reserved: reserved.unwrap_or_default(),
    }
}

fn targets(api: &Api) -> Vec<TargetFigures> {
    let report = api.reports.borrow().clone();
    let (ages, waits) = (api.native.targets.last_answers(), api.native.targets.buffer_waits());
    let statuses = api.metrics.statuses.borrow();
    let desired = api.native.desired.borrow();
    let figures = |report: &TargetReport| {
        let status = statuses.get(&report.name);
        let sessions = |status: &TargetStatus| {
            status.volume_statuses.values().map(|volume| volume.sessions).sum::<usize>()
        };
        TargetFigures {
            wanted: desired.targets.contains_key(&report.name),
            exits: status.map_or(0, |status| status.exits),
            sessions: status.map_or(0, sessions) as u64,
            last_answer: age_of(&ages, &report.name),
            buffer_waits: waits.iter().find(|(name, _)| *name == report.name).map(|(_, it)| *it),
            report: report.clone(),
        }
    };
    report.targets.iter().map(figures).collect()
}

fn pool_figures(seen: &PoolsSeen, metrics: &Metrics) -> Vec<PoolFigures> {
    let Published { mut ledger, wanted, arrival, .. } = metrics.records.borrow().clone();
    // Other programs may have changed the pools since the agent last changed them.
    ledger.reconcile(seen);
    let promised = ledger.promised();
    let pages = |of: &PagesByPool, pool: &Pool| of.get(&pool.key).copied().unwrap_or(0);
    let figures = |pool: &Pool| PoolFigures {
        pool: *pool,
        grown: ledger.grown(pool.key),
        wanted: pages(&wanted, pool),
        promised: pages(&promised, pool),
        arrival: pages(&arrival, pool),
    };
    seen.pools.iter().map(figures).collect()
}
