//! `POST /v1/prepare`: the report in one piece, or each event in a line of its own as it happens.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::super::body;
use super::super::errors::Problem;
use super::super::journal::Call;
use super::Shared;
use super::pools::page_size;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::PoolPolicy;
use crate::model::pools::{Placement, PoolWant};
use crate::model::prepare::{Outcome, PrepareReport, PrepareRequest, Progress};
use crate::model::units::{NumaNode, PageSize};

/// A media type: one JSON value a line.
const LINES: &str = "application/x-ndjson";
/// Wishes that one call may have; a machine has few page sizes and nodes.
const MOST_WISHES: usize = 64;
/// NUMA nodes that one wish may name.
const MOST_NODES: usize = 1024;
/// A streamed answer says at least this often that the work goes on.
const ALIVE: Duration = Duration::from_secs(15);
/// How long a line waits for a listener that does not read.
const LINE: Duration = Duration::from_secs(10);

/// The request's body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PrepareBody {
    /// Wanted free pages; the configured default when it is not given, none when it is empty.
    #[serde(deserialize_with = "objects")]
    pub hugepages: Option<Vec<HugepagesBody>>,
    /// Whether a growth that came out short is kept.
    pub keep_partial: bool,
    /// Whether the engine is looked after; yes when it is not given.
    pub engine: Option<bool>,
}

/// One wish for pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HugepagesBody {
    /// Size of a page in MiB; 2 when it is not given.
    pub size_mib: Option<u64>,
    /// The same in KiB, for pages of less than a MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_kib: Option<u64>,
    /// Wanted free pages.
    pub pages: u64,
    /// On these NUMA nodes; on all, evenly, when it is not given.
    pub nodes: Option<Vec<u32>>,
    /// Whether another node may give what one cannot.
    pub move_shortfall: Option<bool>,
}

fn objects<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<HugepagesBody>>, D::Error> {
    let wishes = Option::<Vec<body::Object<HugepagesBody>>>::deserialize(d)?;
    Ok(wishes.map(|wishes| wishes.into_iter().map(|wish| wish.0).collect()))
}

/// The query.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PrepareQuery {
    dry_run: bool,
}

impl PrepareBody {
    /// Judges the body.
    ///
    /// # Errors
    /// 400 with the field and the reason.
    pub fn into_request(
        self,
        dry_run: bool,
        defaults: &PoolPolicy,
    ) -> Result<PrepareRequest, Problem> {
        let hugepages = match self.hugepages {
            None => vec![default_want(defaults.default_pages, defaults)],
            Some(wishes) if wishes.len() > MOST_WISHES => {
                return Err(invalid(format!("more than {MOST_WISHES} entries in hugepages")));
            }
            Some(wishes) => {
                wishes.into_iter().map(|wish| want(wish, defaults)).collect::<Result<_, _>>()?
            }
        };
        Ok(PrepareRequest {
            hugepages,
            keep_partial: self.keep_partial,
            engine: self.engine.unwrap_or(true),
            dry_run,
        })
    }
}

/// The wish of a call that only names a number: 2 MiB pages, spread.
pub fn default_want(pages: u64, defaults: &PoolPolicy) -> PoolWant {
    PoolWant {
        size: PageSize::MIB_2,
        pages,
        placement: Placement::Spread,
        move_shortfall: defaults.move_shortfall,
    }
}

fn want(wish: HugepagesBody, defaults: &PoolPolicy) -> Result<PoolWant, Problem> {
    Ok(PoolWant {
        size: page_size(wish.size_mib, wish.size_kib)?.unwrap_or(PageSize::MIB_2),
        pages: wish.pages,
        placement: placement(wish.nodes)?,
        move_shortfall: wish.move_shortfall.unwrap_or(defaults.move_shortfall),
    })
}

/// On these NUMA nodes, or spread over all.
///
/// # Errors
/// 400 when the list is empty or longer than any machine's.
fn placement(nodes: Option<Vec<u32>>) -> Result<Placement, Problem> {
    match nodes {
        None => Ok(Placement::Spread),
        Some(nodes) if nodes.is_empty() || nodes.len() > MOST_NODES => {
            Err(invalid(format!("nodes must name between 1 and {MOST_NODES} NUMA nodes")))
        }
        Some(mut nodes) => {
            nodes.sort_unstable();
            nodes.dedup();
            Ok(Placement::Bound(nodes.into_iter().map(NumaNode).collect()))
        }
    }
}

fn invalid(text: String) -> Problem {
    Problem::new(Code::InvalidBody, text)
}

/// Prepares the node.
pub async fn post(
    State(api): State<Shared>,
    query: Result<Query<PrepareQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidQuery, e.body_text()))?;
    let bytes = body::read(body, api.body).await?;
    let request =
        body::parse::<PrepareBody>(&bytes)?.into_request(query.dry_run, &api.pool_defaults)?;
    drop(bytes);
    let wants_lines = headers
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.to_str().is_ok_and(|accept| accept.contains(LINES)));
    let call = (!request.dry_run).then(|| Call::begins("prepare", None));
    if wants_lines {
        return Ok(stream(api, request, call));
    }
    let result = api.prepare.prepare(request).await;
    note(call, &result);
    Ok(answer(&*result.map_err(Problem::of)?))
}

type Prepared = Result<Arc<PrepareReport>, Fault>;

fn note(call: Option<Call>, result: &Prepared) {
    match (call, result) {
        (None, _) => {}
        (Some(call), Ok(report)) => call.reports(report),
        (Some(call), Err(fault)) => call.ends(Some(fault)),
    }
}

/// The report; as a problem that carries it when the prepare failed.
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

/// A line of a streamed answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event", content = "data")]
pub enum Line {
    /// Something happens.
    Progress(Progress),
    /// Nothing has happened for a while, and the work goes on.
    Alive,
    /// The end: the report.
    Report(PrepareReport),
    /// The end: the call was not taken in.
    Error(Fault),
}

fn stream(api: Shared, request: PrepareRequest, call: Option<Call>) -> Response {
    let (lines, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let progress = api.progress.watch();
        let result = tell(progress, api.prepare.prepare(request), &lines).await;
        note(call, &result);
        let last = match result {
            Ok(report) => Line::Report(Arc::unwrap_or_clone(report)),
            Err(fault) => Line::Error(fault),
        };
        send(&lines, &last).await;
    });
    let body = Body::from_stream(Lines(receiver));
    ([(header::CONTENT_TYPE, LINES)], body).into_response()
}

/// Tells what happens until the work is done, and that it goes on when nothing happens.
async fn tell(
    mut progress: broadcast::Receiver<Progress>,
    work: impl Future<Output = Prepared>,
    lines: &mpsc::Sender<Vec<u8>>,
) -> Prepared {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            // Cancel-safe: an event that was not received stays in the channel.
            event = progress.recv() => match event {
                Ok(event) => send(lines, &Line::Progress(event)).await,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return work.await,
            },
            // Pinned: goes on when another arm comes first.
            result = &mut work => return result,
            // Cancel-safe: the silence is over when an event comes first.
            () = sleep(ALIVE) => send(lines, &Line::Alive).await,
        }
    }
}

/// A listener that went away or does not read does not stop the work.
async fn send(lines: &mpsc::Sender<Vec<u8>>, line: &Line) {
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
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_in_which_nothing_happens_says_that_the_work_goes_on() {
        let (_progress, watch) = broadcast::channel(1);
        let (lines, mut receiver) = mpsc::channel(64);
        let work = async {
            sleep(Duration::from_secs(50)).await;
            Err(Fault::new(Code::PrepareBusy, ""))
        };
        tell(watch, work, &lines).await.unwrap_err();
        drop(lines);
        let mut told = Vec::new();
        while let Some(line) = receiver.recv().await {
            told.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(told, ["{\"event\":\"alive\"}\n"; 3]);
    }
}
