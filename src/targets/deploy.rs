//! Deploys: requests for the target itself, from the first round to the report, and the images that they wait for.
//!
//! ```text
//! request ──▶ worker ──▶ AwaitsImage ──▶ HasImage ──▶ worker ──▶ Converged ──▶ worker ──▶ report
//!                             └───────────────┴── overtaken by a destroy ─────────┴──────▶ report
//! ```
//! A target has one deploy under way at a time. Images come in beside the worker, for that may take minutes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::converge::Converged;
use super::task::Running;
use super::worker::{After, Worker};
use super::{Parts, Requested, TargetChange, TaskRequest};
use crate::agent::progress_sink::{ProgressSink, StepInProgress};
use crate::docker::Containers;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::{PartReport, PrepareReport, StepOutcome, StepReport};
use crate::model::step::Step;
use crate::model::work::WorkId;

/// Longest wait of a deploy for the end of its target's trial; the trial goes on after that.
const TRIAL_TIME: Duration = Duration::from_secs(300);

/// Request to deploy or to destroy a target, with its report so far.
pub(super) struct Deploy {
    work: WorkId,
    pub(super) request: Box<TargetChange>,
    dry_run: bool,
    reply: oneshot::Sender<PrepareReport>,
    pub(super) report: PartReport,
    /// Time at which the container was as desired.
    converged: Option<Instant>,
    /// Reason of the first evaluation that did not end the trial of its target.
    undecided: Option<Fault>,
    began: Instant,
    /// Token that keeps the task running until the deploy is done.
    _work: Arc<()>,
}

impl Deploy {
    /// Turns a request for the target itself into a deploy; returns any other request as `Err`.
    pub(super) fn asked(requested: Requested) -> Result<Box<Deploy>, Requested> {
        let Requested { request, _work } = requested;
        match request {
            TaskRequest::Target { work, change, dry_run, reply } => {
                let (report, began) = (PartReport::default(), Instant::now());
                let (converged, undecided) = (None, None);
                let deploy = Deploy {
                    work,
                    request: change,
                    dry_run,
                    reply,
                    report,
                    converged,
                    undecided,
                    began,
                    _work,
                };
                Ok(Box::new(deploy))
            }
            request => Err(Requested { request, _work }),
        }
    }

    /// `true` if the deploy has waited for [`TRIAL_TIME`] since its container was as desired.
    pub(super) fn has_waited(&self) -> bool {
        self.converged.is_some_and(|at| at.elapsed() >= TRIAL_TIME)
    }

    /// Sends the report, with the outcome `done`, to the caller.
    pub(super) fn end(mut self, done: Result<(), Fault>) {
        self.report.errors.extend(done.err());
        let report = PrepareReport::of(self.dry_run, self.report, self.began.elapsed());
        let _ = self.reply.send(report);
    }

    /// Ends the deploy with a fault, because a destroy of its target has overtaken it.
    pub(super) fn overtaken(self) {
        let fault = overtaken(&self.request);
        self.end(Err(fault));
    }
}

/// Replies to a request that is not carried out.
pub(super) fn refuse(requested: Requested, fault: Fault) {
    match Deploy::asked(requested) {
        Ok(deploy) => deploy.end(Err(fault)),
        Err(Requested { request, .. }) => request.refuse(fault),
    }
}

fn is_done(step: &StepReport) -> bool {
    step.outcome == StepOutcome::Done
}

fn overtaken(change: &TargetChange) -> Fault {
    let text = format!(
        "a destroy of {} overtook this deploy, which is given up: deploy it again if it is to run",
        change.spec().name
    );
    Fault::new(Code::TargetNotConverging, text)
}

/// Deploy that is under way, but not in the hands of the worker.
#[derive(Default)]
pub(super) enum Underway {
    #[default]
    Nothing,
    /// Deploy whose image is on its way.
    AwaitsImage(Box<Deploy>, IncomingImage),
    /// Deploy whose image is there, and which can go on.
    HasImage(Box<Deploy>),
    /// Deploy whose container is as desired: it ends once the volumes are back.
    Converged(Box<Deploy>),
}

impl Underway {
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Underway::Nothing)
    }

    /// `true` if the deploy has yet to bring the target up.
    pub(super) fn brings_up(&self) -> bool {
        matches!(self, Underway::AwaitsImage(..) | Underway::HasImage(_))
    }

    pub(super) fn image(&mut self) -> Option<&mut IncomingImage> {
        match self {
            Underway::AwaitsImage(_, image) => Some(image),
            _ => None,
        }
    }

    /// Ends the deploy because a destroy of its target has overtaken it; an image on its way is canceled.
    pub(super) fn overtaken(self) {
        match self {
            Underway::Nothing => {}
            Underway::AwaitsImage(mut deploy, incoming) => {
                let _ = incoming.end(Err(overtaken(&deploy.request)), &mut deploy.report);
                deploy.overtaken();
            }
            Underway::HasImage(deploy) | Underway::Converged(deploy) => deploy.overtaken(),
        }
    }
}

/// Image that is being brought in.
pub(super) struct IncomingImage {
    begun: StepInProgress,
    applied: Running<Result<String, Fault>>,
}

impl IncomingImage {
    /// Begins `step`, which brings the image in and has its own deadline. To drop the returned value cancels it.
    pub(super) fn begin<C: Containers>(
        step: Step,
        parts: Arc<Parts<C>>,
        progress: &ProgressSink,
    ) -> IncomingImage {
        let begun = progress.begun(&step);
        let at_work = begun.clone();
        let applied =
            Box::pin(
                async move { parts.applier.apply(&step, None, |text| at_work.line(text)).await },
            );
        IncomingImage { begun, applied }
    }

    /// Adds the outcome to the report.
    pub(super) fn end(
        self,
        applied: Result<String, Fault>,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        self.begun.applied(applied, &mut report.steps)
    }
}

/// Waits until the image is there or has failed; never returns if none is on its way. Cancel-safe.
pub(super) async fn arrival(image: Option<&mut IncomingImage>) -> Result<String, Fault> {
    match image {
        Some(image) => (&mut image.applied).await,
        None => std::future::pending().await,
    }
}

impl<C: Containers> Worker<C> {
    /// Carries out a deploy as far as possible now. `overtakes` is the number of pending requests that came before it.
    pub(super) async fn deploy(&mut self, mut deploy: Box<Deploy>, overtakes: usize) -> After {
        self.progress = self.progress.of(deploy.work);
        if deploy.dry_run {
            let done = self.converge(&deploy.request, true, &mut deploy.report).await;
            deploy.end(done.map(drop));
            return After::Nothing;
        }
        let done = self.change(&deploy.request, &mut deploy.report).await;
        let takes_away = matches!(*deploy.request, TargetChange::Destroy { .. });
        match done {
            Ok(Converged::NeedsImage(step)) => After::NeedsImage(self.bring_in(step), Some(deploy)),
            Ok(Converged::Holds) if takes_away => {
                After::TakenAway { deploy: Some(deploy), overtakes }
            }
            Ok(Converged::Holds) => {
                deploy.converged = Some(Instant::now());
                After::Converged(deploy)
            }
            Err(fault) => {
                // A destroy that was refused has changed nothing, and overtakes nobody.
                let has_begun = takes_away && deploy.report.steps.iter().any(is_done);
                deploy.end(Err(fault));
                if has_begun {
                    After::TakenAway { deploy: None, overtakes }
                } else {
                    After::Nothing
                }
            }
        }
    }

    /// Ends a deploy whose container runs, once the volumes are back. While its target is still on trial it waits.
    pub(super) async fn finish(&mut self, mut deploy: Box<Deploy>) -> After {
        let done = match deploy.has_waited() {
            true => Err(Fault::new(
                Code::TargetNotReady,
                "it is still on trial, and this call waits no longer: ask for its status, and see why the engine or the state disk does not answer",
            )),
            false => self.evaluate_if_due(&mut deploy.report).await,
        };
        match done {
            Err(fault) if self.trial().is_some() && !deploy.has_waited() => {
                // Later evaluations say less about the reason.
                deploy.undecided.get_or_insert(fault);
                After::Undecided(Some(deploy))
            }
            done => {
                if done.is_err() {
                    deploy.report.errors.extend(deploy.undecided.take());
                }
                deploy.end(done);
                After::Nothing
            }
        }
    }

    pub(super) fn bring_in(&self, step: Step) -> IncomingImage {
        IncomingImage::begin(step, self.parts.clone(), &self.progress)
    }
}
