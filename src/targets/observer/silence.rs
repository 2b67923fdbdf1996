//! The evidence of a process that does not answer: what it was seen to do between two looks.

use std::borrow::Cow;
use std::time::Duration;

use tokio::time::Instant;

use crate::host::vitals::Look;
use crate::model::observation::{Answers, Vitals};

/// Evidence that was gathered when a probe had no answer.
#[derive(Debug)]
pub(in crate::targets) struct Evidence {
    /// Activity of the process; none where it could not be looked at.
    pub(super) look: Option<Look>,
    /// Whether the machine is short of CPUs.
    pub(super) starved: bool,
    /// The agent's own request there that changes something and is open: its deadline and its method.
    pub(in crate::targets) busy: Option<(std::time::Instant, Cow<'static, str>)>,
}

/// A process that is silent, or was never.
#[derive(Debug, Default)]
pub(super) struct Silence {
    pub(super) vitals: Vitals,
    looked_at: Option<(Instant, Look)>,
    /// Time of the first missing answer, in RFC 3339.
    pub(super) since: Option<String>,
}

impl Silence {
    /// Notes what a probe without an answer found. Who looks later than after `late`, or on a machine whose CPUs
    /// are all taken, has not seen that it stands still.
    pub(super) fn note(&mut self, answers: &Answers, evidence: Evidence, late: Duration) {
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
