//! `/v1/events`: events of the node, as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! Each event has an id. A caller that reconnects with the id of its last event, in `Last-Event-ID` or `?after=`, first
//! gets the events that it missed, as far as they are kept.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Extension, Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use super::super::AgentPhase;
use super::super::errors::Problem;
use super::super::serve::AuthorizedUnder;
use super::SharedV1;
use crate::model::code::Code;
use crate::model::event::{Event, EventId, What};

/// Limit of concurrent followers; each holds a connection.
const MOST_FOLLOWERS: usize = 64;
/// Interval of keep-alives on a quiet stream, so that no device on the path drops the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Query: the event after which the stream begins.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsQuery {
    /// Id of the last event that the caller has.
    pub after: Option<String>,
}

#[derive(Debug, Serialize)]
struct Data<'a> {
    at: &'a str,
    #[serde(flatten)]
    what: &'a What,
}

/// Streams all events from now on, or all after the one with the given id.
pub async fn get(
    State(api): State<SharedV1>,
    authorized: Option<Extension<AuthorizedUnder>>,
    query: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let bad = |text: String| Problem::new(Code::InvalidQuery, text);
    let Query(query) = query.map_err(|e| bad(e.body_text()))?;
    let header = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let after = header.map(str::to_string).or(query.after).filter(|id| !id.is_empty());
    let after = after.map(|id| id.parse::<EventId>()).transpose().map_err(bad)?;
    if api.events.followers() >= MOST_FOLLOWERS {
        let text = format!("{MOST_FOLLOWERS} callers follow the events already: call again later");
        return Err(Problem::new(Code::TooManyFollowers, text));
    }
    let (missed, live_events) = api.events.follow(after);
    let frames = frames(missed, live_events, ending(api.phase.clone(), authorized));
    Ok(Sse::new(frames).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Completes when the agent stops or the guards have changed. A stream has no end of its own, and a caller whose token
/// or certificate authority was revoked must not follow any longer. Callers that are still permitted reconnect.
async fn ending(
    mut phase: watch::Receiver<AgentPhase>,
    authorized: Option<Extension<AuthorizedUnder>>,
) {
    let stopping = phase.wait_for(|phase| *phase == AgentPhase::Draining);
    match authorized {
        Some(Extension(authorized)) => tokio::select! {
            // Both complete once and are not polled again.
            _ = stopping => {}
            () = authorized.again() => {}
        },
        None => drop(stopping.await),
    }
}

fn frames(
    missed: Vec<Event>,
    live_events: broadcast::Receiver<Event>,
    stopping: impl Future<Output = ()> + Send,
) -> impl Stream<Item = Result<Frame, Infallible>> + Send {
    let live = stream::unfold(live_events, async |mut live_events| {
        let frame = match live_events.recv().await {
            Ok(event) => frame(&event),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                // The client comes back with its last id, and gets what is still kept.
                Frame::default().event("lost").data(format!("{{\"lost\":{lost}}}"))
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some((frame, live_events))
    });
    let missed = stream::iter(missed).map(|event| frame(&event));
    // The first line lets a caller know that nothing is missed from here on.
    let hello = stream::iter([Frame::default().comment("following")]);
    hello.chain(missed).chain(live).map(Ok).take_until(Box::pin(stopping))
}

fn frame(event: &Event) -> Frame {
    let data = Data { at: &event.at, what: &event.what };
    let frame = Frame::default().id(event.id.to_string()).event(event.what.name());
    frame.json_data(data).unwrap_or_else(|_| Frame::default().event("lost"))
}
