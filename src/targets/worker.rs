//! Work on one target, one piece at a time: starts, kills, its volumes, and requests of callers.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::deploy::{Deploy, IncomingImage};
use super::start::{blame, hangs};
use super::status::SharedStatus;
use super::volumes::VolumeQuarantine;
use super::{Parts, Requested, TargetChange, TaskRequest};
use crate::agent::progress_sink::ProgressSink;
use crate::docker::Containers;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::PartReport;
use crate::model::status::VolumeTally;
use crate::model::target::{self, TargetName, TargetSpec};
use crate::model::work::WorkId;
use crate::plan::lifecycle::{Attempt, LifecycleRecord, State};
use crate::plan::retry::Retry;

pub(super) enum WorkerJob {
    /// Single attempt to start the target.
    Start {
        spec: TargetSpec,
        failures: u32,
        /// Set if the target gets a new container.
        anew: bool,
    },
    /// Kill of the target's stuck process.
    Kill(TargetSpec),
    /// Reconciliation of the target's volumes.
    Volumes,
    /// Evaluation of a target on trial for which no deploy waits.
    Judge,
    /// Collection of the evidence of a crash loop.
    Evidence {
        /// Reason of the exit.
        why: String,
        failures: u32,
    },
    /// Write of the state to disk, which every work begins with.
    Remember,
    Request {
        requested: Requested,
        /// Number of pending requests that came before it.
        overtakes: usize,
    },
    /// Rest of a deploy whose image is there.
    Deploy(Box<Deploy>),
    /// End of a deploy whose container is as desired, with its volumes.
    Finish(Box<Deploy>),
}

impl WorkerJob {
    /// Work that the status shows meanwhile.
    pub(super) fn at_work(&self) -> Option<target::OwnerWork> {
        let change = match self {
            WorkerJob::Start { .. } => return Some(target::OwnerWork::BringUp),
            WorkerJob::Deploy(deploy) => &deploy.request,
            WorkerJob::Request {
                requested:
                    Requested { request: TaskRequest::Target { change, dry_run: false, .. }, .. },
                ..
            } => change,
            _ => return None,
        };
        Some(match **change {
            TargetChange::Ensure(..) => target::OwnerWork::BringUp,
            TargetChange::Destroy { .. } => target::OwnerWork::TakeAway,
        })
    }
}

/// Outcome of a piece of work.
pub(super) enum After {
    Nothing,
    /// Start attempted, with its outcome; `None` if the target answers.
    Started(Option<Attempt>),
    /// Container of a deploy runs.
    Converged(Box<Deploy>),
    /// Evaluation of a trial, which may still be on. Holds the deploy that waits for the end of the trial, if one does.
    Undecided(Option<Box<Deploy>>),
    /// Target taken away, at least in part. The deploys among the first `overtakes` pending requests are given up with
    /// it.
    TakenAway {
        /// Request that took the target away; `None` if it has failed.
        deploy: Option<Box<Deploy>>,
        /// Number of pending requests that came before that request.
        overtakes: usize,
    },
    /// Image needed first, for a deploy or for a start of the task's own.
    NeedsImage(IncomingImage, Option<Box<Deploy>>),
}

/// Result of a piece of work.
pub(super) struct Finished<C> {
    pub(super) worker: Box<Worker<C>>,
    pub(super) after: After,
    /// State that is on disk now.
    pub(super) written: LifecycleRecord,
    /// Set if `written` is the whole state.
    pub(super) is_written: bool,
}

pub(super) struct Worker<C> {
    pub(super) parts: Arc<Parts<C>>,
    pub(super) status: SharedStatus,
    /// Pid of the process that served when the work began.
    pub(super) serving: Option<u32>,
    /// Number of exits of the process when the work began.
    pub(super) exits: u64,
    /// Backoff of volumes that failed.
    pub(super) retry: Retry,
    pub(super) quarantine: VolumeQuarantine,
    /// Pid of the process that answered last.
    pub(super) answered: Option<u32>,
    /// Pid of the last process that was verified to serve connections, or for which that could not be verified.
    pub(super) connected: Option<u32>,
    /// Time of the last pass over all volumes.
    pub(super) passed: Option<Instant>,
    /// Tally of the volumes that was logged last.
    pub(super) logged: Option<VolumeTally>,
    /// Set while the target waits for the engine.
    pub(super) without_engine: bool,
    stuck: watch::Receiver<Option<String>>,
    /// Progress of the current work.
    pub(super) progress: ProgressSink,
}

impl<C: Containers> Worker<C> {
    pub(super) fn new(
        parts: Arc<Parts<C>>,
        status: SharedStatus,
        state: &State,
        written: &LifecycleRecord,
        stuck: watch::Receiver<Option<String>>,
    ) -> Worker<C> {
        let (held, fresh) = (parts.exits.quarantine(status.name()), state.retry.forgotten());
        Worker {
            status,
            serving: None,
            exits: 0,
            quarantine: VolumeQuarantine::recall(held, &fresh, Instant::now().into_std()),
            retry: fresh,
            answered: written.process.pid,
            connected: None,
            passed: None,
            logged: None,
            without_engine: false,
            stuck,
            progress: parts.progress.clone(),
            parts,
        }
    }

    pub(super) fn name(&self) -> &TargetName {
        self.status.name()
    }

    /// Notes the process that serves when the work begins.
    pub(super) fn serves(&mut self, pid: Option<u32>) {
        self.serving = pid;
        self.exits = self.status.read(|known| known.exits);
        if pid.is_some() {
            (self.answered, self.without_engine) = (pid, false);
        }
    }

    /// Forgets everything of a target that is no longer desired.
    pub(super) fn forget(&mut self) {
        self.retry = self.retry.forgotten();
        self.quarantine.clear();
        (self.answered, self.passed, self.logged) = (None, None, None);
        self.status.change(|known| {
            (known.trouble, known.in_place, known.next_pass) = (None, None, None);
            (known.controllers_made, known.volumes_remade) = (None, None);
            known.volumes = super::volume_statuses::VolumeStatuses::default();
        });
    }

    /// Writes the record for the next agent, if it has changed. Returns `false` if that failed; then the next work
    /// tries again.
    pub(super) async fn remember(
        &mut self,
        written: LifecycleRecord,
        remembers: LifecycleRecord,
    ) -> bool {
        self.remember_making(BTreeSet::new()).await;
        remembers == written || self.parts.exits.keep(self.name(), written, remembers).await
    }

    pub(super) async fn work(&mut self, work: WorkerJob) -> After {
        self.progress = self.progress.of(WorkId::next());
        match work {
            WorkerJob::Start { spec, failures, anew } => {
                // A target that has hung since its start is killed first.
                if self.seen_at(&spec.control_sock).is_some_and(|seen| hangs(&seen)) {
                    self.kill(&spec).await;
                }
                return self.start(spec, failures, anew).await;
            }
            WorkerJob::Kill(spec) => self.kill(&spec).await,
            WorkerJob::Volumes => self.reconcile_volumes().await,
            WorkerJob::Evidence { why, failures } => {
                let within = self.parts.policy.target.call_timeout;
                let evidence = self.parts.observer.last_words(self.name(), &why, within).await;
                blame(&self.status, &self.parts.policy.heal, failures, &evidence);
            }
            WorkerJob::Remember => {}
            WorkerJob::Deploy(deploy) => return self.deploy(deploy, 0).await,
            WorkerJob::Finish(deploy) => return self.finish(deploy).await,
            WorkerJob::Judge => {
                if let Err(fault) = self.evaluate_if_due(&mut PartReport::default()).await {
                    tracing::warn!(
                        target_name = %self.name(), code = %fault.code,
                        "{}: its replacement failed, or could not be evaluated: {fault}", self.name()
                    );
                }
                return After::Undecided(None);
            }
            WorkerJob::Request { requested, overtakes } => match Deploy::asked(requested) {
                Ok(deploy) => return self.deploy(deploy, overtakes).await,
                Err(Requested { request, _work }) => self.carry_out(request).await,
            },
        }
        After::Nothing
    }

    async fn carry_out(&mut self, request: TaskRequest) {
        match request {
            TaskRequest::Target { .. } | TaskRequest::Start => {}
            TaskRequest::Activate { volumes, undo, reply } => {
                let _ = reply.send(self.activate(volumes, undo).await);
            }
            TaskRequest::Deactivate { target, volumes, reply } => {
                let _ = reply.send(self.deactivate(&target, &volumes).await);
            }
            TaskRequest::Resize { target, volume, size_mib, reply } => {
                let _ = reply.send(self.resize(&target, &volume, size_mib).await);
            }
            // A caller that gave up waiting needs none.
            TaskRequest::Look { reply, .. } if reply.is_closed() => {}
            TaskRequest::Look { reply, _place } => {
                self.look_at_volumes().await;
                let _ = reply.send(());
            }
        }
    }

    /// `true` if the process has exited since the work began.
    pub(super) fn has_exited(&self) -> bool {
        self.status.read(|known| known.exits) != self.exits
    }

    /// Fails if the process has exited since the work began: observations of it are then of no use.
    pub(super) fn still_serves(&self) -> Result<(), Fault> {
        match self.has_exited() {
            false => Ok(()),
            true => Err(Fault::new(Code::TargetAbsent, "its process has exited meanwhile")),
        }
    }

    /// Runs `work`, which queries the target, and cancels it once the target is to be killed or is paused: `work` would
    /// wait in vain.
    ///
    /// # Errors
    /// When it was canceled.
    pub(super) async fn unless_stuck<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Fault> {
        let stuck = async {
            let why = self.stuck.wait_for(Option::is_some).await.map(|why| why.clone());
            match why {
                Ok(why) => why.unwrap_or_default(),
                // The task has ended, and with it the caller that waits.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            // Not cancel-safe: a request that was sent may still be carried out, which the next observation shows.
            done = work => Ok(done),
            // Cancel-safe: it only watches.
            why = stuck => {
                let text = format!("{} does not answer: {why}", self.name());
                Err(Fault::new(Code::TargetNotAnswering, text))
            }
        }
    }
}
