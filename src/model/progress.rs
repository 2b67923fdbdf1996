//! Progress of long-running work, for a controller that requested it: the last event, and a percentage.
//!
//! Steps are published for the whole node; their [`WorkId`] tells which of them belong to one request. The number of
//! steps still to come is unknown, because each round is planned from the result of the last one. So the percentage of
//! a [`ProgressSource`] comes closer to the end of its stage with each step that has ended, and reaches the end only
//! with the request's success.

use std::time::Duration;

use serde_json::{Value, json};

use super::caller::Caller;
use super::prepare::{Progress, WorkEvent};
use super::step::Area;
use super::work::WorkId;

/// Largest number of characters of an output line in a report.
const LINE_CHARACTERS: usize = 1000;

/// Request of a controller for progress reports.
#[derive(Debug, Clone, PartialEq)]
pub struct ProgressRequest {
    /// Value that each report returns unchanged.
    pub context: Value,
    /// Value that each report returns unchanged.
    pub stack: Value,
    /// Address of the reports; `None`: the address that the controller gave when it connected.
    pub url: Option<String>,
    pub caller: Caller,
    /// Part of the controller's whole job that the request makes up.
    pub stage: Stage,
    /// Time for which the controller waits for the request; nothing is reported afterwards.
    pub timeout: Option<Duration>,
}

/// Part of the controller's whole job that a request makes up: from `start` to `end` percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    start: u32,
    end: u32,
}

impl Default for Stage {
    fn default() -> Stage {
        Stage { start: 0, end: 100 }
    }
}

impl Stage {
    /// Parses a range such as `20-80`; `None` unless it lies within 0 and 100.
    pub fn parse(text: &str) -> Option<Stage> {
        let (start, end) = text.split_once('-')?;
        let (start, end) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
        (start <= end && end <= 100).then_some(Stage { start, end })
    }

    /// Percentage of the whole job after `steps` steps. Of the stage, `steps / (steps + 1)` is done then, rounded down.
    pub fn after(self, steps: u32) -> u32 {
        let span = u64::from(self.end - self.start);
        let gone = span * u64::from(steps) / (u64::from(steps) + 1);
        self.start + u32::try_from(gone).unwrap_or_default()
    }
}

/// Kind of a request's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    Prepare,
    Deploy,
}

impl WorkKind {
    /// Name in reports to the controller.
    pub fn name(self) -> &'static str {
        match self {
            WorkKind::Prepare => "vhost-target-prepare",
            WorkKind::Deploy => "vhost-target-deploy",
        }
    }
}

/// Urgency of an event's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Start or end of a step: reported at once.
    Step,
    /// Output line: reported now and then.
    Line,
}

/// Progress of one request's work.
#[derive(Debug)]
pub struct ProgressSource {
    work: WorkId,
    stage: Stage,
    ended: u32,
    succeeded: bool,
    /// Running steps: (area, step, subject). At most one in each area.
    at_work: Vec<(Area, String, String)>,
    last: Value,
}

impl ProgressSource {
    /// Progress at the start of the work.
    pub fn new(work: WorkId, stage: Stage) -> ProgressSource {
        let at_work = Vec::new();
        ProgressSource { work, stage, ended: 0, succeeded: false, at_work, last: Value::Null }
    }

    /// Records an event of the node, and returns the urgency of its report. `None` if the event belongs to other work,
    /// or is the output of a step that is not running.
    pub fn hear(&mut self, progress: Progress) -> Option<Weight> {
        if progress.work != self.work {
            return None;
        }
        match progress.event {
            WorkEvent::Begun { area, step, subject } => {
                self.last = json!({"step": step, "subject": subject, "outcome": "begun"});
                self.at_work.retain(|(at, ..)| *at != area);
                self.at_work.push((area, step, subject));
            }
            WorkEvent::Line { area, text } => {
                let (_, step, subject) = self.at_work.iter().find(|(at, ..)| *at == area)?;
                let text: String = text.chars().take(LINE_CHARACTERS).collect();
                self.last = json!({"step": step, "subject": subject, "text": text});
                return Some(Weight::Line);
            }
            WorkEvent::Ended(report) => {
                self.at_work.retain(|(at, ..)| *at != report.area);
                self.ended = self.ended.saturating_add(1);
                let (step, subject) = (report.step, report.subject);
                self.last =
                    json!({"step": step, "subject": subject, "outcome": report.outcome.word()});
            }
        }
        Some(Weight::Step)
    }

    /// Marks the request as succeeded.
    pub fn succeeds(&mut self) {
        self.succeeded = true;
    }

    /// Percentage of the whole job that is done.
    pub fn percent(&self) -> u32 {
        match self.succeeded {
            true => self.stage.end,
            false => self.stage.after(self.ended),
        }
    }

    /// Last event; null before the first step.
    pub fn last(&self) -> &Value {
        &self.last
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::prepare::{StepOutcome, StepReport};
    use crate::model::step::Step;

    fn of(work: WorkId, event: WorkEvent) -> Progress {
        Progress { work, event }
    }

    fn begun(area: Area, step: &str, subject: &str) -> WorkEvent {
        WorkEvent::Begun { area, step: step.to_string(), subject: subject.to_string() }
    }

    fn ended(area: Area, step: &str, subject: &str) -> WorkEvent {
        let any = Step::DropPageCache;
        let done =
            StepReport::of(&any, String::new(), String::new(), StepOutcome::Done, Duration::ZERO);
        let (step, subject) = (step.to_string(), subject.to_string());
        WorkEvent::Ended(StepReport { area, step, subject, ..done })
    }

    fn line(area: Area, text: &str) -> WorkEvent {
        WorkEvent::Line { area, text: text.to_string() }
    }

    #[test]
    fn a_stage_is_two_percents_in_order_or_nothing() {
        for text in ["20-80", " 20 - 80 "] {
            assert_eq!(Stage::parse(text), Some(Stage { start: 20, end: 80 }), "{text}");
        }
        assert_eq!(Stage::parse("0-100"), Some(Stage::default()));
        assert_eq!(Stage::parse("50-50"), Some(Stage { start: 50, end: 50 }));
        for text in ["", "-", "20", "80-20", "0-101", "-5-10", "20-80-90", "a-b", "1.5-2", "20–80"]
        {
            assert_eq!(Stage::parse(text), None, "{text}");
        }
    }

    #[test]
    fn each_step_takes_a_smaller_part_of_the_stage_and_none_its_end() {
        let percents = |stage: Stage| [0, 1, 2, 3, 9].map(|steps| stage.after(steps));
        assert_eq!(percents(Stage::default()), [0, 50, 66, 75, 90]);
        assert_eq!(percents(Stage { start: 20, end: 80 }), [20, 50, 60, 65, 74]);
        assert_eq!(percents(Stage { start: 7, end: 7 }), [7; 5]);
        assert_eq!(Stage::default().after(u32::MAX), 99);
    }

    #[test]
    fn course_counts_the_steps_of_its_work_and_ends_whole_only_when_that_succeeds() {
        let (work, other) = (WorkId::next(), WorkId::next());
        let mut course = ProgressSource::new(work, Stage { start: 20, end: 80 });
        let mut hear = |of_work, event| {
            let weight = course.hear(of(of_work, event));
            (weight, course.percent(), course.last().clone())
        };
        assert_eq!(hear(work, begun(Area::Engine, "install", "apt")).0, Some(Weight::Step));
        assert_eq!(hear(other, begun(Area::Engine, "start", "docker")).0, None);
        let last = json!({"step": "install", "subject": "apt", "text": "unpacking"});
        let unpacking = || line(Area::Engine, "unpacking");
        assert_eq!(hear(work, unpacking()), (Some(Weight::Line), 20, last.clone()));
        assert_eq!(hear(other, line(Area::Engine, "another's")), (None, 20, last.clone()));
        assert_eq!(hear(other, ended(Area::Engine, "install", "apt")), (None, 20, last));
        let last = json!({"step": "install", "subject": "apt", "outcome": "done"});
        let done = ended(Area::Engine, "install", "apt");
        assert_eq!(hear(work, done), (Some(Weight::Step), 50, last.clone()));
        assert_eq!(hear(work, line(Area::Engine, "of no step")), (None, 50, last.clone()));
        course.succeeds();
        assert_eq!((course.percent(), course.last()), (80, &last));
    }

    #[test]
    fn an_endless_line_is_reported_in_part() {
        let work = WorkId::next();
        let mut course = ProgressSource::new(work, Stage::default());
        course.hear(of(work, begun(Area::Engine, "install", "apt")));
        course.hear(of(work, line(Area::Engine, &"ü".repeat(5000))));
        assert_eq!(course.last()["text"].as_str().map(|text| text.chars().count()), Some(1000));
    }
}
