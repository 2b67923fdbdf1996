//! Delivery of the outbox's results to the controller, until each is accepted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::client::{ControllerClient, PostError};
use super::outbox::{AfterAttempt, DeliveryOutcome, Outbox};
use super::reaches::Reaches;
use crate::model::fault::chain;
use crate::model::task::{TaskId, TaskResult};
use crate::model::url::text_without_secrets;
use crate::wait;
use crate::watchdog::Heartbeat;

/// Delivers for ever, and sends the watchdog's heartbeats.
pub async fn run(
    outbox: Outbox,
    client: Arc<ControllerClient>,
    reaches: Reaches,
    attempt_timeout: Duration,
    parallel: usize,
    heartbeat: Heartbeat,
) {
    let attempt = |result, number| {
        let (client, reaches) = (client.clone(), reaches.clone());
        async move { offer((&client, &reaches), result, number, attempt_timeout).await }
    };
    deliver(outbox, attempt, parallel, heartbeat).await;
}

/// Calls `attempt`, with the result and the number of the attempt, for each result that is due; at most `parallel`
/// attempts run at a time.
async fn deliver<F>(
    outbox: Outbox,
    attempt: impl Fn(TaskResult, u32) -> F,
    parallel: usize,
    mut heartbeat: Heartbeat,
) where
    F: Future<Output = DeliveryOutcome> + Send + 'static,
{
    let mut attempts: JoinSet<DeliveryOutcome> = JoinSet::new();
    let mut under_way: HashMap<Id, TaskId> = HashMap::new();
    loop {
        let free = parallel.saturating_sub(attempts.len());
        // Only if there is room: each query for due results scans all pending ones.
        if free > 0 {
            for (result, number) in outbox.take_due(Instant::now(), free) {
                let task = result.task.clone();
                under_way.insert(attempts.spawn(attempt(result, number)).id(), task);
            }
        }
        let next = (attempts.len() < parallel).then(|| outbox.next_due()).flatten();
        tokio::select! {
            // Cancel-safe: an attempt that ended stays in the set.
            Some(ended) = attempts.join_next_with_id() => {
                let mut next = Some(ended);
                while let Some(ended) = next {
                    // A panicked attempt has delivered nothing: the result is offered again.
                    let (id, verdict) = ended.unwrap_or_else(|broke| (broke.id(), DeliveryOutcome::Again));
                    if let Some(task) = under_way.remove(&id) {
                        note(&task, outbox.record_attempt(&task, verdict, Instant::now()));
                    }
                    next = attempts.try_join_next_with_id();
                }
            }
            // Cancel-safe: a notification that was not consumed stays; the clock and the heartbeat too.
            () = outbox.news() => {}
            () = wait::until(next) => {}
            () = heartbeat.due() => {}
        }
    }
}

fn note(task: &TaskId, after: AfterAttempt) {
    if after == AfterAttempt::TooOld {
        tracing::error!(
            %task,
            "the result of {task} was not delivered to the controller within callbacks.max_age, and was discarded"
        );
    }
}

async fn offer(
    (client, reaches): (&ControllerClient, &Reaches),
    result: TaskResult,
    attempt: u32,
    within: Duration,
) -> DeliveryOutcome {
    let task = &result.task;
    let (reach, url) = (reaches.of(result.caller), text_without_secrets(&result.callback_url));
    let to = (result.callback_url.as_str(), &reach);
    let why = match client.post(to, &headers(&result), &result.body, within).await {
        Ok(status) if status.is_success() => {
            tracing::info!(%task, attempt, "the result of {task} was delivered to {url}");
            return DeliveryOutcome::Taken;
        }
        Ok(status) if status == hyper::StatusCode::NOT_FOUND => {
            tracing::warn!(
                %task, url, attempt,
                "{url} answered 404: the controller does not wait for the result of {task} any more, and it is dropped"
            );
            return DeliveryOutcome::NotWaiting;
        }
        Ok(status) => format!("answered {status}"),
        Err(refused @ PostError::Refused { .. }) if attempt == 1 => {
            let why = chain(&refused);
            tracing::warn!(
                %task, why,
                "the result of {task} was not sent, for the callback's address is refused; the result is offered again, as \
                 its name may resolve to another address later: {why}"
            );
            return DeliveryOutcome::Again;
        }
        Err(e) => chain(&e),
    };
    // Logged once; of the attempts that follow only a success is worth a line.
    if attempt == 1 {
        tracing::warn!(
            %task, url, why,
            "the result of {task} could not be delivered to {url}, and is offered again with growing pauses: {why}"
        );
    } else {
        tracing::debug!(
            %task, url, attempt, why,
            "the result of {task} could not be delivered to {url}: {why}"
        );
    }
    DeliveryOutcome::Again
}

fn headers(result: &TaskResult) -> Vec<(HeaderName, HeaderValue)> {
    let value = |text: &str| HeaderValue::from_str(&ascii(text)).ok();
    let task = value(result.task.as_str()).map(|v| (HeaderName::from_static("taskuuid"), v));
    let error = result.error.as_deref().and_then(value);
    let error = error.map(|v| (HeaderName::from_static("error"), v));
    task.into_iter().chain(error).collect()
}

/// Replaces everything but visible ASCII, as a header value must be one line of it.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::controller::outbox::{Keep, Offering, TaskAdmission};
    use crate::model::caller::Caller;
    use crate::store::Store;
    use crate::watchdog::Watchdog;

    /// An outbox in which one result waits.
    async fn with_a_result() -> (tempfile::TempDir, Outbox) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        let heartbeat = Watchdog::default().register();
        let outbox = Outbox::open(Offering::example(), store, heartbeat).unwrap();
        let task = TaskId::try_from("0".repeat(32)).unwrap();
        let call = (None, Keep::OnDisk);
        let TaskAdmission::Work(slot) = outbox.admit(&task, "http://c/", call, Caller::Here).await
        else {
            panic!("refused")
        };
        slot.finish("{}".into(), None).await;
        (dir, outbox)
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_breaks_is_made_again() {
        let (_dir, outbox) = with_a_result().await;
        let made = Arc::new(AtomicU32::new(0));
        let count = made.clone();
        let attempt = move |_, number| {
            count.store(number, Ordering::Relaxed);
            async move {
                assert!(number > 1, "the first attempt breaks");
                DeliveryOutcome::Taken
            }
        };
        let heartbeat = Watchdog::default().register();
        tokio::select! {
            () = deliver(outbox.clone(), attempt, 1, heartbeat) => {}
            () = outbox.empty() => {}
        }
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_is_away_for_most_of_the_hour_gets_the_result_when_it_is_back() {
        let (_dir, outbox) = with_a_result().await;
        let (began, away) = (Instant::now(), Duration::from_secs(3300));
        let made = Arc::new(AtomicU32::new(0));
        let count = made.clone();
        let attempt = move |result: TaskResult, number| {
            count.store(number, Ordering::Relaxed);
            assert_eq!(result.body, "{}");
            let verdict = if began.elapsed() < away {
                DeliveryOutcome::Again
            } else {
                DeliveryOutcome::Taken
            };
            async move { verdict }
        };
        let heartbeat = Watchdog::default().register();
        tokio::select! {
            () = deliver(outbox.clone(), attempt, 1, heartbeat) => {}
            () = outbox.empty() => {}
        }
        // The result is offered every 5 s for ten minutes, and then ever more rarely, but at least every minute.
        assert!(began.elapsed() >= away && began.elapsed() < away + Duration::from_secs(60));
        let made = made.load(Ordering::Relaxed);
        assert!((150..=230).contains(&made), "{made}");
    }
}
