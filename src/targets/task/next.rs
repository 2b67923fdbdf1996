//! The next piece of work of a target's task, and the time at which something is due.

use std::time::Duration;

use tokio::time::Instant;

use super::Task;
use crate::docker::Containers;
use crate::model::observation::{Activity, Observation, Process};
use crate::plan::lifecycle::Phase;
use crate::targets::deploy::Underway;
use crate::targets::trial::lost;
use crate::targets::worker::WorkerJob;
use crate::targets::{Requested, TaskRequest};

/// Time within which the observer sees a process that was just started.
const EXIT_TIME: Duration = Duration::from_millis(300);

impl<C: Containers> Task<C> {
    /// Chooses the next work, now that the worker is idle.
    pub(super) fn next_work(&mut self) -> Option<WorkerJob> {
        let now = Instant::now();
        if self.acts()
            && let Some(why) = self.crashed.take()
        {
            return Some(WorkerJob::Evidence { why, failures: self.state.retry.failures() });
        }
        if self.pass_due().is_some_and(|due| due <= now) {
            return Some(WorkerJob::Volumes);
        }
        if let Some(work) = self.next_of_deploy().or_else(|| self.next_request()) {
            return Some(work);
        }
        let may_write = self.remember_at.is_none_or(|at| at <= now);
        let is_news = self.acts() && self.state.remembers() != self.written;
        (is_news && may_write).then_some(WorkerJob::Remember)
    }

    /// Next work of the deploy that is under way, if it can go on.
    fn next_of_deploy(&mut self) -> Option<WorkerJob> {
        match std::mem::take(&mut self.deploy) {
            Underway::HasImage(deploy) if !self.is_destroyed() => Some(WorkerJob::Deploy(deploy)),
            Underway::Converged(deploy) if self.is_decided() || deploy.has_waited() => {
                Some(WorkerJob::Finish(deploy))
            }
            Underway::Nothing if self.trial_since.is_some() && self.is_decided() => {
                Some(WorkerJob::Judge)
            }
            other => {
                self.deploy = other;
                None
            }
        }
    }

    /// `true` once the deployed target has had its time to serve.
    fn is_decided(&self) -> bool {
        match self.trial_since {
            Some(_) => self.evaluation_due().is_some_and(|due| due <= Instant::now()),
            None => !self.is_on_probation(),
        }
    }

    /// Time at which a target on trial is evaluated.
    fn evaluation_due(&self) -> Option<Instant> {
        let (target, begun) = (&self.parts.policy.target, self.trial_since?);
        let due = match self.state.phase {
            Phase::Serving { pid, .. } if self.serves_all(pid) => begun,
            // A volume that is refused once may be made a second later.
            Phase::Serving { since, .. } => {
                begun.max(Instant::from_std(since)) + target.exchange_timeout
            }
            Phase::Down { .. } if self.seen().is_some_and(|seen| seen.is_gone()) => {
                begun + EXIT_TIME
            }
            // Paused by somebody, and nothing is done to it.
            Phase::Paused { .. } => return None,
            _ => begun + target.ready_timeout,
        };
        Some(due).filter(|_| self.acts())
    }

    /// `true` if a target on trial serves everything that the replaced one served.
    fn serves_all(&self, pid: u32) -> bool {
        let Some(trial) = self.parts.desired.trial(self.name()) else { return true };
        let wanted = self.parts.desired.volumes(self.name());
        self.status.read(|known| {
            known.in_place == Some(pid) && lost(&trial, &wanted, &known.volumes).is_none()
        })
    }

    /// First request that can be carried out now, with the number of pending ones before it. A request may overtake a
    /// deploy that waits for an image. A read-only request may overtake an activation that waits for its target. A
    /// destroy overtakes all that wait.
    fn next_request(&mut self) -> Option<WorkerJob> {
        // A deploy whose target could not be evaluated yet blocks nobody.
        let may_end = self.trial_since.is_none_or(|since| since <= Instant::now());
        let mut is_blocked = may_end && matches!(self.deploy, Underway::Converged(_));
        let overtakes = self.requests.iter().position(|Requested { request, .. }| {
            let waits = self.waits(request);
            is_blocked |= waits && !matches!(request, TaskRequest::Target { .. });
            request.is_destroy() || !waits && (!is_blocked || request.only_looks())
        })?;
        let requested = self.requests.remove(overtakes)?;
        Some(WorkerJob::Request { requested, overtakes })
    }

    /// `true` if a request cannot be carried out yet.
    fn waits(&self, request: &TaskRequest) -> bool {
        match request {
            TaskRequest::Target { dry_run, .. } => {
                (self.deploy.brings_up() || self.trial_since.is_some()) && !dry_run
            }
            // A target that is yet to be made can have no volumes.
            TaskRequest::Activate { .. } => {
                self.is_to_answer() || self.deploy.brings_up() && !self.is_desired()
            }
            TaskRequest::Look { .. } => self.is_to_answer(),
            TaskRequest::Deactivate { .. } | TaskRequest::Resize { .. } | TaskRequest::Start => {
                false
            }
        }
    }

    /// `true` if a destroy waits.
    fn is_destroyed(&self) -> bool {
        self.requests.iter().any(|it| it.request.is_destroy())
    }

    /// `true` if it is about to be known whether the target serves: it was not observed or probed yet, or is on
    /// probation.
    fn is_to_answer(&self) -> bool {
        let is_unasked = |seen: &Observation| match seen.process {
            Process::Lives { .. } => {
                seen.answers.is_empty() && seen.vitals.activity != Activity::Paused
            }
            _ => seen.number == 0,
        };
        self.is_on_probation() || self.is_desired() && self.seen().is_some_and(|it| is_unasked(&it))
    }

    fn is_on_probation(&self) -> bool {
        matches!(self.state.phase, Phase::Probation { .. })
    }

    /// Time of the next pass over the volumes, if the target serves.
    fn pass_due(&self) -> Option<Instant> {
        let Phase::Serving { pid, .. } = self.state.phase else { return None };
        // A target without volumes gets one pass, too, which notes that it serves.
        let is_due = !self.parts.desired.volumes(self.name()).is_empty()
            || self.status.read(|known| known.in_place) != Some(pid);
        let retry = self.worker.idle().and_then(|worker| worker.retry.due());
        let due = self
            .status
            .read(|known| known.next_pass.into_iter().chain(retry.map(Instant::from_std)).min());
        due.filter(|_| self.acts() && is_due)
    }

    /// Time at which something is due next.
    pub(in crate::targets) fn next_due(&self) -> Option<Instant> {
        let is_news = self.worker.is_idle() && self.state.remembers() != self.written;
        let remember = self.remember_at.filter(|_| is_news);
        if self.parts.desired.get(self.name()).is_none() {
            return remember;
        }
        let idle = [self.pass_due(), self.evaluation_due()].into_iter().flatten();
        let idle = idle.filter(|_| self.worker.is_idle());
        self.requeue_at.into_iter().chain(idle).chain(remember).min()
    }
}
