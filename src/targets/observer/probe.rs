//! One question to the engine, one to the target: bounded, and nothing is kept. Nothing is forked, and
//! no volume's socket is touched.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::silence::Evidence;
use crate::docker::Containers;
use crate::host::Root;
use crate::host::pidfd::WatchedProcess;
use crate::host::process::engine_may_be_asked;
use crate::host::vitals;
use crate::model::fault::chain;
use crate::model::path::CleanPath;
use crate::model::policy::TargetPolicy;
use crate::model::target::TargetName;
use crate::spdk::{OpenChange, Sockets, SpdkError};

/// Questions that may be open at a target, answered too late or never: two show that it does not answer, and more
/// would keep one that is only slow from ever answering in time.
const MOST_OPEN: u32 = 2;

/// Probe of targets.
#[derive(Debug)]
pub struct Probe<C> {
    root: Root,
    /// The engine's containers.
    pub(super) containers: Arc<C>,
    sockets: Sockets,
    /// Deadlines, and where the engine's daemon is to be found.
    pub(super) policy: TargetPolicy,
}

/// Container by the engine, and its process by the kernel.
#[derive(Debug)]
pub(super) enum Found {
    /// There is none of that name.
    Nothing,
    /// Its process lives.
    Runs(WatchedProcess),
    /// Its process has ended; the text says how, where the engine knows it.
    Ended(Option<String>),
    /// The engine does not answer; the text says why.
    Unknown(String),
}

impl<C: Containers> Probe<C> {
    /// A probe for all targets of this node.
    pub fn new(
        root: &Root,
        containers: Arc<C>,
        sockets: Sockets,
        policy: TargetPolicy,
    ) -> Probe<C> {
        Probe { root: root.clone(), containers, sockets, policy }
    }

    /// Whether the engine can be asked without being started by that: who only watches starts nothing.
    pub(in crate::targets) async fn engine_may_be_asked(&self) -> bool {
        let (root, engine) = (self.root.clone(), self.policy.registries.engine.clone());
        // Where the engine does not run, every process is looked at: nothing for the runtime's thread.
        let look =
            move || engine_may_be_asked(&root, &engine.pid_file, &engine.binary, &engine.socket);
        spawn_blocking(look).await.unwrap_or(false)
    }

    /// Asks the target; returns its version, or the reason for none and then the evidence about its process.
    pub(in crate::targets) async fn probe(
        &self,
        control: &CleanPath,
        pid: Option<u32>,
    ) -> (Result<String, String>, Option<Evidence>) {
        let path = self.root.path(control.as_str());
        let before = self.sockets.open_change(&path);
        let answer = self.answer(control).await;
        let evidence = match (&answer, pid) {
            (Err(_), Some(pid)) => {
                // One that ended while it was asked explains a silence as well.
                let busy = self.sockets.open_change(&path).or(before);
                Some(self.evidence(pid, busy).await)
            }
            _ => None,
        };
        (answer, evidence)
    }

    /// The version that the target tells, when its control socket and every reactor answered; else why
    /// not.
    async fn answer(&self, control: &CleanPath) -> Result<String, String> {
        let within = self.policy.health.timeout;
        let socket = self.sockets.at(&self.root.path(control.as_str()));
        socket.takes_questions(MOST_OPEN, within).await.map_err(|e| chain(&e))?;
        // On one connection, and on their way together.
        let (version, reactors) = tokio::join!(socket.serving(within), socket.reactors(within));
        let version = version.map_err(|e| chain(&e))?.version;
        match reactors {
            Ok(_) => Ok(version),
            Err(error) if error.is_unknown_method() => Ok(version),
            Err(SpdkError::Timeout { within, .. }) => Err(format!(
                "a reactor is frozen: {version} answers, but not all of its reactors did within {within:?}"
            )),
            Err(error) => Err(chain(&error)),
        }
    }

    /// Evidence about a process that did not answer, without asking it. The kernel tells at once;
    /// where it does not, nothing was seen.
    async fn evidence(&self, pid: u32, busy: Option<OpenChange>) -> Evidence {
        let root = self.root.clone();
        // Some files of each thread, of which a target may have thousands.
        let look = spawn_blocking(move || (vitals::look(&root, pid), vitals::is_starved(&root)));
        let seen = timeout(self.policy.health.timeout, look).await;
        let (look, starved) = seen.ok().and_then(Result::ok).unwrap_or_default();
        let busy = busy.map(|change| (change.until, change.method));
        Evidence { look, starved, busy }
    }

    /// Time of the target's last reply that nobody waited for any more.
    pub(super) fn late_reply(&self, control: &CleanPath) -> Option<std::time::Instant> {
        self.sockets.at(&self.root.path(control.as_str())).late_reply()
    }

    /// The process that answered last: who can be seen without the engine.
    pub(super) fn who_answers(&self, control: &CleanPath) -> Option<WatchedProcess> {
        let socket = self.sockets.at(&self.root.path(control.as_str()));
        WatchedProcess::of(&self.root, socket.peer()?)
    }

    /// The container of that name.
    pub(super) async fn find(&self, name: &TargetName) -> Found {
        if !self.engine_may_be_asked().await {
            return Found::Unknown("the engine does not run".to_string());
        }
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
