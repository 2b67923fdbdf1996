//! One line in the log when a call that changes the node begins, and one when it ends. Never what a
//! body says.

use std::time::Instant;

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
        tracing::info!(route, task = task.map(TaskId::as_str), "call begins");
        Call { route, task: task.cloned(), began: Instant::now(), ended: false }
    }

    /// Notes how it ended.
    pub fn ends(mut self, fault: Option<&Fault>) {
        match fault {
            None => self.note("done", None),
            Some(fault) => self.note("failed", Some(&fault.code)),
        }
    }

    /// Notes how a prepare or a restore ended.
    pub fn reports(mut self, report: &PrepareReport) {
        let outcome = match report.outcome {
            Outcome::Holds => "holds",
            Outcome::Changed => "changed",
            Outcome::WouldChange => "wouldChange",
            Outcome::Failed => "failed",
        };
        self.note(outcome, report.errors.first().map(|fault| fault.code.as_ref()));
    }

    fn note(&mut self, outcome: &str, code: Option<&str>) {
        self.ended = true;
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let task = self.task.as_ref().map(TaskId::as_str);
        tracing::info!(route = self.route, task, outcome, code, ms, "call ends");
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.note("unanswered", None);
        }
    }
}
