//! Common handling of compatible calls: a call is answered with its result, or accepted at once and its result posted
//! later.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::Request;
use axum::http::{Extensions, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::time::timeout;
use tracing::Instrument;

use super::super::audit::{AuditedCall, AuditedChange, Subject, principal};
use super::super::errors::{Problem, refused_with, result_body};
use super::super::{AgentPhase, Shared, body};
use super::wire::{asked, caller_timeout, control_in};
use crate::controller::outbox::{Keep, Outbox, TaskAdmission, TaskSlot};
use crate::model::ascii::ascii_json;
use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::egress_policy::Reach;
use crate::model::fault::Fault;
use crate::model::prepare::Progress;
use crate::model::progress::{ProgressRequest, WorkKind};
use crate::model::task::TaskId;
use crate::model::url::HttpUrl;
use crate::model::work::WorkId;

/// Way of returning a result.
#[derive(Debug, PartialEq, Eq)]
enum ReturnPath {
    /// Returned in the response.
    Now,
    /// Posted to this address, under this task.
    Callback(TaskId, String),
}

/// Parses the body, runs `handler` on it, and returns its result in the way that the headers request.
///
/// The body is dropped before the handler runs, because it may be large and the handler may wait long. `route` holds
/// the name under which the call is audited, if it changes the node. `route` also says where the task is kept: one that
/// may be lost in a crash needs no disk.
pub async fn call<T, H, F>(
    api: Shared,
    route: (Option<&'static str>, Keep),
    request: Request,
    handler: H,
) -> Response
where
    T: DeserializeOwned + Send + 'static,
    H: FnOnce(Shared, T) -> F + Send + 'static,
    F: Future<Output = Result<Value, Fault>> + Send + 'static,
{
    let work = |api, request, ()| handler(api, request);
    call_reading(api, route, request, |_| (), work).await
}

/// Handles a long call like [`call`]. The handler also gets the controller's request for progress reports, if there is
/// one.
pub async fn call_with_progress<T, H, F>(
    api: Shared,
    route: &'static str,
    request: Request,
    handler: H,
) -> Response
where
    T: DeserializeOwned + Send + 'static,
    H: FnOnce(Shared, T, Option<ProgressRequest>) -> F + Send + 'static,
    F: Future<Output = Result<Value, Fault>> + Send + 'static,
{
    let caller = caller(request.extensions());
    let reach = api.reaches.of(Some(caller));
    let read = move |body: &[u8]| asked(body, caller, &reach);
    call_reading(api, (Some(route), Keep::OnDisk), request, read, handler).await
}

/// Does work whose progress is reported to the controller, where requested.
pub async fn report_progress(
    api: Shared,
    asked: Option<ProgressRequest>,
    kind: WorkKind,
    (id, events): (WorkId, broadcast::Receiver<Progress>),
    work: impl Future<Output = Result<Value, Fault>>,
) -> Result<Value, Fault> {
    let limit = asked.as_ref().and_then(|asked| asked.timeout);
    let follow = |asked| api.progress_posts.follow(asked, (kind, id), events);
    let Some(followed) = asked.and_then(follow) else { return work.await };
    tokio::pin!(work);
    let in_time = match limit {
        None => Ok(work.as_mut().await),
        Some(limit) => timeout(limit, work.as_mut()).await,
    };
    match in_time {
        Ok(result) => {
            followed.ends(result.is_ok());
            result
        }
        Err(_) => {
            // The controller takes the work for failed by now, so its progress is no longer reported.
            drop(followed);
            work.await
        }
    }
}

/// Handles a call; `read` gets the body before it is dropped, for data that is no field of the request itself.
async fn call_reading<T, A, H, F>(
    api: Shared,
    (route, keep): (Option<&'static str>, Keep),
    request: Request,
    read: impl FnOnce(&[u8]) -> A,
    handler: H,
) -> Response
where
    T: DeserializeOwned + Send + 'static,
    A: Send + 'static,
    H: FnOnce(Shared, T, A) -> F + Send + 'static,
    F: Future<Output = Result<Value, Fault>> + Send + 'static,
{
    let (head, body) = request.into_parts();
    let caller = caller(&head.extensions);
    let way = match way(&head.headers, &api.reaches.of(Some(caller))) {
        Ok(way) => way,
        Err(problem) => return problem.into_result(),
    };
    let bytes = match body::read(body, api.native.http).await {
        Ok(bytes) => bytes,
        Err(problem) => return problem.into_result(),
    };
    if *api.native.phase.borrow() == AgentPhase::Draining {
        return stopping(matches!(way, ReturnPath::Callback(..)));
    }
    let request = body::parse::<T>(&bytes).map_err(|problem| problem.fault);
    let limit = caller_timeout(&bytes, SystemTime::now());
    let aside = read(&bytes);
    let by = principal(&head.extensions);
    let change = route.map(|route| AuditedChange { route, by, of: subject(&api, route, &bytes) });
    drop(bytes);
    let (outbox, shared) = (api.outbox.clone(), api);
    let work = async move { handler(shared, request?, aside).await };
    match way {
        ReturnPath::Now => {
            let noted = change.map(|change| AuditedCall::begins(change, None));
            let result = work.await;
            let is_noted = noted.is_some();
            if let Some(noted) = noted {
                noted.answers(result.as_ref());
            }
            answer_now(result, is_noted)
        }
        ReturnPath::Callback(task, url) => {
            // In a task of its own: a caller that goes away leaves nothing half accepted.
            let taken = (task, url, caller);
            let begun =
                take_in(outbox, taken, (route, keep), (limit, change), work).in_current_span();
            tokio::spawn(begun).await.unwrap_or_else(|_| Problem::of(broke()).into_result())
        }
    }
}

/// Answer to a call while the agent stops. A call with a callback gets the status and the words of the legacy agent, by
/// which it fails at the controller at once.
fn stopping(has_callback: bool) -> Response {
    let text = "kvmagent is stopping: vhost-agent answers in its place, and takes no calls until it is back";
    let problem = Problem::new(Code::Stopping, text);
    match has_callback {
        false => problem.into_result(),
        true => (StatusCode::BAD_REQUEST, Json(result_body(&problem.fault))).into_response(),
    }
}

/// Answer to a call with `headers` that would be forwarded to the legacy agent, while this agent stops.
pub fn refused_while_stopping(headers: &HeaderMap) -> Response {
    stopping(headers.contains_key("taskuuid") && headers.contains_key("callbackurl"))
}

/// Subject of a call. A call that names no target concerns the one with the control socket in its body, else the
/// default target.
fn subject(api: &Shared, route: &str, body: &[u8]) -> Subject {
    let said = Subject::in_body(body);
    let of_node = ["prepareenv", "connect", "updatedependency"];
    if said.target.is_some() || of_node.contains(&route) {
        return said;
    }
    let meant = api.native.target_at(control_in(body)).ok();
    Subject { target: meant.map(|spec| spec.name.to_string()), ..said }
}

/// Accepts a task and begins its work.
async fn take_in(
    outbox: Outbox,
    (task, url, caller): (TaskId, String, Caller),
    (route, keep): (Option<&'static str>, Keep),
    (limit, change): (Option<Duration>, Option<AuditedChange>),
    work: impl Future<Output = Result<Value, Fault>> + Send + 'static,
) -> Response {
    match outbox.admit(&task, &url, (route, keep), caller).await {
        TaskAdmission::Work(slot) => {
            let noted = change.map(|change| AuditedCall::begins(change, Some(&task)));
            tokio::spawn(do_task(task, slot, limit, noted, work));
            StatusCode::OK.into_response()
        }
        TaskAdmission::Known => {
            tracing::info!(%task, "task {task} is known already: the repeated call is ignored");
            StatusCode::OK.into_response()
        }
        TaskAdmission::Full(fault) | TaskAdmission::Unwritable(fault) => {
            Problem::of(fault).into_result()
        }
    }
}

fn answer_now(result: Result<Value, Fault>, is_noted: bool) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(fault) => {
            let status = match fault.code.refuses_compatible_call() {
                true => StatusCode::BAD_REQUEST,
                false => StatusCode::OK,
            };
            let response = (status, Json(result_body(&fault))).into_response();
            // An audited call has its line in the audit log already.
            if is_noted { response } else { refused_with(response, fault.code) }
        }
    }
}

/// Does the work of a task and puts its result into the outbox, at the latest when the controller's timeout ends; the
/// task keeps its slot until the work has really ended.
async fn do_task(
    task: TaskId,
    slot: TaskSlot,
    limit: Option<Duration>,
    noted: Option<AuditedCall>,
    work: impl Future<Output = Result<Value, Fault>> + Send + 'static,
) {
    // In a task of its own, so that a handler that panics is detected here.
    let mut running = tokio::spawn(work);
    let in_time = match limit {
        None => Ok((&mut running).await),
        Some(limit) => timeout(limit, &mut running).await.map_err(|_| limit),
    };
    let (result, _place) = match in_time {
        Ok(ended) => {
            let result = ended.unwrap_or_else(|_| Err(broke()));
            finish(&task, slot, &result).await;
            (result, None)
        }
        Err(limit) => {
            let text =
                format!("not done within the {limit:?} that the controller gave; it goes on");
            let late = Fault::new(Code::TaskTimeout, text);
            tracing::warn!(%task, code = %late.code, "task {task} is {}", late.text);
            let place = slot.finish_early(ascii_json(&result_body(&late))).await;
            (running.await.unwrap_or_else(|_| Err(broke())), Some(place))
        }
    };
    if let Some(noted) = noted {
        noted.answers(result.as_ref());
    }
}

fn broke() -> Fault {
    Fault::new(Code::Internal, "the agent broke on this call; its log has the place: report it")
}

async fn finish(task: &TaskId, slot: TaskSlot, result: &Result<Value, Fault>) {
    match result {
        Ok(value) => slot.finish(ascii_json(value), None).await,
        Err(fault) => {
            tracing::warn!(%task, code = %fault.code, "task {task} failed: {}", fault.text);
            let error = (fault.code == Code::Internal).then(|| fault.text.clone());
            slot.finish(ascii_json(&result_body(fault)), error).await;
        }
    }
}

/// Caller of a request; this node itself, if no listener recorded one.
pub fn caller(extensions: &Extensions) -> Caller {
    extensions.get().copied().unwrap_or(Caller::Here)
}

/// Reads from the headers how to return the result; the caller's egress policy has to allow a callback's address.
fn way(headers: &HeaderMap, reach: &Reach) -> Result<ReturnPath, Problem> {
    let given =
        |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}").trim());
    match (given("taskuuid"), given("callbackurl")) {
        (None, None) => Ok(ReturnPath::Now),
        (None, Some(_)) => {
            Err(Problem::new(Code::TaskUuidMissing, "taskUuid missing in request header"))
        }
        (Some(_), None) => {
            Err(Problem::new(Code::CallbackUrlMissing, "callbackUrl missing in request header"))
        }
        (Some(task), Some(url)) => {
            let task = TaskId::try_from(task.to_string()).map_err(|why| {
                Problem::new(
                    Code::TaskUuidMalformed,
                    format!("taskUuid malformed in request header: {why}"),
                )
            })?;
            HttpUrl::without_user(url).map_err(|why| {
                Problem::new(
                    Code::CallbackUrlMalformed,
                    format!("callbackUrl malformed in request header: {why}"),
                )
            })?;
            reach.authorize_literal(url).map_err(|refused| {
                let text = format!("callbackUrl refused in request header: {refused}");
                Problem::new(Code::CallbackAddressRefused, text)
            })?;
            Ok(ReturnPath::Callback(task, url.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Egress policy for a caller on another machine.
    const REACH: Reach = Reach::Common { loopback: false };

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn headers_say_which_way_and_nonsense_is_refused() {
        let task = "0123456789abcdef0123456789ABCDEF";
        let url = "http://10.0.0.1:8080/zstack/asyncrest/callback";
        assert_eq!(way(&headers(&[]), &REACH).unwrap(), ReturnPath::Now);
        let both = way(&headers(&[("taskuuid", task), ("callbackurl", url)]), &REACH).unwrap();
        assert_eq!(
            both,
            ReturnPath::Callback(TaskId::try_from(task.to_string()).unwrap(), url.to_string())
        );
        let cases = [
            (&[("callbackurl", url)][..], Code::TaskUuidMissing),
            (&[("taskuuid", task)], Code::CallbackUrlMissing),
            (&[("taskuuid", "0123-4567"), ("callbackurl", url)], Code::TaskUuidMalformed),
            (&[("taskuuid", ""), ("callbackurl", url)], Code::TaskUuidMalformed),
            (&[("taskuuid", task), ("callbackurl", "ftp://h/x")], Code::CallbackUrlMalformed),
            (&[("taskuuid", task), ("callbackurl", "/only/a/path")], Code::CallbackUrlMalformed),
            (&[("taskuuid", task), ("callbackurl", "http://")], Code::CallbackUrlMalformed),
            (
                &[("taskuuid", task), ("callbackurl", "file:///etc/passwd")],
                Code::CallbackUrlMalformed,
            ),
            (
                &[("taskuuid", task), ("callbackurl", "http://u:secret@h/x")],
                Code::CallbackUrlMalformed,
            ),
            (
                &[("taskuuid", task), ("callbackurl", "http://127.1:80/")],
                Code::CallbackAddressRefused,
            ),
            (&[("taskuuid", task), ("callbackurl", "http://[::1]/")], Code::CallbackAddressRefused),
        ];
        for (list, code) in cases {
            let problem = way(&headers(list), &REACH).unwrap_err();
            assert_eq!((problem.status(), problem.fault.code), (StatusCode::BAD_REQUEST, code));
            assert!(!problem.fault.text.contains("secret"), "{}", problem.fault);
        }
        let missing = way(&headers(&[("callbackurl", url)]), &REACH).unwrap_err();
        assert_eq!(missing.fault.text, "taskUuid missing in request header");
    }
}
