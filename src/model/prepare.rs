//! Preparing the node: the request and the report; its steps are in `step`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, Finding};
use super::pools::{PoolPages, PoolWant};
use super::step::{Area, Step};
use super::work::WorkId;

/// What the node is to be made fit for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareRequest {
    /// Free pages, at most one wish for each page size and placement.
    pub hugepages: Vec<PoolWant>,
    /// Whether a growth that came out short is kept.
    pub keep_partial: bool,
    /// Whether the engine is looked after.
    pub engine: bool,
    /// Whether only the plan is wanted.
    pub dry_run: bool,
}

impl PrepareRequest {
    /// Whether the outcome of `self` answers `other` too: it wants the same or more pages, and the
    /// same of the engine, so that nobody waits for an installation who did not ask for it.
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

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepOutcome {
    /// Dry run: it would be done.
    Planned,
    /// Done, and read back.
    Done,
    /// Done in part: `after` says how far.
    Short,
    /// It failed; the report's error says why.
    Failed,
}

impl StepOutcome {
    /// As it stands in reports.
    pub fn word(self) -> &'static str {
        match self {
            StepOutcome::Planned => "planned",
            StepOutcome::Done => "done",
            StepOutcome::Short => "short",
            StepOutcome::Failed => "failed",
        }
    }
}

/// One step as it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// The part of the node.
    pub area: Area,
    /// The step's name.
    pub step: String,
    /// What it worked on.
    pub subject: String,
    /// How things stood.
    pub before: String,
    /// How they stand, read back; in a dry run how they would stand.
    pub after: String,
    /// What became of it.
    pub outcome: StepOutcome,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
}

impl StepReport {
    /// The report of a step that was only planned.
    pub fn planned(step: &Step) -> StepReport {
        let (before, after) = step.before_after();
        StepReport::of(step, before, after, StepOutcome::Planned, Duration::ZERO)
    }

    /// The report of a step that was tried.
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

/// How a prepare ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Everything was there already.
    Holds,
    /// Something was done, and now everything is there.
    Changed,
    /// Dry run: something would be done.
    WouldChange,
    /// Something is missing still.
    Failed,
}

impl Outcome {
    /// As it stands in reports.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Holds => "holds",
            Outcome::Changed => "changed",
            Outcome::WouldChange => "wouldChange",
            Outcome::Failed => "failed",
        }
    }
}

/// What one part of a prepare did: the pools with their mounts, or the engine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PartReport {
    /// The steps, in order.
    pub steps: Vec<StepReport>,
    /// What the operator should know.
    pub findings: Vec<Finding>,
    /// Why it stopped before everything held.
    pub errors: Vec<Fault>,
    /// hugetlbfs mounts to use.
    pub mounts: Vec<String>,
    /// The engine's version, when it answered.
    pub engine_version: Option<String>,
}

impl PartReport {
    /// Takes over what another part did.
    pub fn merge(&mut self, other: PartReport) {
        self.steps.extend(other.steps);
        self.findings.extend(other.findings);
        self.errors.extend(other.errors);
        self.mounts.extend(other.mounts);
        self.engine_version = self.engine_version.take().or(other.engine_version);
    }
}

/// What a prepare did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether nothing was to be changed.
    pub dry_run: bool,
    /// Every step; the pools' first, then the engine's, which went on at the same time.
    pub steps: Vec<StepReport>,
    /// What the operator should know though nothing failed by it.
    pub findings: Vec<Finding>,
    /// What failed; empty unless the outcome is `failed`.
    pub errors: Vec<Fault>,
    /// The hugetlbfs mounts that a target would be given.
    pub mounts: Vec<String>,
    /// The engine's version.
    pub engine_version: Option<String>,
    /// From the first look to the last, in milliseconds.
    pub duration_ms: f64,
}

impl PrepareReport {
    /// Sums the parts up.
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

    /// All errors in one line; empty when there are none.
    pub fn error_text(&self) -> String {
        self.errors.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join("; ")
    }
}

/// What giving pages back did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReclaimReport {
    /// The steps.
    pub steps: Vec<StepReport>,
    /// Pages grown by the agent that remain, because they are in use or were to be kept.
    pub remaining: Vec<PoolPages>,
    /// What failed.
    pub errors: Vec<Fault>,
}

/// Something that happens in long work, for whoever watches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Which work.
    pub work: WorkId,
    /// What happens.
    #[serde(flatten)]
    pub event: WorkEvent,
}

/// What happens in long work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum WorkEvent {
    /// A step began.
    Begun {
        /// The part of the node.
        area: Area,
        /// The step's name.
        step: String,
        /// What it works on.
        subject: String,
    },
    /// A line of output of the step at work.
    Line {
        /// The part of the node.
        area: Area,
        /// The line.
        text: String,
    },
    /// A step ended.
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
