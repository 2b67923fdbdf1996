//! Work of a target's task: its start, its end, and the images on their way beside it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Running, Task};
use crate::docker::Containers;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::PartReport;
use crate::model::target;
use crate::overdue::with_limit;
use crate::plan::lifecycle::{Attempt, Phase};
use crate::targets::deploy::{Deploy, Underway};
use crate::targets::start::{ENGINE_PAUSE, start_failed};
use crate::targets::worker::{After, Finished, Worker, WorkerJob};

/// Time limit of a piece of work, without the time for a start of the target, which is added. Each call of the work has
/// its own deadline, and images are loaded beside it.
const WORK_LIMIT: Duration = Duration::from_secs(300);

/// Results of the work that has ended, for the next step of the lifecycle.
#[derive(Debug, Default)]
pub(super) struct WorkResults {
    pub(super) attempt: Option<Attempt>,
    /// Set if the work stopped the process.
    pub(super) stopped: bool,
}

/// Worker of a target, or the work that it is at.
pub(super) enum WorkerState<C> {
    Idle(Box<Worker<C>>),
    Busy {
        /// Set if the work brings the target up.
        brings_up: bool,
        work: Running<Finished<C>>,
    },
}

impl<C: Containers> WorkerState<C> {
    pub(super) fn idle(&self) -> Option<&Worker<C>> {
        match self {
            WorkerState::Idle(worker) => Some(worker),
            WorkerState::Busy { .. } => None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.idle().is_some()
    }

    pub(super) fn brings_up(&self) -> bool {
        matches!(self, WorkerState::Busy { brings_up: true, .. })
    }

    /// Takes the worker, unless it is busy; the caller puts work in its place.
    pub(super) fn take(&mut self) -> Option<Box<Worker<C>>> {
        self.is_idle().then_some(())?;
        let busy = WorkerState::Busy { brings_up: false, work: Box::pin(std::future::pending()) };
        match std::mem::replace(self, busy) {
            WorkerState::Idle(worker) => Some(worker),
            WorkerState::Busy { .. } => None,
        }
    }

    /// Waits for the end of the work; never returns if there is none. Cancel-safe.
    pub(super) async fn finished(&mut self) -> Finished<C> {
        match self {
            WorkerState::Busy { work, .. } => work.await,
            WorkerState::Idle(_) => std::future::pending().await,
        }
    }
}

impl<C: Containers> Task<C> {
    pub(super) fn begin(&mut self, work: WorkerJob) {
        let Some(mut worker) = self.worker.take() else { return };
        let at_work = work.at_work();
        self.stuck.send_replace(None);
        worker.serves(match self.state.phase {
            Phase::Serving { pid, .. } => Some(pid),
            _ => None,
        });
        let written = self.written;
        let remembers = if self.acts() { self.state.remembers() } else { written };
        self.status.change(|known| known.at_work = at_work.or(known.at_work));
        let about = ("target", self.name().to_string());
        let limit = WORK_LIMIT + self.parts.policy.target.ready_timeout;
        let work = Box::pin(with_limit(limit, about, async move {
            // Written before any change, because the agent may die during the change.
            let is_written = worker.remember(written, remembers).await;
            let written = if is_written { remembers } else { written };
            let after = worker.work(work).await;
            Finished { worker, after, written, is_written }
        }));
        let brings_up = at_work == Some(target::OwnerWork::BringUp);
        self.worker = WorkerState::Busy { brings_up, work };
    }

    /// Takes the worker back, and handles the outcome of its work.
    pub(super) fn finished(
        &mut self,
        Finished { worker, after, written, is_written }: Finished<C>,
    ) {
        let exited_meanwhile = worker.has_exited();
        (self.worker, self.written) = (WorkerState::Idle(worker), written);
        self.remember_at = (!is_written).then(|| Instant::now() + ENGINE_PAUSE);
        match after {
            After::Nothing => {}
            // The target started, and exited before its answer was known. The exit is counted already, so the start is
            // no second failure.
            After::Started(Some(Attempt::Failed | Attempt::Silent(_))) if exited_meanwhile => {
                let (due, now) = (self.state.retry.due(), Instant::now().into_std());
                let wait = due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now));
                self.news.attempt = Some(Attempt::After(wait));
            }
            After::Started(attempt) => self.news.attempt = attempt,
            After::Converged(deploy) => {
                self.give_up_start_image();
                self.deploy = Underway::Converged(deploy);
                self.trial_since = self.trial_since.map(|_| Instant::now());
            }
            After::Undecided(deploy) => {
                self.deploy = deploy.map_or(Underway::Nothing, Underway::Converged);
                self.trial_since = self.trial_since.map(|_| Instant::now() + ENGINE_PAUSE);
            }
            After::TakenAway { deploy, overtakes } => {
                self.give_up_deploys(overtakes);
                self.deploy = deploy.map_or(Underway::Nothing, Underway::Converged);
            }
            After::NeedsImage(image, Some(deploy)) => {
                self.deploy = Underway::AwaitsImage(deploy, image);
            }
            After::NeedsImage(image, None) => {
                self.start_image = self.parts.desired.get(self.name()).map(|of| (of, image));
            }
        }
        let awaits = self.awaits();
        // What the work made or ended is observed together with its end.
        let seen = self.observed.as_ref().map(|(of, seen)| (of.clone(), seen.borrow().clone()));
        self.status.change(|known| {
            // A stop that was observed during the work is over: its phase was entered already.
            self.news.stopped =
                std::mem::take(&mut known.stopping) && self.state.phase != Phase::Stopping;
            known.at_work = awaits;
            known.seen = seen.or(known.seen.take());
        });
    }

    /// Gives up the deploy under way, and the deploys among the first `overtaken` requests, because the target was
    /// taken away after they were requested.
    fn give_up_deploys(&mut self, overtaken: usize) {
        std::mem::take(&mut self.deploy).overtaken();
        let later = self.requests.split_off(overtaken);
        for requested in std::mem::replace(&mut self.requests, later).into_iter().rev() {
            match requested.request.is_deploy() {
                true => drop(Deploy::asked(requested).map(|deploy| deploy.overtaken())),
                false => self.requests.push_front(requested),
            }
        }
    }

    /// Work that the status shows while the target waits for an image.
    fn awaits(&self) -> Option<target::OwnerWork> {
        let brings_up = self.deploy.brings_up() || self.start_image.is_some();
        brings_up.then_some(target::OwnerWork::BringUp)
    }

    pub(super) fn deploy_image_ended(&mut self, image: Result<String, Fault>) {
        let Underway::AwaitsImage(mut deploy, incoming) = std::mem::take(&mut self.deploy) else {
            return;
        };
        match incoming.end(image, &mut deploy.report) {
            Ok(()) => {
                self.deploy = Underway::HasImage(deploy);
                self.image_ended();
            }
            Err(fault) => {
                self.image_ended();
                deploy.end(Err(fault));
            }
        }
    }

    pub(super) fn start_image_ended(&mut self, image: Result<String, Fault>) {
        let Some((_, incoming)) = self.start_image.take() else { return };
        self.news.attempt = Some(match incoming.end(image, &mut PartReport::default()) {
            Ok(()) => Attempt::After(Duration::ZERO),
            Err(fault) if fault.code.is_engine_away() => Attempt::After(ENGINE_PAUSE),
            Err(fault) => {
                let (heal, failures) = (&self.parts.policy.heal, self.state.retry.failures());
                start_failed(&self.status, heal, failures, &fault);
                Attempt::Failed
            }
        });
        self.image_ended();
    }

    /// Cancels an image that no start needs any more.
    pub(super) fn give_up_start_image(&mut self) {
        let Some((_, incoming)) = self.start_image.take() else { return };
        let text = format!("no start of {} needs it any more", self.name());
        let fault = Fault::new(Code::TargetNotConverging, text);
        let _ = incoming.end(Err(fault), &mut PartReport::default());
        self.image_ended();
    }

    fn image_ended(&mut self) {
        let (awaits, works) = (self.awaits(), !self.worker.is_idle());
        self.status.change(|known| known.at_work = known.at_work.filter(|_| works).or(awaits));
    }
}
