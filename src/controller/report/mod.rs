//! Status reports to the controller: each change at once, and a heartbeat.
//!
//! ```text
//! agent::status ──newest report──▶ run: is it due? (schedule) ──one post at a time──▶ sendCommandUrl
//! /host/connect ──identity──────▶        └──◀── accepted, failed, unknown ──┘
//! ```
//! Nothing is queued: when an attempt has ended, the newest report is the next one. A newer report waits for a hanging
//! attempt for at most `HANGING_POST_LIMIT`. The attempt after a dropped one gets its full time, or a slow controller
//! would never be seen to accept anything.

mod schedule;
mod tally;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::watch;
use tokio::time::Instant;

use self::schedule::{ReportOutcome, ReportSchedule, Went};
pub use self::tally::{ReportCounts, Tally};
use super::client::ControllerClient;
use super::reaches::Reaches;
use crate::model::ascii::ascii_json;
use crate::model::egress_policy::Reach;
use crate::model::fault::chain;
use crate::model::identity::HostIdentity;
use crate::model::policy::ReportPolicy;
use crate::model::status::NodeReport;
use crate::model::url::text_without_secrets;
use crate::wait;
use crate::watchdog::Heartbeat;

/// Time for which a newer report waits for an attempt that hangs.
const HANGING_POST_LIMIT: Duration = Duration::from_secs(1);

/// Reports for ever, counts attempts, and sends the watchdog's heartbeats.
pub async fn run(
    policy: ReportPolicy,
    (client, reaches): (ControllerClient, Reaches),
    reports: watch::Receiver<Arc<NodeReport>>,
    identity: watch::Receiver<HostIdentity>,
    tally: Arc<Tally>,
    heartbeat: Heartbeat,
) {
    let client = Arc::new(client);
    let (within, path) = (policy.timeout, policy.command_path.clone());
    let named = !policy.url.is_empty();
    let attempt = move |url: String, report| {
        let (client, path) = (client.clone(), path.clone());
        // Any address is allowed that the operator has set.
        let reach = if named { Reach::Anywhere } else { reaches.of_controller() };
        async move { post(&client, &path, (&url, &reach), report, within).await }
    };
    Reporter { policy, reports, identity, tally, heartbeat, attempt }.run().await;
}

struct Reporter<A> {
    policy: ReportPolicy,
    reports: watch::Receiver<Arc<NodeReport>>,
    identity: watch::Receiver<HostIdentity>,
    tally: Arc<Tally>,
    heartbeat: Heartbeat,
    /// Posts a report to an address.
    attempt: A,
}

/// End of an attempt.
enum AttemptEnd {
    By(ReportOutcome),
    /// Dropped after hanging, for a newer report.
    Overtaken,
    /// Dropped, for the controller's address has changed.
    Moved,
}

impl<A, F> Reporter<A>
where
    A: Fn(String, Arc<NodeReport>) -> F,
    F: Future<Output = ReportOutcome>,
{
    async fn run(mut self) {
        let mut known: Option<(String, ReportSchedule)> = None;
        let mut may_be_overtaken = true;
        loop {
            let (url, connected) = self.address();
            let Some(url) = url else {
                known = None;
                self.wait(None).await;
                continue;
            };
            let now = Instant::now();
            let same = known.take().filter(|(before, _)| *before == url);
            let (url, course) =
                known.insert(same.unwrap_or_else(|| {
                    (url.clone(), ReportSchedule::new(self.policy.clone(), now))
                }));
            if connected {
                course.begins_anew(now);
            }
            let report = self.reports.borrow_and_update().clone();
            // A controller that has just connected gets a report with the host UUID that it gave, which the next report
            // has.
            let named = report.host_uuid == self.identity.borrow().host_uuid;
            let due = Some(course.due(report.generation)).filter(|_| named);
            if due.is_none_or(|due| now < due) {
                if self.wait(due).await {
                    course.begins_anew(Instant::now());
                }
                continue;
            }
            let generation = report.generation;
            let (ended, connected) = self.send(url, report, may_be_overtaken).await;
            match ended {
                AttemptEnd::By(verdict) => {
                    self.tally.ended(&verdict);
                    let before = course.record_attempt(&verdict, generation, Instant::now());
                    note(url, before, &verdict);
                    may_be_overtaken = true;
                }
                AttemptEnd::Overtaken => {
                    tracing::debug!(
                        url = %text_without_secrets(url),
                        "the controller at {} has not answered the last report, and gets a newer one",
                        text_without_secrets(url)
                    );
                    self.tally.overtaken();
                    course.overtaken(Instant::now());
                    may_be_overtaken = false;
                }
                // The next round sees the address.
                AttemptEnd::Moved => may_be_overtaken = true,
            }
            if connected {
                course.begins_anew(Instant::now());
            }
        }
    }

    /// Current address, if known, and `true` if a controller has connected since the last check.
    fn address(&mut self) -> (Option<String>, bool) {
        let identity = self.identity.borrow_and_update();
        let set = &self.policy.url;
        let url = if set.is_empty() { &identity.send_command_url } else { set };
        (Some(url.clone()).filter(|url| !url.is_empty()), identity.has_changed())
    }

    /// Waits until an attempt may have become due; returns `true` if a controller has connected.
    async fn wait(&mut self, due: Option<Instant>) -> bool {
        tokio::select! {
            // All are cancel-safe: a change that was not observed stays, the clock and the heartbeat too.
            () = wait::change(&mut self.identity) => true,
            () = wait::change(&mut self.reports) => false,
            () = wait::until(due) => false,
            () = self.heartbeat.due() => false,
        }
    }

    /// Makes one attempt. The attempt and its connection are dropped if it hangs while a newer report is due, or if the
    /// controller's address changes. Also returns `true` if a controller has connected meanwhile.
    async fn send(
        &mut self,
        url: &str,
        report: Arc<NodeReport>,
        may_be_overtaken: bool,
    ) -> (AttemptEnd, bool) {
        let may_be_dropped_at = may_be_overtaken.then(|| Instant::now() + HANGING_POST_LIMIT);
        let attempt = (self.attempt)(url.to_string(), report);
        let overtaken = async {
            wait::change(&mut self.reports).await;
            wait::until(may_be_dropped_at).await;
        };
        tokio::pin!(attempt, overtaken);
        let mut connected = false;
        loop {
            tokio::select! {
                // The first two are pinned and go on when another comes first; the others are cancel-safe.
                verdict = &mut attempt => return (AttemptEnd::By(verdict), connected),
                () = &mut overtaken => return (AttemptEnd::Overtaken, connected),
                () = wait::change(&mut self.identity) => {
                    let moved = self.policy.url.is_empty()
                        && self.identity.borrow().send_command_url != url;
                    if moved {
                        return (AttemptEnd::Moved, true);
                    }
                    connected = true;
                }
                () = self.heartbeat.due() => {}
            }
        }
    }
}

/// Logs the outcome of an attempt, if it differs from the one before.
fn note(url: &str, before: Went, verdict: &ReportOutcome) {
    let url = text_without_secrets(url);
    match verdict {
        ReportOutcome::Taken if before != Went::Heard => {
            tracing::info!(url, "the controller at {url} accepts the node's status");
        }
        ReportOutcome::Unknown if before != Went::Unknown => tracing::info!(
            url,
            "the controller at {url} has no handler for reports (report.command_path): they are offered again each \
             report.unknown_delay, and when the controller connects"
        ),
        ReportOutcome::Failed(why) if !matches!(before, Went::Failing(_)) => tracing::warn!(
            url,
            why,
            "the node's status cannot be reported to the controller at {url}, and is sent again with growing pauses: {why}"
        ),
        ReportOutcome::Failed(why) => tracing::debug!(
            url,
            why,
            "the node's status cannot be delivered to the controller at {url}: {why}"
        ),
        _ => {}
    }
}

async fn post(
    client: &ControllerClient,
    path: &str,
    to: (&str, &Reach),
    report: Arc<NodeReport>,
    within: Duration,
) -> ReportOutcome {
    let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let report = serde_json::to_value(NodeReport { at, ..(*report).clone() }).unwrap_or_default();
    let path = HeaderValue::from_str(path).ok();
    let headers = path.map(|path| (HeaderName::from_static("commandpath"), path));
    let headers: Vec<_> = headers.into_iter().collect();
    match client.post(to, &headers, &ascii_json(&report), within).await {
        Ok(status) if status.is_success() => ReportOutcome::Taken,
        Ok(StatusCode::NOT_FOUND) => ReportOutcome::Unknown,
        Ok(status) => ReportOutcome::Failed(format!("answered {status}")),
        Err(e) => ReportOutcome::Failed(chain(&e)),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
