//! Offers the outbox's results to the controller until each is taken.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::client::Client;
use super::outbox::{Outbox, Settled, Verdict};
use crate::agent::pulse::Beat;
use crate::model::fault::chain;
use crate::model::task::{TaskId, TaskResult};

/// Delivers for ever, and beats for the watchdog.
pub async fn run(
    outbox: Outbox,
    client: Arc<Client>,
    attempt_timeout: Duration,
    parallel: usize,
    mut beat: Beat,
) {
    let mut attempts: JoinSet<(TaskId, Verdict)> = JoinSet::new();
    loop {
        let free = parallel.saturating_sub(attempts.len());
        for (result, attempt) in outbox.take_due(Instant::now(), free) {
            let client = client.clone();
            attempts.spawn(async move { offer(&client, result, attempt, attempt_timeout).await });
        }
        let next = outbox.next_due().filter(|_| attempts.len() < parallel);
        let next = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Cancel-safe: an attempt that ended stays in the set.
            Some(ended) = attempts.join_next() => {
                if let Ok((task, verdict)) = ended {
                    note(&task, outbox.settle(&task, verdict, Instant::now()));
                }
            }
            // Cancel-safe: news that were not heard stay news; the clock and the beat too.
            () = outbox.news() => {}
            () = next => {}
            () = beat.due() => {}
        }
    }
}

fn note(task: &TaskId, settled: Settled) {
    if settled == Settled::TooOld {
        tracing::error!(%task, "the controller did not take this result in all the time (callbacks.max_age); it was given up");
    }
}

async fn offer(
    client: &Client,
    result: TaskResult,
    attempt: u32,
    within: Duration,
) -> (TaskId, Verdict) {
    let task = result.task.clone();
    let url = result.callback_url.as_str();
    let why = match client.post(url, &headers(&result), &result.body, within).await {
        Ok(status) if status.is_success() => {
            tracing::info!(%task, attempt, "result delivered");
            return (task, Verdict::Taken);
        }
        Ok(status) if status == hyper::StatusCode::NOT_FOUND => {
            tracing::warn!(%task, url, attempt, "the controller does not wait for this result any more");
            return (task, Verdict::NotWaiting);
        }
        Ok(status) => format!("answered {status}"),
        Err(e) => chain(&e),
    };
    // Said once; the attempts that follow are only news when one succeeds.
    if attempt == 1 {
        tracing::warn!(%task, url, why, "result not taken; it is offered again with growing pauses");
    } else {
        tracing::debug!(%task, url, attempt, why, "result not taken");
    }
    (task, Verdict::Again)
}

fn headers(result: &TaskResult) -> Vec<(HeaderName, HeaderValue)> {
    let value = |text: &str| HeaderValue::from_str(&ascii(text)).ok();
    let task = value(result.task.as_str()).map(|v| (HeaderName::from_static("taskuuid"), v));
    let error = result.error.as_deref().and_then(value);
    let error = error.map(|v| (HeaderName::from_static("error"), v));
    task.into_iter().chain(error).collect()
}

/// Header values are visible ASCII in one line.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect()
}
