//! Progress of long work, for whoever watches: the log, the CLI, a streamed answer.

use tokio::sync::broadcast;

use crate::model::prepare::{Progress, StepReport, WorkEvent};
use crate::model::step::Step;
use crate::model::work::WorkId;

/// Events that a slow watcher may lag behind before it loses the oldest.
const BACKLOG: usize = 256;

/// Where progress is told. Telling never waits; each step also becomes a log line.
#[derive(Debug, Clone)]
pub struct ProgressSink {
    told: broadcast::Sender<Progress>,
    work: WorkId,
}

impl Default for ProgressSink {
    fn default() -> ProgressSink {
        ProgressSink { told: broadcast::Sender::new(BACKLOG), work: WorkId::default() }
    }
}

impl ProgressSink {
    /// Everything that is told from now on, of all work.
    pub fn watch(&self) -> broadcast::Receiver<Progress> {
        self.told.subscribe()
    }

    /// The same, for what is done in that work.
    pub fn of(&self, work: WorkId) -> ProgressSink {
        ProgressSink { told: self.told.clone(), work }
    }

    fn tell(&self, event: WorkEvent) {
        // Nobody may watch.
        let _ = self.told.send(Progress { work: self.work, event });
    }

    /// A step begins.
    pub fn begun(&self, step: &Step) {
        let (name, subject) = (step.name(), step.subject());
        tracing::debug!(work = %self.work, step = name, subject, "{name} {subject} begins");
        let (area, step) = (step.area(), name.to_string());
        self.tell(WorkEvent::Begun { area, step, subject });
    }

    /// The step at work printed a line.
    pub fn line(&self, step: &Step, text: String) {
        tracing::info!(work = %self.work, step = step.name(), "{text}");
        self.tell(WorkEvent::Line { area: step.area(), text });
    }

    /// A step ended.
    pub fn ended(&self, report: &StepReport) {
        let StepReport { step, subject, before, after, outcome, .. } = report;
        let outcome = outcome.word();
        // journalctl shows nothing but the text.
        tracing::info!(
            work = %self.work,
            step,
            subject,
            before,
            after,
            outcome,
            ms = report.duration_ms,
            "{step} {subject}: {before} -> {after} ({outcome})"
        );
        self.tell(WorkEvent::Ended(report.clone()));
    }
}
