//! The owners of targets, one for each: observe, plan, apply, until it runs as it is wanted, with its
//! volumes.
//!
//! ```text
//! Targets (handle) ──order──▶ the owner of that name ◀── its health, time
//!        ◀──report──            converge: look ▸ plan ▸ apply ▸ look …   (the container)
//!                               volumes:  look ▸ plan ▸ apply ▸ look     (what is in it)
//!                               tend:     which of both is due, and when
//! ```
//!
//! Orders for one target come one after the other, those for different ones at the same time. A call, a fall
//! and the agent's start run the same loop: they differ only in why.

mod book;
mod converge;
mod falls;
mod owner;
mod tend;
mod volumes;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

pub use self::falls::Falls;
use self::owner::{Owner, run};
use super::apply::target::TargetApplier;
use super::apply::volumes::VolumeApplier;
use super::desired::DesiredTargets;
use super::observe::target::{Containers, TargetObserver};
use super::observe::volumes::VolumeObserver;
use super::owner_gone;
use super::progress::ProgressSink;
use super::pulse::Pulse;
use super::standing::Stands;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::observation::Observation;
use crate::model::path::CleanPath;
use crate::model::policy::TargetPolicy;
use crate::model::prepare::PrepareReport;
use crate::model::target::{EnsureWish, TargetHealth, TargetName, TargetSeen, TargetSpec};
use crate::model::volume::{VolumeKey, VolumeSpec, VolumeStatus, VolumeView, Volumes};
use crate::plan::target::{self, TargetPlan};

/// Orders that may wait for one target; more are refused.
const QUEUE: usize = 256;
/// Targets of one node.
const MOST_TARGETS: usize = 64;
/// How long a busy owner is waited for by who only wants to know how volumes stand.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries to take away a volume that a virtual machine is about to leave.
const LEAVE_PAUSE: Duration = Duration::from_millis(200);

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
    pub(super) fn spec(&self) -> &TargetSpec {
        match self {
            TargetWish::Ensure(spec, _) | TargetWish::Destroy { spec, .. } => spec,
        }
    }

    pub(super) fn plan(
        &self,
        seen: &TargetSeen,
        policy: &TargetPolicy,
    ) -> Result<TargetPlan, Fault> {
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

    /// How old the last answer is of each target that is watched and has answered; nobody is asked for that.
    fn last_answers(&self) -> Vec<(TargetName, Duration)> {
        Vec::new()
    }

    /// From now on it is known how it stands; what is seen of it.
    fn watch(&self, name: &TargetName, control: &CleanPath) -> watch::Receiver<Arc<Observation>>;

    /// The same by a look that begins now: something was changed.
    fn look_again<'a>(
        &'a self,
        name: &'a TargetName,
        control: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = TargetHealth> + Send + 'a>>;
}

/// What an owner is asked for, and where its answer goes.
enum Order {
    /// The target itself.
    Target { wish: Box<TargetWish>, dry_run: bool, reply: oneshot::Sender<PrepareReport> },
    /// Volumes that are to serve.
    Activate {
        volumes: Vec<VolumeSpec>,
        undo: bool,
        reply: oneshot::Sender<Result<Vec<VolumeView>, Fault>>,
    },
    /// Volumes that are to go, of a target that need not be wanted.
    Deactivate {
        target: Box<TargetSpec>,
        volumes: Vec<VolumeKey>,
        reply: oneshot::Sender<Result<(), Fault>>,
    },
    /// A volume that is to have another size.
    Resize {
        target: Box<TargetSpec>,
        volume: VolumeKey,
        size_mib: u64,
        reply: oneshot::Sender<Result<VolumeView, Fault>>,
    },
    /// A look at the volumes.
    Look { reply: oneshot::Sender<()>, _place: OwnedSemaphorePermit },
    /// To look after the target from now on.
    Tend,
}

/// An order on its way.
struct Ordered {
    order: Order,
    /// Shows that its owner is needed until it is done.
    _work: Arc<()>,
}

/// The way to one owner.
#[derive(Clone)]
struct Way {
    orders: mpsc::Sender<Ordered>,
    /// What each of its orders holds a share of.
    work: Arc<()>,
    /// One look at a time: who only wants to know must not fill its queue.
    looks: Arc<Semaphore>,
}

type Owners = BTreeMap<TargetName, Way>;

/// What every owner needs.
pub struct Parts<C> {
    /// Looks at targets.
    pub observer: TargetObserver<C>,
    /// Changes them.
    pub applier: TargetApplier<C>,
    /// Looks at their volumes.
    pub volume_observer: VolumeObserver,
    /// Changes those.
    pub volume_applier: VolumeApplier,
    /// The operator's choices.
    pub policy: TargetPolicy,
    /// What is wanted.
    pub desired: DesiredTargets,
    /// What is remembered of their falls.
    pub falls: Falls,
    /// How targets stand.
    pub health: Arc<dyn TellsHealth>,
    /// Where it is published.
    pub stands: Stands,
    /// Tells how work goes on.
    pub progress: ProgressSink,
    /// What else a fall or an end of volumes sets in motion.
    pub node: Arc<dyn LooksAfterNode>,
}

/// What targets need of their node.
pub trait LooksAfterNode: Send + Sync {
    /// Whether the engine runs. Where systemd listens in its stead, a call would start one that an operator
    /// has stopped.
    fn engine_runs(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;

    /// The engine does not answer, and a target is wanted: starts it where nobody else does. Returns whether
    /// it answers now.
    fn raise_engine(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;

    /// The last volume of the node went: what the agent grew for them may be given back. Must not block.
    fn no_volumes_left(&self);
}

/// How the volumes of each target stood last.
#[derive(Debug, Clone, Default)]
struct Board(Arc<Mutex<BTreeMap<TargetName, Arc<Volumes>>>>);

impl Board {
    fn put(&self, target: &TargetName, volumes: Volumes) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match volumes.is_empty() {
            true => drop(all.remove(target)),
            false => drop(all.insert(target.clone(), Arc::new(volumes))),
        }
    }

    fn of(&self, target: &TargetName) -> Arc<Volumes> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(target).cloned().unwrap_or_default()
    }
}

/// The handle of all targets of this node.
#[derive(Clone)]
pub struct Targets {
    owners: Arc<Mutex<Owners>>,
    start: Arc<dyn Fn(TargetName, mpsc::Receiver<Ordered>) + Send + Sync>,
    desired: DesiredTargets,
    falls: Falls,
    board: Board,
}

impl Targets {
    /// A handle; an owner is started with the first order for its target.
    pub fn new<C: Containers>(parts: Parts<C>, pulse: Pulse) -> Targets {
        let (parts, board) = (Arc::new(parts), Board::default());
        let (desired, falls, shown) = (parts.desired.clone(), parts.falls.clone(), board.clone());
        let start = move |name, queue| {
            let mut owner = Owner::new(name, parts.clone(), board.clone());
            owner.recall();
            tokio::spawn(run(owner, queue, pulse.register()));
        };
        Targets { owners: Arc::default(), start: Arc::new(start), desired, falls, board: shown }
    }

    /// Looks after every target that is wanted, from now on: what has fallen meanwhile is brought back.
    pub fn tend_all(&self) {
        let names: Vec<TargetName> =
            self.desired.watch().borrow().targets.keys().cloned().collect();
        self.falls.keep_only(&names);
        for name in names {
            if let Err(fault) = self.send(&name, Order::Tend) {
                tracing::error!(target_name = %name, code = %fault.code, "{name} is not looked after: {fault}");
            }
        }
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
        let (name, wish) = (wish.spec().name.clone(), Box::new(wish));
        self.ask(&name, |reply| Order::Target { wish, dry_run, reply }).await
    }

    /// Makes volumes serve in a target, all in one pass, and writes down that they are wanted before that.
    /// `undo` forgets again, and takes away, what was not wanted before and could not be brought about.
    ///
    /// Returns each volume as it stands afterwards: one that does not serve says why.
    ///
    /// # Errors
    /// When nothing of it could be taken in: a conflict with what is wanted already, the state, the target;
    /// with `undo`, also when one could not be brought about.
    pub async fn activate(
        &self,
        target: &TargetSpec,
        volumes: Vec<VolumeSpec>,
        undo: bool,
    ) -> Result<Vec<VolumeView>, Fault> {
        self.ask(&target.name, |reply| Order::Activate { volumes, undo, reply }).await?
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
        let deadline = Instant::now() + wait.unwrap_or_default();
        loop {
            let (target, volumes) = (Box::new(target.clone()), volumes.clone());
            let name = target.name.clone();
            let done =
                self.ask(&name, |reply| Order::Deactivate { target, volumes, reply }).await?;
            match done {
                // Not in the owner, who has other things to do meanwhile.
                Err(fault) if fault.code == Code::VolumeInUse && Instant::now() < deadline => {
                    sleep(LEAVE_PAUSE).await;
                }
                done => return done,
            }
        }
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
        let (target, name) = (Box::new(target.clone()), target.name.clone());
        self.ask(&name, |reply| Order::Resize { target, volume, size_mib, reply }).await?
    }

    /// The volumes that are wanted in a target, as they stand: looked at now, unless its owner is busy for
    /// longer; then as they were known last.
    pub async fn volumes(&self, target: &TargetName) -> Vec<VolumeView> {
        let specs = self.desired.volumes(target);
        if specs.is_empty() {
            return Vec::new();
        }
        let looked = async {
            let _place = self.owner(target).ok()?.looks.acquire_owned().await.ok()?;
            self.ask(target, |reply| Order::Look { reply, _place }).await.ok()
        };
        // An owner that is busy knows what it did last, and that is told then.
        let _ = timeout(LOOK_PATIENCE, looked).await;
        let known = self.board.of(target);
        let specs = self.desired.volumes(target);
        specs.values().map(|spec| view(target, spec, &known)).collect()
    }

    /// Virtual machines that were connected to its volumes when those were looked at last.
    pub fn sessions(&self, target: &TargetName) -> usize {
        self.board.of(target).values().map(|status| status.sessions).sum()
    }

    async fn ask<T>(
        &self,
        name: &TargetName,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        self.send(name, order(reply))?;
        answer.await.map_err(|_| owner_gone())
    }

    fn send(&self, name: &TargetName, order: Order) -> Result<(), Fault> {
        let Way { orders, work, .. } = self.owner(name)?;
        orders.try_send(Ordered { order, _work: work }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Fault::new(
                Code::TargetBusy,
                format!("{QUEUE} requests for this target wait already: call again later"),
            ),
            mpsc::error::TrySendError::Closed(_) => owner_gone(),
        })
    }

    fn owner(&self, name: &TargetName) -> Result<Way, Fault> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = owners.get(name) {
            return Ok(owner.clone());
        }
        if owners.len() >= MOST_TARGETS {
            // An owner without work remembers nothing of a target that is not wanted: it ends, and is
            // started again when needed.
            owners.retain(|name, way| {
                Arc::strong_count(&way.work) > 1 || self.desired.get(name).is_some()
            });
        }
        if owners.len() >= MOST_TARGETS {
            let text = format!("{MOST_TARGETS} targets are worked on already: call again later");
            return Err(Fault::new(Code::TooManyTargets, text));
        }
        let (orders, queue) = mpsc::channel(QUEUE);
        (self.start)(name.clone(), queue);
        let owner = Way { orders, work: Arc::new(()), looks: Arc::new(Semaphore::new(1)) };
        owners.insert(name.clone(), owner.clone());
        Ok(owner)
    }
}

/// A volume with how it stood last.
fn view(target: &TargetName, spec: &VolumeSpec, known: &Volumes) -> VolumeView {
    let status = known.get(&spec.name).cloned().unwrap_or_else(VolumeStatus::unknown);
    VolumeView { target: target.clone(), spec: spec.clone(), status }
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
