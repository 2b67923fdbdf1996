//! What happens while a long call runs, for whoever watches: the log, the CLI, a streamed answer.

use tokio::sync::broadcast;

use crate::model::prepare::{Progress, StepReport};
use crate::model::step::Step;

/// Events that a slow watcher may lag behind before it loses the oldest.
const BACKLOG: usize = 256;

/// Where progress is told. Telling never waits; each step also becomes a log line.
#[derive(Debug, Clone)]
pub struct ProgressSink(broadcast::Sender<Progress>);

impl Default for ProgressSink {
    fn default() -> ProgressSink {
        ProgressSink(broadcast::Sender::new(BACKLOG))
    }
}

impl ProgressSink {
    /// Everything that is told from now on.
    pub fn watch(&self) -> broadcast::Receiver<Progress> {
        self.0.subscribe()
    }

    /// A step begins.
    pub fn begun(&self, step: &Step) {
        let (name, subject) = (step.name(), step.subject());
        tracing::debug!(step = name, subject, "{name} {subject} begins");
        let (area, step) = (step.area(), name.to_string());
        let _ = self.0.send(Progress::Begun { area, step, subject });
    }

    /// The step at work printed a line.
    pub fn line(&self, step: &Step, text: String) {
        tracing::info!(step = step.name(), "{text}");
        let _ = self.0.send(Progress::Line { area: step.area(), text });
    }

    /// A step ended.
    pub fn ended(&self, report: &StepReport) {
        let StepReport { step, subject, before, after, outcome, .. } = report;
        let outcome = outcome.word();
        // journalctl shows nothing but the text.
        tracing::info!(
            step,
            subject,
            before,
            after,
            outcome,
            ms = report.duration_ms,
            "{step} {subject}: {before} -> {after} ({outcome})"
        );
        let _ = self.0.send(Progress::Ended(report.clone()));
    }
}
