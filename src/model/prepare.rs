//! Request and report of a prepare; its steps are in `step`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, Finding};
use super::pools::{PoolPages, PoolWant};
use super::step::{Area, Step};
use super::work::WorkId;

/// Request to make the node fit for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareRequest {
    /// Desired free pages, at most one entry for each page size and placement.
    pub hugepages: Vec<PoolWant>,
    /// Set if the pages of a growth that missed its goal are kept.
    pub keep_partial: bool,
    /// Set if the engine is reconciled.
    pub engine: bool,
    /// Set if only the plan is requested.
    pub dry_run: bool,
}

impl PrepareRequest {
    /// `true` if the outcome of `self` also answers `other`: `self` requests at least the same pages, and exactly the
    /// same options. The engine option has to be the same so that no caller waits for an installation that it did not
    /// request.
    pub fn covers(&self, other: &PrepareRequest) -> bool {
        self.dry_run == other.dry_run
            && self.keep_partial == other.keep_partial
            && self.engine == other.engine
            && other.hugepages.iter().all(|want| {
                self.hugepages.iter().any(|mine| {
                    mine.size == want.size
                        && mine.placement == want.placement
                        && mine.move_shortfall == want.move_shortfall
                        && mine.pages >= want.pages
                })
            })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepOutcome {
    /// Not done, for the prepare is a dry run.
    Planned,
    /// Done, and read back.
    Done,
    /// Done in part; `StepReport::after` holds the state that was reached.
    Short,
    /// Failed; the report's error says why.
    Failed,
}

impl StepOutcome {
    /// Word in reports.
    pub fn word(self) -> &'static str {
        match self {
            StepOutcome::Planned => "planned",
            StepOutcome::Done => "done",
            StepOutcome::Short => "short",
            StepOutcome::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    pub area: Area,
    pub step: String,
    /// Object of the step.
    pub subject: String,
    /// State before the step.
    pub before: String,
    /// State after the step, read back; in a dry run the intended one.
    pub after: String,
    pub outcome: StepOutcome,
    pub duration_ms: f64,
}

impl StepReport {
    /// Report of a step that was only planned.
    pub fn planned(step: &Step) -> StepReport {
        let (before, after) = step.before_after();
        StepReport::of(step, before, after, StepOutcome::Planned, Duration::ZERO)
    }

    /// Report of a step that was tried.
    pub fn of(
        step: &Step,
        before: String,
        after: String,
        outcome: StepOutcome,
        took: Duration,
    ) -> StepReport {
        StepReport {
            area: step.area(),
            step: step.name().to_string(),
            subject: step.subject(),
            before,
            after,
            outcome,
            duration_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}

/// Outcome of a prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Nothing to do: everything was as desired.
    Holds,
    /// Everything as desired, after at least one step.
    Changed,
    /// Dry run: something would be done.
    WouldChange,
    /// Failed: something is still not as desired.
    Failed,
}

impl Outcome {
    /// Word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Holds => "holds",
            Outcome::Changed => "changed",
            Outcome::WouldChange => "wouldChange",
            Outcome::Failed => "failed",
        }
    }
}

/// Report of one part of a prepare: the pools with their mounts, or the engine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PartReport {
    pub steps: Vec<StepReport>,
    pub findings: Vec<Finding>,
    /// Reasons why the part stopped before everything was as desired.
    pub errors: Vec<Fault>,
    /// hugetlbfs mounts to use.
    pub mounts: Vec<String>,
    /// Version of the engine, if it answered.
    pub engine_version: Option<String>,
}

impl PartReport {
    /// Adds the report of another part.
    pub fn merge(&mut self, other: PartReport) {
        self.steps.extend(other.steps);
        self.findings.extend(other.findings);
        self.errors.extend(other.errors);
        self.mounts.extend(other.mounts);
        self.engine_version = self.engine_version.take().or(other.engine_version);
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareReport {
    pub outcome: Outcome,
    pub dry_run: bool,
    /// Steps of the pools, then those of the engine. Both parts ran at the same time.
    pub steps: Vec<StepReport>,
    /// Findings for the operator, which do not make the prepare fail.
    pub findings: Vec<Finding>,
    /// Failures; empty unless the outcome is `failed`.
    pub errors: Vec<Fault>,
    /// Hugetlbfs mounts that a target would be given.
    pub mounts: Vec<String>,
    pub engine_version: Option<String>,
    /// Time from the first observation to the last, in milliseconds.
    pub duration_ms: f64,
}

impl PrepareReport {
    /// Builds the report from the merged `parts`.
    pub fn of(dry_run: bool, parts: PartReport, took: Duration) -> PrepareReport {
        let outcome = match (parts.errors.is_empty(), parts.steps.is_empty(), dry_run) {
            (false, ..) => Outcome::Failed,
            (true, true, _) => Outcome::Holds,
            (true, false, true) => Outcome::WouldChange,
            (true, false, false) => Outcome::Changed,
        };
        PrepareReport {
            outcome,
            dry_run,
            steps: parts.steps,
            findings: parts.findings,
            errors: parts.errors,
            mounts: parts.mounts,
            engine_version: parts.engine_version,
            duration_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
        }
    }

    /// Texts of the errors in one line; empty without errors.
    pub fn error_text(&self) -> String {
        self.errors.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join("; ")
    }
}

/// Report of a reclaim, which gives pages back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReclaimReport {
    pub steps: Vec<StepReport>,
    /// Pages grown by the agent that remain, because they are in use or were to be kept.
    pub remaining: Vec<PoolPages>,
    pub errors: Vec<Fault>,
}

/// Event of long-running work, with the id of that work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub work: WorkId,
    #[serde(flatten)]
    pub event: WorkEvent,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum WorkEvent {
    /// Start of a step.
    Begun {
        area: Area,
        step: String,
        /// Object of the step.
        subject: String,
    },
    /// Line of output of the step at work.
    Line { area: Area, text: String },
    /// End of a step.
    Ended(StepReport),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pools::Placement;
    use crate::model::units::{NumaNode, PageSize};

    fn request(pages: u64) -> PrepareRequest {
        let want = PoolWant {
            size: PageSize::MIB_2,
            pages,
            placement: Placement::Spread,
            move_shortfall: false,
        };
        PrepareRequest { hugepages: vec![want], keep_partial: false, engine: true, dry_run: false }
    }

    #[test]
    fn a_request_covers_the_same_and_less_and_nothing_of_another_kind() {
        let big = request(10);
        assert!(big.covers(&request(10)) && big.covers(&request(3)));
        assert!(!big.covers(&request(11)));
        assert!(!big.covers(&PrepareRequest { engine: false, ..request(5) }));
        assert!(!PrepareRequest { engine: false, ..request(10) }.covers(&request(5)));
        assert!(!big.covers(&PrepareRequest { dry_run: true, ..request(5) }));
        let mut bound = request(5);
        bound.hugepages[0].placement = Placement::Bound(vec![NumaNode(1)]);
        assert!(!big.covers(&bound));
    }
}
