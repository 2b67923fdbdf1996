//! Observation of a target: its container, its control socket, its links, and with `target_resources` what it needs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::exits::explained;
use super::target_resources::{FileFacts, cpu_use, file_facts, pages_for_target};
use super::{blocking, blocking_within};
pub use crate::docker::Containers;
use crate::docker::EngineError;
use crate::host::pools::PoolFiles;
use crate::host::{Root, links, process};
use crate::model::bounds::{Links, paths_of_target};
use crate::model::code::Code;
use crate::model::container::ContainerSeen;
use crate::model::engine::NOT_DOCKER;
use crate::model::fault::{Fault, chain};
use crate::model::names::PROBE_PREFIX;
use crate::model::path::CleanPath;
use crate::model::policy::TargetPolicy;
use crate::model::target::{TargetKind, TargetName, TargetSeen, TargetSpec};
use crate::model::units::PageSize;
use crate::spdk::{Sockets, SpdkError};

/// Timeout for the engine to notice that a container's process has exited.
const NOTICED: Duration = Duration::from_secs(5);
/// Interval of checking whether the engine has noticed the exit.
const NOTICE_PAUSE: Duration = Duration::from_millis(5);

/// Number of lines of a container's output reported with each exit.
const EXIT_LINES: usize = 5;
/// Timeout of the engine to return the lines for an exit.
const EXIT_TIME: Duration = Duration::from_millis(300);
/// Number of lines of a container's output in an error.
const LAST_LINES: usize = 20;
/// Maximum of characters of each such line.
const LINE: usize = 500;

/// Formats a container's last output as a sentence.
pub fn printed(lines: Result<Vec<String>, String>) -> String {
    let shortened = |line: &String| match line.char_indices().nth(LINE) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line.clone(),
    };
    match lines {
        Ok(lines) if lines.is_empty() => "it printed nothing".to_string(),
        Ok(lines) => {
            let lines: Vec<String> = lines.iter().map(shortened).collect();
            format!("its last lines: {}", lines.join(" | "))
        }
        Err(why) => format!("its output cannot be read: {why}"),
    }
}

/// Observer of the targets of one machine.
#[derive(Debug)]
pub struct TargetObserver<C> {
    root: Root,
    containers: Arc<C>,
    sockets: Sockets,
    policy: TargetPolicy,
    following: Arc<Semaphore>,
}

/// Timeout of following links.
const FOLLOW_TIME: Duration = Duration::from_secs(2);
/// Maximum of link lookups that may hang at one time.
const MOST_FOLLOWING: usize = 4;

impl<C: Containers> TargetObserver<C> {
    pub fn new(
        root: &Root,
        containers: Arc<C>,
        sockets: Sockets,
        policy: TargetPolicy,
    ) -> TargetObserver<C> {
        let following = Arc::new(Semaphore::new(MOST_FOLLOWING));
        TargetObserver { root: root.clone(), containers, sockets, policy, following }
    }

    /// Observes the whole input of the target planner. With `beside`, also the containers with the names that are used
    /// while one target replaces another.
    ///
    /// # Errors
    /// When the engine does not answer, or the machine cannot be read.
    pub async fn look(&self, spec: &TargetSpec, beside: bool) -> Result<TargetSeen, Fault> {
        let files = file_facts(&self.root, spec, &self.policy).await?;
        let has_image = self.image_id(spec, &files.built_in_image);
        let beside = async {
            match beside {
                true => self.beside(&spec.name).await,
                false => Ok(Vec::new()),
            }
        };
        let container = self.container(spec.name.as_str());
        let (container, image, beside) = tokio::join!(container, has_image, beside);
        let container = container.map_err(|e| engine_fault(&e))?;
        let image = image.map_err(|e| engine_fault(&e))?;
        let running = container.as_ref().filter(|container| container.running);
        // The guests are at the control socket of the running container, which may differ from the desired one.
        let made_for = running.and_then(ContainerSeen::made_for);
        let ours = made_for.is_some();
        let control = made_for.map_or(spec.control_sock.clone(), |spec| spec.control_sock);
        let own = running.and_then(|container| container.pid);
        let opened = spec.as_opened(image.is_some());
        let wanted = self.policy.target.pages(spec);
        let ((version, silence, guests), cpu_use, memory, links) = tokio::join!(
            self.ask(&control),
            cpu_use(&self.root, &files.parent_group, own),
            pages_for_target(&self.root, &files.parent_group, wanted, files.huge_dir.clone(), own),
            self.links(&opened)
        );
        let may_have_disks = !ours || files.has_volume_sockets;
        let sessions = match running {
            Some(_) => sessions_of(guests, may_have_disks),
            None => Some(0),
        };
        Ok(TargetSeen {
            container,
            beside: beside?,
            version,
            silence,
            sessions,
            disconnected: 0,
            known: None,
            links,
            has_image: image.is_some(),
            image_id: image.unwrap_or_default(),
            built_in_image: files.built_in_image,
            has_client_conf: files.has_client_conf,
            huge_dir: files.huge_dir,
            cpus: files.cpus,
            cpu_use: cpu_use?,
            socket_obstacle: files.socket_obstacle,
            socket_doubt: files.socket_doubt,
            free_pages: memory.free_pages,
            promised_pages: Default::default(),
            returning_pages: memory.returning_pages,
            page_limit: memory.limit,
        })
    }

    /// Id of the target's image; `None` if the engine does not have it.
    async fn image_id(
        &self,
        spec: &TargetSpec,
        built_in_image: &str,
    ) -> Result<Option<String>, EngineError> {
        let image = match spec.kind {
            TargetKind::BuiltIn => built_in_image,
            _ => spec.image.as_deref().unwrap_or_default(),
        };
        match image.is_empty() {
            true => Ok(None),
            false => self.containers.image(image, self.policy.target.call_timeout).await,
        }
    }

    /// Observes only the target's container, the containers with the names used during a replacement, and the mount of
    /// its pages.
    ///
    /// # Errors
    /// When the engine does not answer, or the machine cannot be read.
    pub async fn look_around(&self, spec: &TargetSpec) -> Result<TargetSeen, Fault> {
        let named = self.container_of(spec);
        let (named, beside) = tokio::join!(named, self.beside(&spec.name));
        let FileFacts { huge_dir, .. } = file_facts(&self.root, spec, &self.policy).await?;
        Ok(TargetSeen { container: named?, beside: beside?, huge_dir, ..TargetSeen::default() })
    }

    /// Finds containers with the names that are used while one target replaces another.
    async fn beside(&self, name: &TargetName) -> Result<Vec<(String, ContainerSeen)>, Fault> {
        let looks = name.beside().map(|at| async move {
            let seen = self.container(&at).await?;
            Ok(seen.map(|seen| (at, seen)))
        });
        let looks = try_join_all(looks).await.map_err(|e: EngineError| engine_fault(&e))?;
        Ok(looks.into_iter().flatten().collect())
    }

    /// Describes a target's exit, its last output, what explains both, and a shortage of pages: the evidence of why it
    /// crashes. `why` is used if the engine does not report the exit.
    pub async fn last_words(&self, name: &TargetName, why: &str, within: Duration) -> String {
        let seen = self.container(name.as_str()).await.ok().flatten();
        let ended = seen.filter(|container| !container.running);
        let lines = self.containers.last_lines(name.as_str(), LAST_LINES, within).await;
        let printed = printed(lines.map_err(|e| chain(&e)));
        let explained = explained(&self.root, &self.policy, ended.as_ref(), &printed).await;
        let how = ended.map_or(why.to_string(), |it| it.how_it_ended());
        let words = format!("{how}; {printed}{explained}");
        match self.free_pages().await {
            Some(0) => format!("{words}; no 2 MiB page is free"),
            Some(free) => format!("{words}; {free} pages of 2 MiB are free"),
            None => words,
        }
    }

    /// Formats a container's last output, a few lines only, for guests wait for the next step; and what explains its
    /// exit.
    pub async fn last_printed(&self, container: &ContainerSeen) -> String {
        let lines = self.containers.last_lines(&container.id, EXIT_LINES, EXIT_TIME).await;
        let printed = printed(lines.map_err(|e| chain(&e)));
        let explained = explained(&self.root, &self.policy, Some(container), &printed).await;
        printed + &explained
    }

    async fn free_pages(&self) -> Option<u64> {
        let root = self.root.clone();
        let pools = blocking(move || PoolFiles::find(&root)?.read_all()).await.ok()?.ok()?;
        let small = pools.iter().filter(|pool| pool.key.size == PageSize::MIB_2);
        Some(small.map(|pool| pool.free).sum())
    }

    /// Observes the container of a target, not its control socket.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn container_of(&self, spec: &TargetSpec) -> Result<Option<ContainerSeen>, Fault> {
        self.container(spec.name.as_str()).await.map_err(|e| engine_fault(&e))
    }

    /// Observes the container `name`. If its process is dead, waits until the engine has noticed that too: a container
    /// that the engine takes for running can neither be started nor removed.
    async fn container(&self, name: &str) -> Result<Option<ContainerSeen>, EngineError> {
        let deadline = Instant::now() + NOTICED;
        loop {
            let seen = self.containers.container(name, self.policy.target.call_timeout).await?;
            let pid = seen.as_ref().filter(|seen| seen.running).and_then(|seen| seen.pid);
            let dead = pid.is_some_and(|pid| process::started(&self.root, pid).is_none());
            if !dead || Instant::now() >= deadline {
                return Ok(seen);
            }
            sleep(NOTICE_PAUSE).await;
        }
    }

    /// Queries the control socket. Returns the version, the reason if there is none, and the number of connected
    /// guests.
    async fn ask(&self, control: &CleanPath) -> (Option<String>, String, Result<usize, SpdkError>) {
        let within = self.policy.health.timeout;
        let socket = self.sockets.at(&self.root.path(control.as_str()));
        let (version, controllers, reactors) = tokio::join!(
            socket.serving(within),
            socket.controllers(within),
            socket.reactors(within)
        );
        // A target with a frozen reactor does not serve.
        let version = match reactors {
            Err(error) if !error.is_unknown_method() => version.and(Err(error)),
            _ => version,
        };
        let guests = controllers.map(|controllers| {
            let guests = controllers.iter().filter(|one| !one.ctrlr.starts_with(PROBE_PREFIX));
            guests.map(|one| one.sessions.len()).sum()
        });
        match version {
            Ok(version) => (Some(version.version), String::new(), guests),
            Err(error) => (None, chain(&error), guests),
        }
    }

    /// Follows links in paths that a request named; empty if the machine does not answer in time.
    async fn links(&self, spec: &TargetSpec) -> Links {
        let paths = paths_of_target(spec, &self.policy.target);
        if paths.is_empty() {
            return Links::new();
        }
        let root = self.root.clone();
        let look = move || links::follow(&root, paths);
        let looked = blocking_within(&self.following, FOLLOW_TIME, look).await;
        looked.and_then(Result::ok).unwrap_or_default()
    }
}

/// Number of connected guests of a running target, by its control socket's answer; `None` if that does not tell. With
/// `may_have_disks`, disks may exist although there is no control socket.
fn sessions_of(guests: Result<usize, SpdkError>, may_have_disks: bool) -> Option<usize> {
    match guests {
        // A target that never made its control socket has made no disk's socket either. A target whose control socket
        // was removed may have.
        Err(SpdkError::Absent { .. }) if !may_have_disks => Some(0),
        // Not started, or without support for disks.
        Err(SpdkError::Refused { .. }) => Some(0),
        guests => guests.ok(),
    }
}

/// Maps a failed engine call, on behalf of a target, to a fault.
pub fn engine_fault(error: &EngineError) -> Fault {
    let code = match error {
        EngineError::Absent { .. } | EngineError::Gone { .. } => Code::EngineAbsent,
        EngineError::NotDocker { .. } => Code::EngineNotDocker,
        EngineError::Timeout { .. } => Code::EngineNotAnswering,
        EngineError::Refused { .. } | EngineError::Call { .. } => Code::EngineRefused,
    };
    let remedy = match error {
        EngineError::Absent { .. } => "prepare the node first (`vhost-agent prepare`)",
        EngineError::NotDocker { .. } => NOT_DOCKER,
        EngineError::Timeout { .. } => "see the engine's log, and restart it when it hangs",
        EngineError::Gone { .. } => {
            "see the engine's log, prepare the node (`vhost-agent prepare`), and call again"
        }
        EngineError::Refused { .. } | EngineError::Call { .. } => {
            return Fault::new(code, chain(error));
        }
    };
    Fault::new(code, format!("{}: {remedy}", chain(error)))
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
