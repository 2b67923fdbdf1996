//! Progress of long work, for subscribers: the log, the CLI, a streamed answer.

use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::model::fault::Fault;
use crate::model::prepare::{Progress, StepOutcome, StepReport, WorkEvent};
use crate::model::step::Step;
use crate::model::work::WorkId;

/// Number of events that a slow subscriber may lag behind before it loses the oldest.
const BACKLOG: usize = 256;

/// Publisher of progress. Publishing never waits; each step also becomes a log line.
#[derive(Debug, Clone)]
pub struct ProgressSink {
    published: broadcast::Sender<Progress>,
    work: WorkId,
}

impl Default for ProgressSink {
    fn default() -> ProgressSink {
        ProgressSink { published: broadcast::Sender::new(BACKLOG), work: WorkId::default() }
    }
}

impl ProgressSink {
    /// Subscribes to new progress, of all work.
    pub fn watch(&self) -> broadcast::Receiver<Progress> {
        self.published.subscribe()
    }

    /// Makes a publisher for that work.
    pub fn of(&self, work: WorkId) -> ProgressSink {
        ProgressSink { published: self.published.clone(), work }
    }

    fn publish(&self, event: WorkEvent) {
        // There may be no subscriber.
        let _ = self.published.send(Progress { work: self.work, event });
    }

    /// Publishes the begin of a step.
    pub fn begun(&self, step: &Step) -> StepInProgress {
        let (name, subject) = (step.name(), step.subject());
        tracing::debug!(work = %self.work, step = name, subject, "{name} {subject} begins");
        self.publish(WorkEvent::Begun { area: step.area(), step: name.to_string(), subject });
        StepInProgress { progress: self.clone(), step: step.clone(), at: Instant::now() }
    }
}

/// Step in progress.
#[derive(Debug, Clone)]
pub struct StepInProgress {
    progress: ProgressSink,
    step: Step,
    at: Instant,
}

impl StepInProgress {
    /// Publishes a line of the step's output.
    pub fn line(&self, text: String) {
        tracing::info!(work = %self.progress.work, step = self.step.name(), "{text}");
        self.progress.publish(WorkEvent::Line { area: self.step.area(), text });
    }

    /// Ends the step, and adds it to `reports`: with the state after it, or with its fault.
    ///
    /// # Errors
    /// Fault of the step.
    pub fn applied(
        self,
        applied: Result<String, Fault>,
        reports: &mut Vec<StepReport>,
    ) -> Result<(), Fault> {
        let (before, _) = self.step.before_after();
        let (after, outcome) = match &applied {
            Ok(after) => (after.clone(), StepOutcome::Done),
            Err(fault) => (fault.text.clone(), StepOutcome::Failed),
        };
        self.ended((before, after), outcome, reports);
        applied.map(drop)
    }

    /// Ends the step with this outcome and the state before and after it.
    pub fn ended(
        self,
        (before, after): (String, String),
        outcome: StepOutcome,
        reports: &mut Vec<StepReport>,
    ) {
        let report = StepReport::of(&self.step, before, after, outcome, self.at.elapsed());
        let StepReport { step, subject, before, after, outcome, .. } = &report;
        let outcome = outcome.word();
        // journalctl shows nothing but the text.
        tracing::info!(
            work = %self.progress.work,
            step,
            subject,
            before,
            after,
            outcome,
            ms = report.duration_ms,
            "{step} {subject}: {before} -> {after} ({outcome})"
        );
        self.progress.publish(WorkEvent::Ended(report.clone()));
        reports.push(report);
    }
}
