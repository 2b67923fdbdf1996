//! Watching targets, so that their health is known before it is asked for.
//!
//! ```text
//! pidfd, the engine's events, a probe twice in the age that an answer may have
//!        └──▶ one task for each target ──▶ judge ──▶ published ──▶ health calls, events
//! ```
//!
//! A target is watched from the first call that asks for it, or from the moment it is wanted. A call is
//! answered from what is known as long as that is young enough; else all callers wait for the same look.

mod engine;
mod silence;
mod target;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

pub use self::engine::EngineNews;
pub(super) use self::silence::Evidence;
use self::target::{Told, Watch};
use super::probe::Probe;
use crate::docker::Containers;
use crate::model::observation::Observation;
use crate::model::path::CleanPath;
use crate::model::target::{Desired, TargetHealth, TargetName, TargetState};

/// Targets that are watched at the same time; a node has a few.
const MOST_WATCHED: usize = 64;
/// A target that is not wanted and was not asked for in so long is watched no more.
const IDLE: Duration = Duration::from_secs(600);
/// More than any look takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Callers that may wait for one target.
const QUEUE: usize = 4096;

/// A target by its container and its control socket.
type Key = (TargetName, CleanPath);
type Asks = mpsc::Sender<oneshot::Sender<Told>>;

/// What every watch needs.
struct Shared<C> {
    probe: Probe<C>,
    news: EngineNews,
    desired: watch::Receiver<Desired>,
    changed: Box<dyn Fn(&TargetHealth) + Send + Sync>,
    forgotten: Box<dyn Fn(&TargetName) + Send + Sync>,
}

/// One that is watched.
struct Watched {
    asks: Asks,
    told: watch::Receiver<Told>,
    seen: watch::Receiver<Arc<Observation>>,
    asked: Instant,
}

/// Watches the targets of this node.
pub struct Watchers<C> {
    shared: Arc<Shared<C>>,
    watched: Mutex<BTreeMap<Key, Watched>>,
}

impl<C: Containers> Watchers<C> {
    /// Watches nothing yet. `changed` hears of each change of a state, `forgotten` of each target that is
    /// not wanted and watched no more, so that what was told of it last is not taken for true for ever;
    /// neither may block.
    pub fn new(
        probe: Probe<C>,
        news: EngineNews,
        desired: watch::Receiver<Desired>,
        changed: impl Fn(&TargetHealth) + Send + Sync + 'static,
        forgotten: impl Fn(&TargetName) + Send + Sync + 'static,
    ) -> Watchers<C> {
        let (changed, forgotten) = (Box::new(changed), Box::new(forgotten));
        let shared = Shared { probe, news, desired, changed, forgotten };
        Watchers { shared: Arc::new(shared), watched: Mutex::default() }
    }

    /// Hears what the engine tells, for ever; one call may take `within`.
    pub fn follow_engine(&self, within: Duration) -> impl Future<Output = ()> + Send + use<C> {
        let shared = self.shared.clone();
        async move { shared.news.clone().follow(&shared.probe, within).await }
    }

    /// Whether the engine runs, found out without a call that might start it.
    pub async fn engine_runs(&self) -> bool {
        self.shared.probe.engine_may_be_asked().await
    }

    /// How the target stands, from what is known when that is young enough.
    pub async fn health(&self, name: &TargetName, control: &CleanPath) -> TargetHealth {
        let (asks, told) = self.watched(name, control);
        let known = told.borrow().clone();
        match self.is_fresh(&known) {
            true => known.aged(),
            false => ask(asks, known).await,
        }
    }

    /// The same by a look that begins now, and that everybody hears of.
    pub async fn look_again(&self, name: &TargetName, control: &CleanPath) -> TargetHealth {
        let (asks, told) = self.watched(name, control);
        let known = told.borrow().clone();
        ask(asks, known).await
    }

    /// How old the last answer is of each that has answered since its process runs. Under the name of one
    /// that is wanted only its own control socket counts, whatever others were asked for.
    pub fn last_answers(&self) -> Vec<(TargetName, Duration)> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let desired = self.shared.desired.borrow();
        let counts = |key: &Key| is_wanted(&desired, key) || !desired.targets.contains_key(&key.0);
        let counted = watched.iter().filter(|(key, _)| counts(key));
        let ages = counted.filter_map(|((name, _), one)| {
            let answered = one.told.borrow().answered?;
            Some((name.clone(), answered.elapsed()))
        });
        ages.collect()
    }

    /// Watches the target from now on, if it was not watched before, and tells what is seen of it. On the
    /// runtime.
    pub fn watch(
        &self,
        name: &TargetName,
        control: &CleanPath,
    ) -> watch::Receiver<Arc<Observation>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        self.find(&mut watched, name, control).seen.clone()
    }

    fn watched(&self, name: &TargetName, control: &CleanPath) -> (Asks, watch::Receiver<Told>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = self.find(&mut watched, name, control);
        (entry.asks.clone(), entry.told.clone())
    }

    fn find<'a>(
        &self,
        watched: &'a mut BTreeMap<Key, Watched>,
        name: &TargetName,
        control: &CleanPath,
    ) -> &'a mut Watched {
        let key = (name.clone(), control.clone());
        if watched.get(&key).is_none_or(|one| one.asks.is_closed()) {
            watched.remove(&key);
            self.make_room(watched);
        }
        let entry = watched.entry(key.clone()).or_insert_with(|| {
            let (asks, queue) = mpsc::channel(QUEUE);
            let (told, seen) = Watch::start(key, self.shared.clone(), queue);
            Watched { asks, told, seen, asked: Instant::now() }
        });
        entry.asked = Instant::now();
        entry
    }

    /// Forgets whose watch has ended, and when that does not suffice, who was not asked for the longest. A
    /// watch ends when nobody can ask it any more.
    fn make_room(&self, watched: &mut BTreeMap<Key, Watched>) {
        let wanted = |key: &Key| is_wanted(&self.shared.desired.borrow(), key);
        watched.retain(|_, one| !one.asks.is_closed());
        if watched.len() >= MOST_WATCHED {
            let oldest =
                watched.iter().filter(|(key, _)| !wanted(key)).min_by_key(|(_, w)| w.asked);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                watched.remove(&key);
            }
        }
    }

    fn is_fresh(&self, told: &Told) -> bool {
        let max_age = self.shared.probe.policy.max_age;
        let young = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < max_age);
        match told.health.state {
            TargetState::Serving => young(told.answered),
            TargetState::Degraded | TargetState::Paused | TargetState::Starting => {
                young(told.heard)
            }
            // Only the engine can tell that there is another container now.
            TargetState::Absent | TargetState::Failed => {
                told.sure && self.shared.news.is_live() && !max_age.is_zero()
            }
        }
    }
}

fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

/// Whether it is that target which is wanted: under its name, and with that control socket.
fn is_wanted(desired: &Desired, (name, control): &Key) -> bool {
    desired.targets.get(name).is_some_and(|spec| spec.control_sock == *control)
}

async fn ask(asks: Asks, known: Told) -> TargetHealth {
    let (reply, answer) = oneshot::channel();
    // Waits for a place: the watch takes all that wait at once.
    let answer = async { asks.send(reply).await.ok().map(|()| answer)?.await.ok() };
    // Each step of a look has its own deadline; this one only keeps a caller from waiting for a watch
    // that has broken off.
    timeout(PATIENCE, answer).await.ok().flatten().unwrap_or(known).aged()
}

#[cfg(test)]
#[path = "../watch_tests.rs"]
mod tests;
