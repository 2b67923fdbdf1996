//! Asking how a target stands. Callers at the same time share one round, and a round is good for as long
//! as the settings say; nothing is forked, and no volume's socket is touched.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Mutex as Turn;
use tokio::time::Instant;

use crate::docker::Containers;
use crate::health::judge::{Evidence, Process, judge};
use crate::host::Root;
use crate::host::process::started;
use crate::model::fault::chain;
use crate::model::policy::TargetPolicy;
use crate::model::target::{CleanPath, ContainerSeen, TargetHealth, TargetName, TargetState};
use crate::spdk::Sockets;

/// Targets that are remembered; a node has a few.
const MOST_KNOWN: usize = 64;

/// A target by its container and its control socket.
type Key = (TargetName, CleanPath);

/// Asks how targets stand.
#[derive(Debug)]
pub struct Probe<C> {
    root: Root,
    containers: Arc<C>,
    sockets: Sockets,
    policy: TargetPolicy,
    known: Mutex<BTreeMap<Key, Arc<Turn<Known>>>>,
}

/// What the last round came to.
#[derive(Debug, Default)]
struct Known {
    last: Option<(Instant, TargetHealth)>,
    /// The process that the engine told last, with its start time: it needs no engine to be seen alive.
    process: Option<(u32, u64)>,
}

impl<C: Containers> Probe<C> {
    /// A probe for all targets of this node.
    pub fn new(
        root: &Root,
        containers: Arc<C>,
        sockets: Sockets,
        policy: TargetPolicy,
    ) -> Probe<C> {
        let known = Mutex::default();
        Probe { root: root.clone(), containers, sockets, policy, known }
    }

    /// How the target stands: by an answer of a process that still lives, younger than the settings'
    /// `max_age`, or a new one. That it does not serve is asked anew each time, for that may be mended.
    pub async fn health(&self, name: &TargetName, control: &CleanPath) -> TargetHealth {
        let (turn, came) = (self.turn(name, control), Instant::now());
        let mut known = turn.lock().await;
        if let Some((at, health)) = &known.last {
            let served = health.state == TargetState::Serving && self.still_lives(&known);
            // Who waited for his turn finds a round that was begun meanwhile.
            if *at >= came || served && at.elapsed() < self.policy.max_age {
                return aged(health, *at);
            }
        }
        let at = Instant::now();
        let evidence = self.look(name, control, &mut known).await;
        let health = told(name, &evidence, &known);
        known.last = Some((at, health.clone()));
        aged(&health, at)
    }

    fn turn(&self, name: &TargetName, control: &CleanPath) -> Arc<Turn<Known>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.clone(), control.clone());
        if known.len() >= MOST_KNOWN && !known.contains_key(&key) {
            known.clear();
        }
        known.entry(key).or_default().clone()
    }

    async fn look(&self, name: &TargetName, control: &CleanPath, known: &mut Known) -> Evidence {
        let within = self.policy.answer_timeout;
        let socket = self.sockets.at(&self.root.path(control.as_str()));
        let (container, answer) =
            tokio::join!(self.containers.container(name.as_str(), within), socket.version(within));
        let answer = match answer {
            Ok(version) => Ok(version.version),
            Err(error) => Err(chain(&error)),
        };
        let process = match container {
            Ok(container) => self.process(container, known),
            Err(_) if self.still_lives(known) => Process::Lives,
            Err(error) => Process::Unknown(chain(&error)),
        };
        Evidence { process, answer }
    }

    fn process(&self, container: Option<ContainerSeen>, known: &mut Known) -> Process {
        known.process = None;
        let Some(container) = container else { return Process::NoContainer };
        if !container.running {
            return Process::Ended(container.how_it_ended());
        }
        known.process = container.pid.and_then(|pid| Some((pid, started(&self.root, pid)?)));
        match known.process {
            Some(_) => Process::Lives,
            None => Process::Ended("the engine has not noticed yet that its process ended".into()),
        }
    }

    fn still_lives(&self, known: &Known) -> bool {
        known.process.is_some_and(|(pid, since)| started(&self.root, pid) == Some(since))
    }
}

fn told(name: &TargetName, evidence: &Evidence, known: &Known) -> TargetHealth {
    let (state, reason) = judge(evidence);
    let before = known.last.as_ref().map(|(_, health)| health);
    let since = match before {
        Some(before) if before.state == state => before.since.clone(),
        _ => now(),
    };
    let serves = state == TargetState::Serving;
    TargetHealth {
        name: name.clone(),
        state,
        reason,
        since,
        version: evidence.answer.clone().ok().filter(|_| serves),
        age_ms: None,
        pid: known.process.map(|(pid, _)| pid),
    }
}

fn aged(health: &TargetHealth, at: Instant) -> TargetHealth {
    let age = at.elapsed().as_millis();
    let age_ms = health.version.as_ref().map(|_| u64::try_from(age).unwrap_or(u64::MAX));
    TargetHealth { age_ms, ..health.clone() }
}

fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}
