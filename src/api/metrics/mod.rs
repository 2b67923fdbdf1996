//! `GET /metrics`: counters and measurements of the agent, for Prometheus.
//!
//! ```text
//! counters where things happen, watch channel, ledger ──┐
//! pools' counters and the own process, off the runtime ─┴▶ Gathered (families) ──▶ page ──▶ text
//! requests that pass (requests) ─────────────────────────────────────────────────┘
//! ```
//! A scrape asks no target and no engine, forks nothing, and waits for nothing but the kernel's counters, and not long
//! for those. Unknown values are left out.

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
use crate::model::pools::{Pool, PoolsSeen};
use crate::model::status::{TargetReport, TargetStatus, TargetStatuses};

/// Media type that Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Owners whose work has a limit.
const OWNERS: [&str; 4] = ["engine", "outbox", "pools", "target"];
const PLAIN_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Sources of the metrics that the handlers do not have otherwise.
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

    /// Layer of a router whose requests are to be counted.
    pub(super) fn counting(&self) -> Requests {
        self.requests.clone()
    }
}

/// Page of all metrics, as OpenMetrics where that is requested.
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

/// `true` if the caller names that form: only those that prefer it do.
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
    let (report, ages) = (api.reports.borrow().clone(), api.native.targets.last_answers());
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
            report: report.clone(),
        }
    };
    report.targets.iter().map(figures).collect()
}

fn pool_figures(seen: &PoolsSeen, metrics: &Metrics) -> Vec<PoolFigures> {
    let Published { mut ledger, wanted, .. } = metrics.records.borrow().clone();
    // Others may have changed the pools since the agent last did.
    ledger.reconcile(seen);
    let figures = |pool: &Pool| PoolFigures {
        pool: *pool,
        grown: ledger.grown(pool.key),
        wanted: wanted.get(&pool.key).copied().unwrap_or(0),
    };
    seen.pools.iter().map(figures).collect()
}
