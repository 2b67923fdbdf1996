//! Progress posts to the controller, for calls that ask for them.
//!
//! ```text
//! the owners' progress ──▶ ProgressSource ──newest state──▶ one post at a time ──▶ the call's sendCommandUrl
//! the call's end ─────────────┘
//! ```
//! Nothing waits for these posts, and none is repeated: after a failed one the newest state is posted. Each call has a
//! task of its own, which ends after the call within the time limit of one post.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Semaphore, broadcast, oneshot};
use tokio::time::{Instant, timeout_at};

use super::client::{ControllerClient, PostError};
use super::identity::Identities;
use super::reaches::Reaches;
use crate::model::ascii::ascii_json;
use crate::model::egress_policy::Reach;
use crate::model::fault::chain;
use crate::model::prepare::Progress;
use crate::model::progress::{ProgressRequest, ProgressSource, Weight, WorkKind};
use crate::model::work::WorkId;
use crate::wait;

/// The command path of these posts.
const COMMAND_PATH: &str = "/progress/report";
/// Pause between two posts caused only by a printed line.
const BREATH: Duration = Duration::from_secs(1);
/// Limit of calls with progress posts at one time; each can hold a connection for as long as a post may take.
const MOST: usize = 64;

/// Starter of progress posts; clones share their limit.
#[derive(Debug, Clone)]
pub struct ProgressPosts {
    client: Arc<ControllerClient>,
    identities: Arc<Identities>,
    reaches: Reaches,
    within: Duration,
    places: Arc<Semaphore>,
}

impl ProgressPosts {
    /// Progress posts with a time limit of `within` each.
    pub fn new(identities: Arc<Identities>, reaches: Reaches, within: Duration) -> ProgressPosts {
        let places = Arc::new(Semaphore::new(MOST));
        ProgressPosts {
            client: Arc::new(ControllerClient::default()),
            identities,
            reaches,
            within,
            places,
        }
    }

    /// Posts the progress of work found in `events`; `None` if the call has no usable address, or the limit is reached.
    pub fn follow(
        &self,
        asked: ProgressRequest,
        (kind, work): (WorkKind, WorkId),
        events: broadcast::Receiver<Progress>,
    ) -> Option<Followed> {
        let known = self.identities.known();
        let (url, reach) = match asked.url {
            Some(url) => (url, self.reaches.of(Some(asked.caller))),
            None => (known.send_command_url, self.reaches.of_controller()),
        };
        if url.is_empty() {
            tracing::debug!(
                "progress is not reported: the call has no URL for it, and no controller has set a sendCommandUrl"
            );
            return None;
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::debug!(
                "progress is not reported: {MOST} other calls report theirs, which is the limit"
            );
            return None;
        };
        let host = Some(known.host_uuid).filter(|uuid| !uuid.is_empty());
        let letter = Letter { kind: kind.name(), host, context: asked.context, stack: asked.stack };
        let (client, within) = (self.client.clone(), self.within);
        let post = move |course: &ProgressSource| {
            let body = letter.body(course);
            let (client, url, reach) = (client.clone(), url.clone(), reach.clone());
            async move { post(&client, (&url, &reach), &body, within).await }
        };
        let (end, ended) = oneshot::channel();
        let course = ProgressSource::new(work, asked.stage);
        let reporter = ProgressReporter { course, events, ended, post, within };
        tokio::spawn(async move {
            let _place = place;
            reporter.run().await;
        });
        Some(Followed(end))
    }
}

/// Work with progress posts. Dropping it counts as the work's failure.
#[derive(Debug)]
pub struct Followed(oneshot::Sender<bool>);

impl Followed {
    /// Ends the work.
    pub fn ends(self, succeeded: bool) {
        let _ = self.0.send(succeeded);
    }
}

/// Constant part of the posts of one call.
struct Letter {
    kind: &'static str,
    host: Option<String>,
    context: Value,
    stack: Value,
}

impl Letter {
    fn body(&self, course: &ProgressSource) -> String {
        ascii_json(&json!({
            "progress": course.percent().to_string(),
            "processType": self.kind,
            "resourceUuid": null,
            "serverUuid": self.host,
            "threadContextMap": self.context,
            "threadContextStack": self.stack,
            "detail": course.last(),
        }))
    }
}

/// Outcome of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PostOutcome {
    /// Accepted or failed; the next post is made in both cases.
    Goes,
    /// Command path unknown to the controller; no further post is made.
    Unknown,
}

struct ProgressReporter<P> {
    course: ProgressSource,
    events: broadcast::Receiver<Progress>,
    ended: oneshot::Receiver<bool>,
    /// Posts the progress.
    post: P,
    within: Duration,
}

impl<P, F> ProgressReporter<P>
where
    P: Fn(&ProgressSource) -> F,
    F: Future<Output = PostOutcome>,
{
    async fn run(mut self) {
        let mut posting = Some(Box::pin((self.post)(&self.course)));
        let mut begun = Instant::now();
        // Due time of the post of the events received since the last.
        let mut due: Option<Instant> = None;
        let succeeded = loop {
            let now = Instant::now();
            if posting.is_none() && due.is_some_and(|due| due <= now) {
                (due, begun) = (None, now);
                posting = Some(Box::pin((self.post)(&self.course)));
            }
            let next = due.filter(|_| posting.is_none());
            tokio::select! {
                // Pinned: goes on when another arm comes first.
                verdict = wait::end(&mut posting) => match verdict {
                    PostOutcome::Goes => posting = None,
                    PostOutcome::Unknown => return,
                },
                // Cancel-safe: an event that was not received stays in the channel.
                event = self.events.recv() => match event {
                    Ok(event) => {
                        let heard = self.course.hear(event);
                        due = [due, heard.map(|weight| worth(weight, begun))].into_iter().flatten().min();
                    }
                    // The percentage lacks a lost event, but the events after it still bring it towards its end.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                // Cancel-safe: the value is kept. A sender dropped by broken work means failure.
                succeeded = &mut self.ended => break succeeded.unwrap_or(false),
                // Cancel-safe: the time stays.
                () = wait::until(next) => {}
            }
        };
        self.last(posting, due.is_some(), succeeded).await;
    }

    /// Makes the last post, within the time limit of one post; a post under way gets at most half of that time.
    async fn last(
        mut self,
        posting: Option<std::pin::Pin<Box<F>>>,
        mut news: bool,
        succeeded: bool,
    ) {
        let now = Instant::now();
        loop {
            match self.events.try_recv() {
                Ok(event) => news |= self.course.hear(event).is_some(),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if succeeded {
            self.course.succeeds();
        }
        if let Some(post) = posting
            && timeout_at(now + self.within / 2, post).await == Ok(PostOutcome::Unknown)
        {
            return;
        }
        if news || succeeded {
            let _ = timeout_at(now + self.within, (self.post)(&self.course)).await;
        }
    }
}

/// Due time of the post for an event of that weight, if the last post was started at `begun`.
fn worth(weight: Weight, begun: Instant) -> Instant {
    match weight {
        Weight::Step => begun,
        Weight::Line => begun + BREATH,
    }
}

async fn post(
    client: &ControllerClient,
    to: (&str, &Reach),
    body: &str,
    within: Duration,
) -> PostOutcome {
    let path = (HeaderName::from_static("commandpath"), HeaderValue::from_static(COMMAND_PATH));
    let why = match client.post(to, &[path], body, within).await {
        Ok(status) if status.is_success() => return PostOutcome::Goes,
        Ok(StatusCode::NOT_FOUND) => {
            tracing::debug!(
                "the controller has no handler for progress (404), and gets no more progress of this call"
            );
            return PostOutcome::Unknown;
        }
        Ok(status) => format!("answered {status}"),
        Err(e) => without_address(&e),
    };
    tracing::debug!(why, "the progress of a call could not be reported to the controller: {why}");
    PostOutcome::Goes
}

/// Error text without the address, which came with a call and may contain credentials.
fn without_address(error: &PostError) -> String {
    match error {
        PostError::Certificates(_) => chain(error),
        PostError::Timeout { within, .. } => format!("no answer within {within:?}"),
        PostError::Refused { source, .. } => chain(source),
        PostError::Connection { source, .. } => chain(source.as_ref()),
    }
}

#[cfg(test)]
#[path = "progress_posts_tests.rs"]
mod tests;
