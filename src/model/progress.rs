//! How far long work is, for a controller that asked for it: what counts, and which number it comes to.
//!
//! Steps are told for the whole node; a [`Scope`] says which of them belong to one call. How many are still
//! to come nobody knows, for each round is planned from what the last one left. So a [`Course`] comes closer
//! to its end with each step that has ended and reaches it only with the call's success.

use std::time::Duration;

use serde_json::{Value, json};

use super::caller::Caller;
use super::prepare::Progress;
use super::step::Area;
use super::target::{TargetKind, TargetSpec};

/// The most characters of a printed line that are told.
const LINE_CHARACTERS: usize = 1000;

/// A call's wish to be told how its work goes on, as the controller wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Goes back as it came.
    pub context: Value,
    /// Goes back as it came.
    pub stack: Value,
    /// Where to; where the controller said when it connected, when it is not set.
    pub url: Option<String>,
    /// Who asked.
    pub caller: Caller,
    /// The share of the whole that this call is.
    pub stage: Stage,
    /// How long the controller waits for the call; it is told no more afterwards.
    pub patience: Option<Duration>,
}

/// The share of the whole that a call is, in percent.
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
    /// Reads what stands as `20-80`; `None` for what is no part of a whole.
    pub fn parse(text: &str) -> Option<Stage> {
        let (start, end) = text.split_once('-')?;
        let (start, end) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
        (start <= end && end <= 100).then_some(Stage { start, end })
    }

    /// Where in the whole the work is after so many steps: 100 - 100/(steps + 1) percent of the stage,
    /// rounded down.
    pub fn after(self, steps: u32) -> u32 {
        let span = u64::from(self.end - self.start);
        let gone = span * u64::from(steps) / (u64::from(steps) + 1);
        self.start + u32::try_from(gone).unwrap_or_default()
    }
}

/// Which work a call is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The node is made fit for targets.
    Prepare,
    /// This target is made to run.
    Deploy(Box<TargetSpec>),
}

impl Scope {
    /// What the controller is told that it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Scope::Prepare => "vhost-target-prepare",
            Scope::Deploy(_) => "vhost-target-deploy",
        }
    }

    /// Whether a step can be this work's.
    fn has(&self, area: Area, step: &str, subject: &str) -> bool {
        match self {
            Scope::Prepare => area != Area::Target,
            // Several targets can be worked on at a time, and steps name what they change.
            Scope::Deploy(spec) => match step {
                "createContainer" | "startContainer" | "stopContainer" | "removeContainer" => {
                    subject == spec.name.as_str()
                }
                "prepareSockets" => subject == spec.socket_dir.as_str(),
                "awaitTarget" => subject == spec.control_sock.as_str(),
                // The built-in image has a name that the wish does not know.
                "loadImage" if spec.kind != TargetKind::BuiltIn => {
                    spec.image.as_ref().is_none_or(|image| subject == image)
                }
                _ => true,
            },
        }
    }
}

/// How soon what was heard is worth a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// A step began or ended: at once.
    Step,
    /// A line was printed: now and then.
    Line,
}

/// How far one call's work is.
#[derive(Debug)]
pub struct Course {
    scope: Scope,
    stage: Stage,
    ended: u32,
    succeeded: bool,
    /// The steps at work: the part of the node, the step, its subject. One at a time in each part.
    at_work: Vec<(Area, String, String)>,
    last: Value,
}

impl Course {
    /// One at its beginning.
    pub fn new(scope: Scope, stage: Stage) -> Course {
        let at_work = Vec::new();
        Course { scope, stage, ended: 0, succeeded: false, at_work, last: Value::Null }
    }

    /// Notes what happened on the node; `None` when it is no news of this work.
    pub fn hear(&mut self, event: Progress) -> Option<Weight> {
        match event {
            Progress::Begun { area, step, subject } => {
                if !self.scope.has(area, &step, &subject) {
                    return None;
                }
                self.last = json!({"step": step, "subject": subject, "outcome": "begun"});
                self.at_work.retain(|(at, ..)| *at != area);
                self.at_work.push((area, step, subject));
            }
            Progress::Line { area, text } => {
                // A line does not say whose it is: only while a step of this work is there it is taken for its.
                let (_, step, subject) = self.at_work.iter().find(|(at, ..)| *at == area)?;
                let text: String = text.chars().take(LINE_CHARACTERS).collect();
                self.last = json!({"step": step, "subject": subject, "text": text});
                return Some(Weight::Line);
            }
            Progress::Ended(report) => {
                if !self.scope.has(report.area, &report.step, &report.subject) {
                    return None;
                }
                self.at_work.retain(|(at, ..)| *at != report.area);
                self.ended = self.ended.saturating_add(1);
                let (step, subject) = (report.step, report.subject);
                self.last =
                    json!({"step": step, "subject": subject, "outcome": report.outcome.word()});
            }
        }
        Some(Weight::Step)
    }

    /// The call has succeeded.
    pub fn succeeds(&mut self) {
        self.succeeded = true;
    }

    /// How much of the whole is done, in percent.
    pub fn percent(&self) -> u32 {
        match self.succeeded {
            true => self.stage.end,
            false => self.stage.after(self.ended),
        }
    }

    /// What happened last; null before the first step.
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

    fn begun(area: Area, step: &str, subject: &str) -> Progress {
        Progress::Begun { area, step: step.to_string(), subject: subject.to_string() }
    }

    fn ended(area: Area, step: &str, subject: &str) -> Progress {
        let any = Step::DropPageCache;
        let done =
            StepReport::of(&any, String::new(), String::new(), StepOutcome::Done, Duration::ZERO);
        let (step, subject) = (step.to_string(), subject.to_string());
        Progress::Ended(StepReport { area, step, subject, ..done })
    }

    fn line(area: Area, text: &str) -> Progress {
        Progress::Line { area, text: text.to_string() }
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
    fn a_prepare_counts_what_is_not_a_targets_and_ends_whole_only_when_it_succeeds() {
        let mut course = Course::new(Scope::Prepare, Stage { start: 20, end: 80 });
        assert_eq!((course.percent(), course.last()), (20, &Value::Null));
        assert_eq!(course.hear(begun(Area::Engine, "install", "apt")), Some(Weight::Step));
        assert_eq!(course.hear(begun(Area::Target, "startContainer", "t")), None);
        assert_eq!(course.hear(line(Area::Engine, "unpacking")), Some(Weight::Line));
        let last = json!({"step": "install", "subject": "apt", "text": "unpacking"});
        assert_eq!((course.percent(), course.last()), (20, &last));
        assert_eq!(course.hear(ended(Area::Target, "startContainer", "t")), None);
        assert_eq!(course.hear(ended(Area::Engine, "install", "apt")), Some(Weight::Step));
        let last = json!({"step": "install", "subject": "apt", "outcome": "done"});
        assert_eq!((course.percent(), course.last()), (50, &last));
        assert_eq!(course.hear(line(Area::Engine, "of nobody")), None);
        course.succeeds();
        assert_eq!((course.percent(), course.last()), (80, &last));
    }

    #[test]
    fn a_deploy_counts_every_area_and_no_step_that_names_another_target() {
        let spec = TargetSpec::example("mine");
        let (socket, folder) = (spec.control_sock.clone(), spec.socket_dir.clone());
        let mut course = Course::new(Scope::Deploy(Box::new(spec)), Stage::default());
        let others = [
            ended(Area::Target, "createContainer", "other"),
            ended(Area::Target, "awaitTarget", "/other/vhost.sock"),
            ended(Area::Target, "prepareSockets", "/other"),
            begun(Area::Target, "startContainer", "other"),
            line(Area::Target, "of the other one"),
        ];
        for event in others {
            assert_eq!(course.hear(event.clone()), None, "{event:?}");
        }
        let own = [
            ended(Area::Pools, "grow", "node0/2M"),
            ended(Area::Target, "loadImage", "any:1"),
            ended(Area::Target, "prepareSockets", folder.as_str()),
            ended(Area::Target, "createContainer", "mine"),
            ended(Area::Target, "awaitTarget", socket.as_str()),
        ];
        let percents = own.map(|event| {
            course.hear(event);
            course.percent()
        });
        assert_eq!(percents, [50, 66, 75, 80, 83]);
    }

    #[test]
    fn an_image_counts_when_it_can_be_the_targets() {
        let built_in = TargetSpec::example("mine");
        let with_image = TargetSpec {
            kind: TargetKind::Spdk,
            image: Some("a:1".to_string()),
            ..built_in.clone()
        };
        let counts = |spec: &TargetSpec, image: &str| {
            let mut course = Course::new(Scope::Deploy(Box::new(spec.clone())), Stage::default());
            course.hear(ended(Area::Target, "loadImage", image)).is_some()
        };
        assert!(counts(&built_in, "any:1") && counts(&with_image, "a:1"));
        assert!(!counts(&with_image, "b:1"));
    }

    #[test]
    fn a_line_without_end_is_told_in_part() {
        let mut course = Course::new(Scope::Prepare, Stage::default());
        course.hear(begun(Area::Engine, "install", "apt"));
        course.hear(line(Area::Engine, &"ü".repeat(5000)));
        assert_eq!(course.last()["text"].as_str().map(|text| text.chars().count()), Some(1000));
    }
}
