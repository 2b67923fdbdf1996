//! Observers of targets: facts from the kernel, the engine and the control socket, and no evaluation.
//!
//! ```text
//! pidfd, the engine's events, a probe twice in the age that an answer may have
//!        └──▶ one observer for each target ──▶ Observation ──▶ the target's task, health calls
//! ```
//!
//! A target is observed from the first call that asks for it, or from the moment it is desired. A call is answered
//! from the last observation as long as that is fresh; otherwise all callers wait for the same new one.

mod engine;
mod probe;
mod silence;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::time::{Instant, timeout};

pub use self::engine::EngineNews;
pub use self::probe::Probe;
use self::watch::ProcessWatch;
use crate::docker::Containers;
use crate::model::buffers::BufferWaits;
use crate::model::observation::{Observation, Process};
use crate::model::path::CleanPath;
use crate::model::target::{Desired, TargetName};

/// Most targets observed at the same time; a node has a few.
const MOST_OBSERVED: usize = 64;
/// Time after which a target that is neither desired nor asked for is observed no more.
const IDLE: Duration = Duration::from_secs(600);
/// Timeout of a caller; longer than any observation takes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(120);
/// Callers that may wait for one target.
const QUEUE: usize = 4096;

/// A target by its container and its control socket.
pub(super) type Key = (TargetName, CleanPath);
/// Subscription to the observations of a target, which begins with the last one.
pub(super) type Observations = channel::Receiver<Arc<Observation>>;
type Asks = mpsc::Sender<oneshot::Sender<Arc<Observation>>>;
type AskQueue = mpsc::Receiver<oneshot::Sender<Arc<Observation>>>;

/// Dependencies of every observer.
struct ObserverParts<C> {
    probe: Arc<Probe<C>>,
    news: EngineNews,
    desired: channel::Receiver<Desired>,
}

struct Observed {
    asks: Asks,
    seen: Observations,
    asked: Instant,
}

/// Handle of all observers of this node; clones share them.
#[derive(Clone)]
pub struct Observers {
    start: Arc<dyn Fn(Key, AskQueue) -> Observations + Send + Sync>,
    observed: Arc<Mutex<BTreeMap<Key, Observed>>>,
    desired: channel::Receiver<Desired>,
    news: EngineNews,
    max_age: Duration,
}

impl Observers {
    /// Creates a handle that observes nothing yet.
    pub fn new<C: Containers>(
        probe: Arc<Probe<C>>,
        news: EngineNews,
        desired: channel::Receiver<Desired>,
    ) -> Observers {
        let max_age = probe.policy.health.max_age;
        let shared =
            Arc::new(ObserverParts { probe, news: news.clone(), desired: desired.clone() });
        let start = move |key, asks| ProcessWatch::start(key, shared.clone(), asks);
        Observers { start: Arc::new(start), observed: Arc::default(), desired, news, max_age }
    }

    /// Observes whatever the test says.
    #[cfg(test)]
    pub(super) fn played(seen: Observations, desired: channel::Receiver<Desired>) -> Observers {
        let start = move |_, mut asks: AskQueue| {
            let published = seen.clone();
            tokio::spawn(async move {
                while let Some(reply) = asks.recv().await {
                    let _ = reply.send(published.borrow().clone());
                }
            });
            seen.clone()
        };
        Observers {
            start: Arc::new(start),
            observed: Arc::default(),
            desired,
            news: EngineNews::default(),
            max_age: Duration::ZERO,
        }
    }

    /// Observes the target from now on, if it was not observed before. Must run on the runtime.
    pub(super) fn observe(&self, name: &TargetName, control: &CleanPath) -> Observations {
        self.find(name, control).1
    }

    /// Targets that are observed.
    #[cfg(test)]
    pub(super) fn observed(&self) -> Vec<Key> {
        self.observed.lock().unwrap().keys().cloned().collect()
    }

    /// Ends all observers.
    #[cfg(test)]
    pub(super) fn forget_all(&self) {
        self.observed.lock().unwrap().clear();
    }

    /// Last observation of the target if that is fresh, else a new one.
    pub(super) async fn fresh(&self, name: &TargetName, control: &CleanPath) -> Arc<Observation> {
        let (asks, seen) = self.find(name, control);
        let known = seen.borrow().clone();
        match self.is_fresh(&known) {
            true => known,
            false => ask(asks, seen).await,
        }
    }

    /// New observation, begun now.
    pub(super) async fn look_again(
        &self,
        name: &TargetName,
        control: &CleanPath,
    ) -> Arc<Observation> {
        let (asks, seen) = self.find(name, control);
        ask(asks, seen).await
    }

    /// Age of the last answer of each target whose running process has answered.
    pub fn last_answers(&self) -> Vec<(TargetName, Duration)> {
        self.figures(|seen| Some(seen.answers.answered()?.elapsed()))
    }

    /// Requests that had to wait for an I/O buffer, of each target that counts them.
    pub fn buffer_waits(&self) -> Vec<(TargetName, BufferWaits)> {
        self.figures(|seen| seen.buffers.waits)
    }

    /// Figure of each target that has one in its last observation. Under the name of a desired target only its own
    /// control socket counts, whatever others were asked for.
    fn figures<T>(&self, figure: impl Fn(&Observation) -> Option<T>) -> Vec<(TargetName, T)> {
        let observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        let desired = self.desired.borrow();
        let counts = |key: &Key| is_desired(&desired, key) || !desired.targets.contains_key(&key.0);
        let counted = observed.iter().filter(|(key, _)| counts(key));
        let figures = counted
            .filter_map(|((name, _), one)| Some((name.clone(), figure(&one.seen.borrow())?)));
        figures.collect()
    }

    fn find(&self, name: &TargetName, control: &CleanPath) -> (Asks, Observations) {
        let mut observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.clone(), control.clone());
        if observed.get(&key).is_none_or(|one| one.asks.is_closed()) {
            observed.remove(&key);
            self.make_room(&mut observed);
        }
        let entry = observed.entry(key.clone()).or_insert_with(|| {
            let (asks, queue) = mpsc::channel(QUEUE);
            Observed { asks, seen: (self.start)(key, queue), asked: Instant::now() }
        });
        entry.asked = Instant::now();
        (entry.asks.clone(), entry.seen.clone())
    }

    /// Drops observers that have ended. If too many are left, also drops the one of a target that is not desired which
    /// was asked for the longest ago. An observer ends when no handle of it is left.
    fn make_room(&self, observed: &mut BTreeMap<Key, Observed>) {
        let desired = |key: &Key| is_desired(&self.desired.borrow(), key);
        observed.retain(|_, one| !one.asks.is_closed());
        if observed.len() >= MOST_OBSERVED {
            let others = observed.iter().filter(|(key, _)| !desired(key));
            let oldest = others.min_by_key(|(_, one)| one.asked).map(|(key, _)| key.clone());
            if let Some(key) = oldest {
                observed.remove(&key);
            }
        }
    }

    fn is_fresh(&self, seen: &Observation) -> bool {
        let young = |at: Option<std::time::Instant>| {
            at.is_some_and(|at| {
                Instant::now().into_std().saturating_duration_since(at) < self.max_age
            })
        };
        let heard = match seen.answers.version() {
            Some(_) => seen.answers.answered(),
            None => seen.heard,
        };
        match seen.process {
            Process::Lives { .. } => young(heard),
            Process::Unknown(_) => seen.answers.version().is_some() && young(seen.heard),
            // Only events of the engine can report a new container: without them, no such observation is fresh.
            Process::NoContainer | Process::Ended(_) => {
                seen.sure && self.news.is_live() && !self.max_age.is_zero()
            }
        }
    }
}

/// `true` if that target is desired: under its name, and with that control socket.
fn is_desired(desired: &Desired, (name, control): &Key) -> bool {
    desired.targets.get(name).is_some_and(|spec| spec.control_sock == *control)
}

async fn ask(asks: Asks, seen: Observations) -> Arc<Observation> {
    let (reply, answer) = oneshot::channel();
    // Waits for a place: the observer takes all waiting callers at once.
    let answer = async { asks.send(reply).await.ok().map(|()| answer)?.await.ok() };
    // Each query of an observation has its own deadline; this one only keeps a caller from waiting for an observer
    // that has broken off.
    let answered = timeout(PROBE_TIMEOUT, answer).await.ok().flatten();
    answered.unwrap_or_else(|| seen.borrow().clone())
}
