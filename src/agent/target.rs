//! The owners of targets, one for each: observe, plan, apply, until it runs as it is wanted.
//!
//! ```text
//! Targets (handle) ──order──▶ the owner of that name: look ▸ plan ▸ apply ▸ look …
//!        ◀──report──
//! ```
//!
//! Orders for one target come one after the other, those for different ones at the same time.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::apply::target::TargetApplier;
use super::desired::DesiredTargets;
use super::observe::target::{Containers, TargetObserver};
use super::owner_gone;
use super::progress::ProgressSink;
use super::pulse::{Beat, Pulse};
use crate::model::fault::{Fault, Finding};
use crate::model::policy::TargetPolicy;
use crate::model::prepare::{PartReport, PrepareReport, Step, StepOutcome, StepReport};
use crate::model::target::{
    CleanPath, EnsureWish, TargetHealth, TargetName, TargetSeen, TargetSpec, Work,
};
use crate::model::volume::{VolumeKey, VolumeSpec, VolumeView};
use crate::plan::target::{self, TargetPlan};

/// Orders that may wait for one target; more are refused.
const QUEUE: usize = 32;
/// Targets of one node.
const MOST_TARGETS: usize = 64;
/// Rounds of plan and apply before it is said that they do not lead anywhere.
const MOST_ROUNDS: usize = 5;

/// What is wanted of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetWish {
    /// That it runs like this.
    Ensure(TargetSpec, EnsureWish),
    /// That it does not run; `force` also with virtual machines connected.
    Destroy {
        /// Which, and where its control socket is.
        spec: TargetSpec,
        /// Whether it is insisted on.
        force: bool,
    },
}

impl TargetWish {
    fn spec(&self) -> &TargetSpec {
        match self {
            TargetWish::Ensure(spec, _) | TargetWish::Destroy { spec, .. } => spec,
        }
    }

    fn plan(&self, seen: &TargetSeen, policy: &TargetPolicy) -> Result<TargetPlan, Fault> {
        match self {
            TargetWish::Ensure(spec, wish) => target::ensure(spec, *wish, seen, policy),
            TargetWish::Destroy { spec, force } => target::destroy(spec, *force, seen, policy),
        }
    }
}

/// Tells how a target stands, known before it is asked for.
pub trait TellsHealth: Send + Sync {
    /// The health of the target in that container, with that control socket.
    fn health<'a>(
        &'a self,
        name: &'a TargetName,
        control: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>>;

    /// From now on it is known how it stands.
    fn watch(&self, name: &TargetName, control: &CleanPath);

    /// The same by a look that begins now: something was changed.
    fn look_again<'a>(
        &'a self,
        name: &'a TargetName,
        control: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>>;
}

struct Order {
    wish: TargetWish,
    dry_run: bool,
    /// Whether it is only carried out when it is still what is wanted.
    as_desired: bool,
    reply: oneshot::Sender<PrepareReport>,
    /// Shows that its owner is needed until it is done.
    _work: Arc<()>,
}

/// Each owner's orders, and what each of its orders holds a share of.
type Owners = BTreeMap<TargetName, (mpsc::Sender<Order>, Arc<()>)>;

/// The handle of all targets of this node.
#[derive(Clone)]
pub struct Targets {
    owners: Arc<Mutex<Owners>>,
    start: Arc<dyn Fn(mpsc::Receiver<Order>) + Send + Sync>,
}

impl Targets {
    /// A handle; an owner is started with the first order for its target.
    pub fn new<C: Containers>(
        observer: TargetObserver<C>,
        applier: TargetApplier<C>,
        policy: TargetPolicy,
        desired: DesiredTargets,
        health: Arc<dyn TellsHealth>,
        progress: ProgressSink,
        pulse: Pulse,
    ) -> Targets {
        let (observer, applier) = (Arc::new(observer), Arc::new(applier));
        let start = move |queue| {
            let (observer, applier, policy) = (observer.clone(), applier.clone(), policy.clone());
            let (desired, health, progress) = (desired.clone(), health.clone(), progress.clone());
            let owner = Owner { observer, applier, policy, desired, health, progress };
            tokio::spawn(run(owner, queue, pulse.register()));
        };
        Targets { owners: Arc::default(), start: Arc::new(start) }
    }

    /// Brings about what is wanted of a target; every step has its own deadline.
    ///
    /// # Errors
    /// Only when it could not be taken in; what failed in the work is in the report.
    pub async fn bring_about(
        &self,
        wish: TargetWish,
        dry_run: bool,
    ) -> Result<PrepareReport, Fault> {
        self.order(wish, dry_run, false).await
    }

    /// Brings up a target that is wanted like that, unless it is not any more when its turn comes.
    ///
    /// # Errors
    /// As [`Targets::bring_about`].
    pub async fn bring_back(&self, spec: TargetSpec) -> Result<PrepareReport, Fault> {
        self.order(TargetWish::Ensure(spec, EnsureWish::default()), false, true).await
    }

    /// Makes volumes serve in a target, all in one pass, and writes down that they are wanted before that.
    /// `undo` forgets again, and takes away, what was not wanted before and could not be brought about.
    ///
    /// Returns each volume as it stands afterwards: one that does not serve says why.
    ///
    /// # Errors
    /// When nothing of it could be taken in: a conflict with what is wanted already, the state, the target.
    pub async fn activate(
        &self,
        target: &TargetSpec,
        volumes: Vec<VolumeSpec>,
        undo: bool,
    ) -> Result<Vec<VolumeView>, Fault> {
        let _ = (target, volumes, undo);
        Err(Fault::new("not-built", "volumes are not built yet"))
    }

    /// Takes volumes away; those that are not there are gone already. With a virtual machine connected one
    /// is refused; `wait` waits so long for it to go.
    ///
    /// # Errors
    /// `volume-in-use`, and what the target or the state say.
    pub async fn deactivate(
        &self,
        target: &TargetSpec,
        volumes: Vec<VolumeKey>,
        wait: Option<Duration>,
    ) -> Result<(), Fault> {
        let _ = (target, volumes, wait);
        Err(Fault::new("not-built", "volumes are not built yet"))
    }

    /// Gives a volume a new size, which a connected guest sees.
    ///
    /// # Errors
    /// `volume-unknown`, `volume-not-resizable`, and what the target says.
    pub async fn resize(
        &self,
        target: &TargetSpec,
        volume: VolumeKey,
        size_mib: u64,
    ) -> Result<VolumeView, Fault> {
        let _ = (target, volume, size_mib);
        Err(Fault::new("not-built", "volumes are not built yet"))
    }

    /// The volumes that are wanted in a target, as they stand: looked at now, unless its owner is busy for
    /// longer; then as they were known last.
    ///
    /// # Errors
    /// When its owner is gone.
    pub async fn volumes(&self, target: &TargetName) -> Result<Vec<VolumeView>, Fault> {
        let _ = target;
        Err(Fault::new("not-built", "volumes are not built yet"))
    }

    async fn order(
        &self,
        wish: TargetWish,
        dry_run: bool,
        as_desired: bool,
    ) -> Result<PrepareReport, Fault> {
        let (owner, work) = self.owner(&wish.spec().name)?;
        let (reply, answer) = oneshot::channel();
        owner.try_send(Order { wish, dry_run, as_desired, reply, _work: work }).map_err(
            |e| match e {
                mpsc::error::TrySendError::Full(_) => Fault::new(
                    "target-busy",
                    format!("{QUEUE} requests for this target wait already: call again later"),
                ),
                mpsc::error::TrySendError::Closed(_) => owner_gone(),
            },
        )?;
        answer.await.map_err(|_| owner_gone())
    }

    fn owner(&self, name: &TargetName) -> Result<(mpsc::Sender<Order>, Arc<()>), Fault> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = owners.get(name) {
            return Ok(owner.clone());
        }
        if owners.len() >= MOST_TARGETS {
            // An owner without work remembers nothing: it ends, and is started again when needed.
            owners.retain(|_, (_, work)| Arc::strong_count(work) > 1);
        }
        if owners.len() >= MOST_TARGETS {
            let text = format!("{MOST_TARGETS} targets are worked on already: call again later");
            return Err(Fault::new("too-many-targets", text));
        }
        let (orders, queue) = mpsc::channel(QUEUE);
        (self.start)(queue);
        let owner = (orders, Arc::new(()));
        owners.insert(name.clone(), owner.clone());
        Ok(owner)
    }
}

struct Owner<C> {
    observer: Arc<TargetObserver<C>>,
    applier: Arc<TargetApplier<C>>,
    policy: TargetPolicy,
    desired: DesiredTargets,
    health: Arc<dyn TellsHealth>,
    progress: ProgressSink,
}

async fn run<C: Containers>(owner: Owner<C>, mut queue: mpsc::Receiver<Order>, mut beat: Beat) {
    loop {
        let order = tokio::select! {
            // Both are cancel-safe: an order stays queued, a beat stays due.
            order = queue.recv() => order,
            () = beat.due() => continue,
        };
        let Some(Order { wish, dry_run, as_desired, reply, _work }) = order else {
            return beat.retire();
        };
        if as_desired && owner.desired.get(&wish.spec().name).as_ref() != Some(wish.spec()) {
            let _ = reply.send(PrepareReport::of(false, PartReport::default(), Duration::ZERO));
            continue;
        }
        let work = owner.bring_about(&wish, dry_run);
        tokio::pin!(work);
        let report = loop {
            tokio::select! {
                // The work is pinned and goes on when a beat comes first.
                report = &mut work => break report,
                () = beat.due() => {}
            }
        };
        let _ = reply.send(report);
    }
}

impl<C: Containers> Owner<C> {
    async fn bring_about(&self, wish: &TargetWish, dry_run: bool) -> PrepareReport {
        let began = Instant::now();
        let mut report = PartReport::default();
        let done = match dry_run {
            true => self.converge(wish, true, &mut report).await,
            false => self.change(wish, &mut report).await,
        };
        report.errors.extend(done.err());
        PrepareReport::of(dry_run, report, began.elapsed())
    }

    /// Brings it about, watched from the beginning; who asks for the target's health afterwards hears of
    /// what was done.
    async fn change(&self, wish: &TargetWish, report: &mut PartReport) -> Result<(), Fault> {
        let TargetSpec { name, control_sock, .. } = wish.spec();
        let work = match wish {
            TargetWish::Ensure(..) => Work::BringUp,
            TargetWish::Destroy { .. } => Work::TakeAway,
        };
        let control = |otherwise: &CleanPath| {
            self.desired.get(name).map_or(otherwise.clone(), |spec| spec.control_sock)
        };
        let before = control(control_sock);
        self.health.watch(name, &before);
        let work = self.desired.at_work(name, work);
        let mut done = self.converge(wish, false, report).await;
        if let (TargetWish::Destroy { .. }, Ok(())) = (wish, &done) {
            done = self.desired.forget(name).await;
        }
        self.health.look_again(name, &control(&before)).await;
        drop(work);
        done
    }

    async fn converge(
        &self,
        wish: &TargetWish,
        dry_run: bool,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        let mut wish = wish.clone();
        for _ in 0..MOST_ROUNDS {
            let seen = self.observer.look(wish.spec()).await?;
            let plan = wish.plan(&seen, &self.policy)?;
            // Whose cores were taken is told by the round that took them, and by no later one.
            let untold = |told: &Finding| plan.findings.iter().all(|new| new.code != told.code);
            report.findings.retain(untold);
            report.findings.extend(plan.findings.iter().cloned());
            if dry_run {
                report.steps.extend(plan.steps.iter().map(StepReport::planned));
                return Ok(());
            }
            if let TargetWish::Ensure(spec, _) = &wish {
                // It can be: from here on it is wanted, whatever becomes of this agent. What is left as it
                // is stays wanted as it is.
                let left = plan.is_left().then(|| seen.made_for()).flatten();
                self.desired.want(left.as_ref().unwrap_or(spec)).await?;
            }
            if plan.steps.is_empty() {
                return Ok(());
            }
            // Guests may come while an image does: who is connected is counted anew afterwards.
            let loads = matches!(plan.steps.as_slice(), [Step::LoadImage { .. }, _, ..]);
            let steps = if loads { plan.steps.get(..1).unwrap_or_default() } else { &plan.steps };
            if let Err(fault) = self.apply_all(steps, &seen, report).await {
                if self.fell_meanwhile(wish.spec(), &plan.steps).await {
                    continue;
                }
                return Err(fault);
            }
            if loads {
                continue;
            }
            // What was to be replaced is; the next look only makes sure.
            if let TargetWish::Ensure(_, wish) = &mut wish {
                wish.recreate = false;
            }
        }
        Err(Fault::new(
            "target-not-converging",
            format!(
                "{} is still not as wanted after {MOST_ROUNDS} rounds: something else changes it too; \
                 see the steps of this report",
                wish.spec().name
            ),
        ))
    }

    async fn apply_all(
        &self,
        steps: &[Step],
        seen: &TargetSeen,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        for step in steps {
            self.apply(step, seen, report).await?;
        }
        Ok(())
    }

    /// Whether all that was wrong is that a target which was there already ended while it was waited for:
    /// one that was killed a moment ago may be seen alive once more. The next round brings it up.
    async fn fell_meanwhile(&self, spec: &TargetSpec, steps: &[Step]) -> bool {
        let waited = matches!(steps, [Step::AwaitTarget { .. }]);
        let runs = |seen: TargetSeen| seen.container.is_some_and(|container| container.running);
        waited && self.observer.look(spec).await.is_ok_and(|seen| !runs(seen))
    }

    async fn apply(
        &self,
        step: &Step,
        seen: &TargetSeen,
        report: &mut PartReport,
    ) -> Result<(), Fault> {
        self.progress.begun(step);
        let began = Instant::now();
        let progress = self.progress.clone();
        let line = |text| progress.line(step, text);
        let applied = self.applier.apply(step, seen.huge_dir.as_deref(), line).await;
        let (before, _) = step.before_after();
        let (after, outcome) = match &applied {
            Ok(after) => (after.clone(), StepOutcome::Done),
            Err(fault) => (fault.text.clone(), StepOutcome::Failed),
        };
        let step = StepReport::of(step, before, after, outcome, began.elapsed());
        self.progress.ended(&step);
        report.steps.push(step);
        applied.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::fake::FakeContainers;
    use crate::host::Root;
    use crate::model::target::TargetState;
    use crate::spdk::Sockets;
    use crate::store::Store;

    /// Nobody watches.
    struct NoHealth;

    impl TellsHealth for NoHealth {
        fn health<'a>(
            &'a self,
            name: &'a TargetName,
            _: &'a CleanPath,
        ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>> {
            let health = TargetHealth {
                name: name.clone(),
                state: TargetState::Absent,
                reason: String::new(),
                since: String::new(),
                version: None,
                age_ms: None,
                pid: None,
            };
            Box::pin(std::future::ready(health))
        }

        fn watch(&self, _: &TargetName, _: &CleanPath) {}

        fn look_again<'a>(
            &'a self,
            name: &'a TargetName,
            control: &'a CleanPath,
        ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>> {
            self.health(name, control)
        }
    }

    #[tokio::test]
    async fn names_that_were_asked_for_once_do_not_shut_out_others() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        crate::host::spawn_fake::put_cpu(&root);
        let (policy, sockets) = (TargetPolicy::example(), Sockets::default());
        let containers = Arc::new(FakeContainers::with_one(&[]));
        let look = TargetObserver::new(&root, containers.clone(), sockets.clone(), policy.clone());
        let apply = TargetApplier::new(&root, containers, sockets, policy.clone());
        let store = Store::open(folder.path().join("state"), folder.path().join("run")).unwrap();
        let desired = DesiredTargets::open(store).unwrap();
        let (progress, pulse) = (ProgressSink::default(), Pulse::default());
        let targets =
            Targets::new(look, apply, policy, desired, Arc::new(NoHealth), progress, pulse);
        for number in 0..=MOST_TARGETS {
            let spec = TargetSpec::example(&format!("target-{number}"));
            let report =
                targets.bring_about(TargetWish::Destroy { spec, force: false }, true).await;
            assert_eq!(report.unwrap().errors[0].code, "container-not-ours");
        }
    }
}
