//! Single queries of the engine and of the target: bounded, and nothing is kept. Nothing is forked, and no volume's
//! socket is touched.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::silence::Evidence;
use crate::docker::Containers;
use crate::host::Root;
use crate::host::pidfd::WatchedProcess;
use crate::host::vitals;
use crate::model::buffers::BufferAnswer;
use crate::model::fault::chain;
use crate::model::path::CleanPath;
use crate::model::policy::TargetPolicy;
use crate::model::target::TargetName;
use crate::spdk::{OpenChange, Sockets, SpdkError};

/// Most queries that a target may leave unanswered before no more are sent. Two show that the target does not answer,
/// and more would keep a slow one from ever answering in time.
const MOST_OPEN: u32 = 2;
/// Timeout of a request for counters, which no answer about the target's health waits for.
const COUNTERS_WITHIN: Duration = Duration::from_secs(5);

/// Probe of targets and of the engine.
#[derive(Debug)]
pub struct Probe<C> {
    root: Root,
    pub(super) containers: Arc<C>,
    sockets: Sockets,
    /// Policy with the deadlines of the queries.
    pub(super) policy: TargetPolicy,
}

/// Answer and evidence that a probe brought.
#[derive(Debug)]
pub(in crate::targets) struct ProbeOutcome {
    /// Version that the target reports, or the reason for having none.
    pub(in crate::targets) answer: Result<String, String>,
    /// Evidence about a process that did not answer.
    pub(in crate::targets) evidence: Option<Evidence>,
}

/// Container as the engine reports it, and its process as the kernel does.
#[derive(Debug)]
pub(super) enum Found {
    /// No container of that name.
    Nothing,
    /// Living process.
    Runs(WatchedProcess),
    /// Process that has ended; the text says how, where the engine knows it.
    Ended(Option<String>),
    /// No answer of the engine; the text says why.
    Unknown(String),
}

impl<C: Containers> Probe<C> {
    /// Creates a probe for all targets of this node.
    pub fn new(
        root: &Root,
        containers: Arc<C>,
        sockets: Sockets,
        policy: TargetPolicy,
    ) -> Probe<C> {
        Probe { root: root.clone(), containers, sockets, policy }
    }

    /// Probes the target at `control`; without an answer, gathers evidence about `pid`.
    pub(in crate::targets) async fn probe(
        &self,
        control: &CleanPath,
        pid: Option<u32>,
    ) -> ProbeOutcome {
        let path = self.root.path(control.as_str());
        let before = self.sockets.open_change(&path);
        let answer = self.answers(control).await;
        let evidence = match (&answer, pid) {
            (Err(_), Some(pid)) => {
                // A request that ended meanwhile explains a silence as well.
                let busy = self.sockets.open_change(&path).or(before);
                Some(self.evidence(pid, busy).await)
            }
            _ => None,
        };
        ProbeOutcome { answer, evidence }
    }

    /// Version that the target reports, if its control socket and every reactor answered; else the reason.
    async fn answers(&self, control: &CleanPath) -> Result<String, String> {
        let within = self.policy.health.timeout;
        let socket = self.sockets.at(&self.root.path(control.as_str()));
        socket.takes_questions(MOST_OPEN, within).await.map_err(|e| chain(&e))?;
        // All queries are in flight together, on one connection.
        let (version, reactors) = tokio::join!(socket.serving(within), socket.reactors(within));
        let version = version.map_err(|e| chain(&e))?.version;
        match reactors {
            Ok(_) => Ok(version),
            Err(error) if error.is_unknown_method() => Ok(version),
            Err(SpdkError::Timeout { within, .. }) => Err(format!(
                "a reactor is unresponsive: {version} answers, but not all of its reactors did within {within:?}"
            )),
            Err(error) => Err(chain(&error)),
        }
    }

    /// Counters of the target's I/O buffers; `None` if it did not answer. The target asks each of its threads in turn,
    /// and it makes one for each volume.
    pub(super) async fn buffers(&self, control: &CleanPath) -> Option<BufferAnswer> {
        let socket = self.sockets.at(&self.root.path(control.as_str()));
        socket.buffer_waits(COUNTERS_WITHIN).await.ok()
    }

    /// Gathers evidence about a process that did not answer, without asking it. The kernel answers at once; where it
    /// does not, nothing was observed.
    async fn evidence(&self, pid: u32, busy: Option<OpenChange>) -> Evidence {
        let root = self.root.clone();
        // Some files of each thread, of which a target may have thousands.
        let look = spawn_blocking(move || (vitals::look(&root, pid), vitals::is_starved(&root)));
        let seen = timeout(self.policy.health.timeout, look).await;
        let (look, starved) = seen.ok().and_then(Result::ok).unwrap_or_default();
        let busy = busy.map(|change| (change.until, change.method));
        Evidence { look, starved, busy }
    }

    /// Time of the target's last reply that came too late for its caller.
    pub(super) fn late_reply(&self, control: &CleanPath) -> Option<std::time::Instant> {
        self.sockets.at(&self.root.path(control.as_str())).late_reply()
    }

    /// Process that answered last at `control`, found without the engine.
    pub(super) fn who_answers(&self, control: &CleanPath) -> Option<WatchedProcess> {
        let socket = self.sockets.at(&self.root.path(control.as_str()));
        WatchedProcess::of(&self.root, socket.peer()?)
    }

    /// Finds the container of that name, and its process.
    pub(super) async fn find(&self, name: &TargetName) -> Found {
        match self.containers.container(name.as_str(), self.policy.health.timeout).await {
            Ok(None) => Found::Nothing,
            Ok(Some(container)) if !container.running => {
                Found::Ended(Some(container.how_it_ended()))
            }
            Ok(Some(container)) => {
                let process = container.pid.and_then(|pid| WatchedProcess::of(&self.root, pid));
                // The kernel knows of an end before the engine does.
                process.map_or(Found::Ended(None), Found::Runs)
            }
            Err(error) => Found::Unknown(chain(&error)),
        }
    }
}
