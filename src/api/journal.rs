//! One line in the log for each call that may change the node: when it ends, with what came of it. That
//! it begins, or found everything in place, is told to who wants more (`debug`); its steps are told one
//! by one. Never what a body says.

use std::time::Instant;

use serde_json::Value;

use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::{Outcome, PrepareReport};
use crate::model::task::TaskId;

/// A call at work. One that is dropped before it ended has lost its caller.
#[derive(Debug)]
pub struct Call {
    route: &'static str,
    task: Option<TaskId>,
    began: Instant,
    ended: bool,
}

impl Call {
    /// Notes that it begins.
    pub fn begins(route: &'static str, task: Option<&TaskId>) -> Call {
        tracing::debug!(route, task = task.map(TaskId::as_str), "{route} begins");
        Call { route, task: task.cloned(), began: Instant::now(), ended: false }
    }

    /// Notes how it ended.
    pub fn ends(mut self, fault: Option<&Fault>) {
        match fault {
            None => self.note("done", None),
            Some(fault) => self.note(Outcome::Failed.word(), Some(fault.code)),
        }
    }

    /// Notes how it was answered; an answer may tell an `outcome` of its own.
    pub fn answers(mut self, answer: Result<&Value, &Fault>) {
        match answer.map(|value| value.get("outcome").and_then(Value::as_str)) {
            Ok(Some(outcome)) => self.note(outcome, None),
            Ok(None) => self.ends(None),
            Err(fault) => self.ends(Some(fault)),
        }
    }

    /// Notes how a prepare or a restore ended.
    pub fn reports(mut self, report: &PrepareReport) {
        self.note(report.outcome.word(), report.errors.first().map(|fault| fault.code));
    }

    fn note(&mut self, outcome: &str, code: Option<Code>) {
        self.ended = true;
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let task = self.task.as_ref().map(TaskId::as_str);
        let route = self.route;
        // A controller asks every minute whether all is in place.
        if outcome == Outcome::Holds.word() {
            return tracing::debug!(route, task, outcome, ms, "{route}: {outcome}");
        }
        tracing::info!(
            route,
            task,
            outcome,
            code = code.map(Code::as_str),
            ms,
            "{route}: {outcome}"
        );
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.note("unanswered", None);
        }
    }
}
