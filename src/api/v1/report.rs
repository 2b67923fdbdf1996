//! Reports of long work: in one piece, or each event in a line of its own as it happens.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::audit::AuditedCall;
use super::super::errors::Problem;
use crate::agent::prepare::Prepared;
use crate::model::fault::Fault;
use crate::model::prepare::{Outcome, PrepareReport, Progress};
use crate::model::work::WorkId;

/// Media type of one JSON value a line.
pub const LINES: &str = "application/x-ndjson";
/// Silence of a streamed answer after which a keep-alive line is sent.
const ALIVE: Duration = Duration::from_secs(15);
/// Limit of the time for sending a line to a caller that does not read.
const LINE: Duration = Duration::from_secs(10);

fn note(call: Option<AuditedCall>, result: &Prepared) {
    match (call, result) {
        (None, _) => {}
        (Some(call), Ok(report)) => call.reports(report),
        (Some(call), Err(fault)) => call.ends(Some(fault)),
    }
}

/// Response with the report. If the prepare failed, a problem that carries the report.
pub fn answer(report: &PrepareReport) -> Response {
    match report.errors.first() {
        Some(first) if report.outcome == Outcome::Failed => {
            let fault = Fault { code: first.code, text: report.error_text() };
            let extension = serde_json::to_value(report).ok().map(|value| ("report", value));
            Problem { extension, ..Problem::of(fault) }.into_response()
        }
        _ => Json(report).into_response(),
    }
}

/// Line of a streamed answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event", content = "data")]
pub enum StreamLine {
    Progress(Progress),
    /// Keep-alive while the work goes on without events.
    Alive,
    /// Last line: the report.
    Report(PrepareReport),
    /// Last line: the call was not accepted.
    Error(Fault),
}

/// Answers with the report of `work` once it is done. If the header `Accept` names [`LINES`], each event of the work is
/// first sent in a line, as it happens.
pub(super) async fn answer_with(
    headers: &HeaderMap,
    (work, events): (WorkId, broadcast::Receiver<Progress>),
    done: impl Future<Output = Prepared> + Send + 'static,
    call: Option<AuditedCall>,
) -> Result<Response, Problem> {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if !accepts.is_some_and(|accept| accept.contains(LINES)) {
        let result = done.await;
        note(call, &result);
        return Ok(answer(&*result.map_err(Problem::of)?));
    }
    let (lines, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let result = stream_events(work, events, done, &lines).await;
        note(call, &result);
        let last = match result {
            Ok(report) => StreamLine::Report(Arc::unwrap_or_clone(report)),
            Err(fault) => StreamLine::Error(fault),
        };
        send(&lines, &last).await;
    });
    let body = Body::from_stream(Lines(receiver));
    Ok(([(header::CONTENT_TYPE, LINES)], body).into_response())
}

/// Streams the events of the work until it is done, with keep-alives in between.
async fn stream_events(
    work: WorkId,
    mut events: broadcast::Receiver<Progress>,
    done: impl Future<Output = Prepared>,
    lines: &mpsc::Sender<Vec<u8>>,
) -> Prepared {
    tokio::pin!(done);
    loop {
        let alive = Instant::now() + ALIVE;
        tokio::select! {
            biased;
            // Cancel-safe: an event that was not received stays in the channel.
            event = events.recv() => match event {
                Ok(event) if event.work == work => send(lines, &StreamLine::Progress(event)).await,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return done.await,
            },
            // Pinned: continues when another arm completes first.
            result = &mut done => return result,
            // Cancel-safe: a line that comes first ends the silence, and the timer starts again.
            () = sleep_until(alive) => send(lines, &StreamLine::Alive).await,
        }
    }
}

/// Sends a line. A caller that went away or does not read does not stop the work.
async fn send(lines: &mpsc::Sender<Vec<u8>>, line: &StreamLine) {
    if let Ok(mut bytes) = serde_json::to_vec(line) {
        bytes.push(b'\n');
        let _ = timeout(LINE, lines.send(bytes)).await;
    }
}

struct Lines(mpsc::Receiver<Vec<u8>>);

impl futures_core::Stream for Lines {
    type Item = Result<Vec<u8>, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|line| line.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::model::code::Code;

    #[tokio::test(start_paused = true)]
    async fn a_stream_in_which_nothing_happens_says_that_the_work_goes_on() {
        let (_progress, events) = broadcast::channel(1);
        let (lines, mut receiver) = mpsc::channel(64);
        let work = async {
            sleep(Duration::from_secs(50)).await;
            Err(Fault::new(Code::PrepareBusy, ""))
        };
        stream_events(WorkId::default(), events, work, &lines).await.unwrap_err();
        drop(lines);
        let mut lines = Vec::new();
        while let Some(line) = receiver.recv().await {
            lines.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(lines, ["{\"event\":\"alive\"}\n"; 3]);
    }
}
