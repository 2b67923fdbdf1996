//! Audit log: one line when a call that may change the node ends, with its caller and its outcome, and one line for a
//! refused call.
//!
//! A call that takes longer than a second is also logged while it runs, because its end is never logged if the agent
//! dies. A shorter call that found everything in place is logged at `debug`. Of a client that is refused too often,
//! only the number of further refusals is logged. Of a request's body, only the names in it are logged.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{Extensions, Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::refusals::Refusals;
use crate::log::AUDIT;
use crate::model::access::Principal;
use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::{Outcome, PrepareReport};
use crate::model::task::TaskId;

/// Limit of characters logged of a name or a path, because the caller chooses its length.
const MOST_CHARACTERS: usize = 120;

/// Objects that a call concerns, as its caller names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub target: Option<String>,
    /// Name of the volume, or of its bdev.
    pub volume: Option<String>,
    pub force: bool,
    /// Method and path of a forwarded request.
    pub request: Option<String>,
}

/// Names in the body of a compatible request, as the controller writes them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Names {
    container_name: Value,
    controller_name: Value,
    bdev_name: Value,
}

impl Subject {
    pub fn target(name: &impl ToString) -> Subject {
        Subject { target: Some(name.to_string()), ..Subject::default() }
    }

    pub fn volume(self, name: &impl ToString) -> Subject {
        Subject { volume: Some(name.to_string()), ..self }
    }

    /// Subject of a forwarded request.
    pub fn request(method: &Method, path: &str) -> Subject {
        Subject { request: Some(cut(&format!("{method} {path}"))), ..Subject::default() }
    }

    /// Subject of a compatible call, from the names in its body.
    pub fn in_body(bytes: &[u8]) -> Subject {
        let Ok(names) = serde_json::from_slice::<Names>(bytes) else { return Subject::default() };
        let name = |value: &Value| value.as_str().filter(|name| !name.is_empty()).map(cut);
        let volume = name(&names.controller_name).or_else(|| name(&names.bdev_name));
        Subject { target: name(&names.container_name), volume, ..Subject::default() }
    }
}

/// Shortens a text that its caller chose, and replaces its control characters, for the log.
fn cut(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(MOST_CHARACTERS).map(plain).collect()
}

/// Caller of a request. A request without a [`Principal`] came through no listener: a command of this process made it.
pub fn principal(extensions: &Extensions) -> Principal {
    extensions.get().cloned().unwrap_or_else(Principal::command)
}

/// Caller of a refused request.
#[derive(Debug, Clone, Copy)]
pub struct RefusedCaller<'a> {
    /// Name of the caller's credential, or a description of the peer if there is none.
    pub by: &'a str,
    pub caller: Caller,
    /// User ID, if the caller is a known process of this node.
    pub uid: Option<u32>,
    /// Method and path of the request.
    pub what: &'a str,
}

/// Time from the first unlogged refusal of a client until the number of its unlogged refusals is logged.
const SUMMARY_AFTER: Duration = Duration::from_secs(60);

/// Counts a refusal and logs it. If the client is refused too often, the refusal is only counted, and the number of
/// such refusals is logged after `SUMMARY_AFTER`.
///
/// Returns the time by which the reply is to be delayed. Must run within a runtime.
pub fn refused(refusals: &Refusals, refused: RefusedCaller<'_>, reason: &'static str) -> Duration {
    let RefusedCaller { by, caller, uid, what } = refused;
    let client = (caller.into(), uid);
    let pace = refusals.note(client, reason, Instant::now());
    let (what, address) = (cut(what), caller.to_string());
    if let Some(unlogged) = pace.unlogged {
        tracing::warn!(
            target: AUDIT,
            by,
            address,
            route = what,
            outcome = "refused",
            code = reason,
            unlogged = (unlogged > 0).then_some(unlogged),
            "{what} of {by} at {address} was refused: {reason}"
        );
    } else if pace.is_first_unlogged {
        let refusals = refusals.clone();
        tokio::spawn(async move {
            sleep(SUMMARY_AFTER).await;
            // Zero if the line of a later refusal has reported them.
            let unlogged = Some(refusals.take_unlogged(&client)).filter(|unlogged| *unlogged > 0);
            let Some(unlogged) = unlogged else { return };
            tracing::warn!(
                target: AUDIT,
                address,
                outcome = "refused",
                unlogged,
                "{unlogged} more calls from {address} were refused"
            );
        });
    }
    pace.delay
}

/// Change that a call is to make, and its caller.
#[derive(Debug, Clone)]
pub struct AuditedChange {
    /// Name of the call in the log, such as `activate`.
    pub route: &'static str,
    pub by: Principal,
    pub of: Subject,
}

impl AuditedChange {
    /// Change of the node as a whole.
    pub fn of(route: &'static str, by: Principal) -> AuditedChange {
        AuditedChange { route, by, of: Subject::default() }
    }
}

/// Duration of a call after which it is logged as begun.
const LONG: Duration = Duration::from_secs(1);

/// Call in progress. If it is dropped before an outcome is logged, its caller has gone, and it is logged as
/// `unanswered`.
#[derive(Debug)]
pub struct AuditedCall {
    begun: Arc<CallInProgress>,
    ended: bool,
    /// Task that logs the call as begun once it takes longer than `LONG`.
    long: JoinHandle<()>,
}

#[derive(Debug)]
struct CallInProgress {
    change: AuditedChange,
    task: Option<TaskId>,
    at: Instant,
    noted: Mutex<LineState>,
}

/// Last line that was logged for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineState {
    No,
    Begun,
    Ended,
}

impl AuditedCall {
    /// Records that a call begins. Must run within a runtime.
    pub fn begins(change: AuditedChange, task: Option<&TaskId>) -> AuditedCall {
        let route = change.route;
        tracing::debug!(route, task = task.map(TaskId::as_str), "{route} begins");
        let (task, at, noted) = (task.cloned(), Instant::now(), Mutex::new(LineState::No));
        let begun = Arc::new(CallInProgress { change, task, at, noted });
        let is_long = begun.clone();
        let long = tokio::spawn(async move {
            sleep(LONG).await;
            is_long.note("begun", None, LineState::Begun);
        });
        AuditedCall { begun, ended: false, long }
    }

    /// Logs the end of the call: done, or failed with `fault`.
    pub fn ends(mut self, fault: Option<&Fault>) {
        match fault {
            None => self.note("done", None),
            Some(fault) => self.note(Outcome::Failed.word(), Some(fault.code)),
        }
    }

    /// Logs the end of a forwarded call, with the status of its reply.
    pub fn passes(mut self, status: StatusCode) {
        let outcome = if status.is_success() { "done" } else { Outcome::Failed.word() };
        self.note(&format!("{outcome} ({})", status.as_u16()), None);
    }

    /// Logs the end of a call that was answered with `answer`: the member `outcome` of the answer if it has one, else
    /// done or failed.
    pub fn answers(mut self, answer: Result<&Value, &Fault>) {
        match answer.map(|value| value.get("outcome").and_then(Value::as_str)) {
            Ok(Some(outcome)) => self.note(outcome, None),
            Ok(None) => self.ends(None),
            Err(fault) => self.ends(Some(fault)),
        }
    }

    /// Logs the outcome of a prepare or a restore.
    pub fn reports(mut self, report: &PrepareReport) {
        self.note(report.outcome.word(), report.errors.first().map(|fault| fault.code));
    }

    fn note(&mut self, outcome: &str, code: Option<Code>) {
        self.ended = true;
        self.long.abort();
        self.begun.note(outcome, code, LineState::Ended);
    }
}

impl CallInProgress {
    fn note(&self, outcome: &str, code: Option<Code>, now: LineState) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *noted, now);
        if before == LineState::Ended {
            *noted = before;
            return;
        }
        let ms = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let task = self.task.as_ref().map(TaskId::as_str);
        let AuditedChange { route, by: Principal { name, caller, role, .. }, of } = &self.change;
        // Not audited: a controller asks every minute whether everything is in place.
        if outcome == Outcome::Holds.word() && before == LineState::No {
            return tracing::debug!(route, task, outcome, ms, "{route}: {outcome}");
        }
        let Subject { target, volume, force, request } = of;
        let subject =
            [target, volume, request].into_iter().flatten().cloned().collect::<Vec<_>>().join("/");
        let of = if subject.is_empty() { subject } else { format!(" of {subject}") };
        tracing::info!(
            target: AUDIT,
            by = name.as_ref(),
            address = caller.to_string(),
            role = role.to_string(),
            route,
            of_target = target.as_deref(),
            volume = volume.as_deref(),
            request = request.as_deref(),
            force = force.then_some(true),
            task,
            outcome,
            code = code.map(Code::as_str),
            ms,
            "{route}{of} by {name}: {outcome}"
        );
    }
}

impl Drop for AuditedCall {
    fn drop(&mut self) {
        if !self.ended {
            self.note("unanswered", None);
        }
    }
}
