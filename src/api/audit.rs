//! Audit log: one line for each call that may change the node, when it ends, with its caller and its outcome, and one
//! for each refused call. A call that takes longer than a second has an earlier line, too: should the agent die, its
//! end is never logged. A call that found everything in place is logged at `debug`; its steps are logged one by one. Of
//! a body, only the names in it are logged.

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

/// Limit of characters logged of a name, or of a path, which its caller chose.
const MOST_CHARACTERS: usize = 120;

/// Objects of a call, by the names that its caller gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub target: Option<String>,
    /// Volume or bdev.
    pub volume: Option<String>,
    pub force: bool,
    /// Method and path of a forwarded request.
    pub request: Option<String>,
}

/// Names in a body of the controller.
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

    /// Subject of a compatible call, by its body.
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

/// Caller of a request; where no listener authorized it, the command of this process.
pub fn principal(extensions: &Extensions) -> Principal {
    extensions.get().cloned().unwrap_or_else(Principal::command)
}

/// Caller of a refused request.
#[derive(Debug, Clone, Copy)]
pub struct RefusedCaller<'a> {
    /// Name, as far as known.
    pub by: &'a str,
    pub caller: Caller,
    /// User, if on this node.
    pub uid: Option<u32>,
    /// Method and path of the request.
    pub what: &'a str,
}

/// Longest time for which the refusals of one client that are not logged one by one stay unreported.
const SUMMARY_AFTER: Duration = Duration::from_secs(60);

/// Counts a refusal and logs it, or, where its client is refused too often, logs after a while how many there were.
/// Returns the delay of its answer. Must run within a runtime.
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
            untold = (unlogged > 0).then_some(unlogged),
            "{what} of {by} at {address} was refused: {reason}"
        );
    } else if pace.is_first_unlogged {
        let refusals = refusals.clone();
        tokio::spawn(async move {
            sleep(SUMMARY_AFTER).await;
            // None where a later line has reported them.
            let unlogged = Some(refusals.take_unlogged(&client)).filter(|unlogged| *unlogged > 0);
            let Some(unlogged) = unlogged else { return };
            tracing::warn!(
                target: AUDIT,
                address,
                outcome = "refused",
                untold = unlogged,
                "{unlogged} more calls from {address} were refused"
            );
        });
    }
    pace.delay
}

/// Change that a call is to make, and its caller.
#[derive(Debug, Clone)]
pub struct AuditedChange {
    /// Name in the log.
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

/// Duration after which an unfinished call is logged.
const LONG: Duration = Duration::from_secs(1);

/// Call in progress. One that is dropped before its end has lost its caller.
#[derive(Debug)]
pub struct AuditedCall {
    begun: Arc<CallInProgress>,
    ended: bool,
    /// Task that logs a long call.
    long: JoinHandle<()>,
}

#[derive(Debug)]
struct CallInProgress {
    change: AuditedChange,
    task: Option<TaskId>,
    at: Instant,
    noted: Mutex<LineState>,
}

/// Last line of a call.
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

    /// Logs the outcome.
    pub fn ends(mut self, fault: Option<&Fault>) {
        match fault {
            None => self.note("done", None),
            Some(fault) => self.note(Outcome::Failed.word(), Some(fault.code)),
        }
    }

    /// Logs the status with which it was answered elsewhere.
    pub fn passes(mut self, status: StatusCode) {
        let outcome = if status.is_success() { "done" } else { Outcome::Failed.word() };
        self.note(&format!("{outcome} ({})", status.as_u16()), None);
    }

    /// Logs the answer, which may carry an `outcome` of its own.
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
        // A controller asks every minute whether all is in place.
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
