//! Observation of the pools after calls of the legacy agent, which changes them without regard for reservations.
//!
//! ```text
//! call ends ──note_others──▶ follow ──look, 1 s, look, 3 s, look, …──▶ Pools ──▶ ledger ──▶ report, event
//! ```
//! An asynchronous call is acknowledged before its work begins, and an aborted one may go on: so the pools are observed
//! several times, and then no more.

use std::time::Duration;

use tokio::time::timeout;

use super::pools::Pools;

/// Pauses before the observations after a call, in seconds. The controller itself gives up after five minutes.
const PAUSES: [u64; 7] = [0, 1, 3, 10, 30, 90, 180];

/// Observes the pools after each call for as long as the agent runs.
pub async fn follow(pools: Pools) {
    loop {
        pools.others().await;
        let mut pauses = PAUSES.into_iter();
        while let Some(pause) = pauses.next() {
            // Cancel-safe: a call stays noted. A further call begins the pauses anew; its observations show the effects
            // of the call before it too.
            if timeout(Duration::from_secs(pause), pools.others()).await.is_ok() {
                pauses = PAUSES.into_iter();
                continue;
            }
            let report = pools.look().await;
            if report.errors.is_empty() && !report.steps.is_empty() {
                tracing::info!(
                    "the agent's hugepages were allocated again: they were missing after a call to the legacy agent"
                );
            }
            for fault in report.errors {
                tracing::warn!(code = %fault.code, "the agent's hugepages could not be verified or allocated again after a call to the legacy agent: {fault}");
            }
        }
    }
}
