//! Evidence about a process that does not answer: its activity between two observations.

use std::borrow::Cow;
use std::time::Duration;

use tokio::time::Instant;

use crate::host::vitals::VitalsSample;
use crate::model::observation::{ProbeResults, Vitals};

/// Evidence that was gathered when a probe had no answer.
#[derive(Debug)]
pub(in crate::targets) struct Evidence {
    /// Activity of the process; `None` if it could not be observed.
    pub(super) look: Option<VitalsSample>,
    /// Set if the machine is short of CPUs.
    pub(super) starved: bool,
    /// Open request by which the agent itself changes something in the target: its deadline and its method.
    pub(in crate::targets) busy: Option<(std::time::Instant, Cow<'static, str>)>,
}

/// Silence of a process; the default is no silence.
#[derive(Debug, Default)]
pub(super) struct Silence {
    pub(super) vitals: Vitals,
    looked_at: Option<(Instant, VitalsSample)>,
    /// Time of the first missing answer, in RFC 3339.
    pub(super) since: Option<String>,
}

impl Silence {
    /// Notes the evidence of a probe without an answer. If the evidence before is older than `late`, or the machine is
    /// short of CPUs, nothing shows that the process makes no progress, and it counts as making some.
    pub(super) fn note(&mut self, answers: &ProbeResults, evidence: Evidence, late: Duration) {
        let (now, vitals) = (Instant::now(), &mut self.vitals);
        (vitals.busy_until, vitals.busy_with) = evidence.busy.unzip();
        if let Some(look) = evidence.look {
            vitals.activity = look.activity;
            let went_on = self.looked_at.as_ref().is_none_or(|(at, before)| {
                evidence.starved || now.duration_since(*at) > late || look.went_on_since(before)
            });
            if went_on {
                vitals.progress = Some(now.into_std());
            }
            self.looked_at = Some((now, look));
        }
        if answers.has_answered() && answers.version().is_none() {
            self.since.get_or_insert_with(super::super::now);
        }
    }
}
