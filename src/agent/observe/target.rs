//! A target: its container, its control socket, what it will need.

use std::sync::Arc;

use super::blocking;
pub use crate::docker::Containers;
use crate::docker::EngineError;
use crate::host::{Root, cpus, mounts, own_image};
use crate::model::cpu::Cpu;
use crate::model::fault::{Fault, chain};
use crate::model::policy::TargetPolicy;
use crate::model::target::{TargetKind, TargetSeen, TargetSpec};
use crate::model::units::PageSize;
use crate::spdk::Sockets;

/// Looks at the targets of one machine.
#[derive(Debug)]
pub struct TargetObserver<C> {
    root: Root,
    containers: Arc<C>,
    sockets: Sockets,
    policy: TargetPolicy,
}

/// What stands in files.
struct Files {
    built_in_image: String,
    has_client_conf: bool,
    huge_dir: Option<String>,
    cpus: Vec<Cpu>,
}

impl<C: Containers> TargetObserver<C> {
    /// An observer of this node's targets.
    pub fn new(
        root: &Root,
        containers: Arc<C>,
        sockets: Sockets,
        policy: TargetPolicy,
    ) -> TargetObserver<C> {
        TargetObserver { root: root.clone(), containers, sockets, policy }
    }

    /// Everything the target planner looks at.
    ///
    /// # Errors
    /// When the engine does not answer, or the machine cannot be read.
    pub async fn look(&self, spec: &TargetSpec) -> Result<TargetSeen, Fault> {
        let within = self.policy.call_timeout;
        let files = self.files(spec).await?;
        let image = match spec.kind {
            TargetKind::BuiltIn => files.built_in_image.clone(),
            _ => spec.image.clone().unwrap_or_default(),
        };
        let has_image = async {
            match image.is_empty() {
                true => Ok(None),
                false => self.containers.image(&image, within).await,
            }
        };
        let container = self.containers.container(spec.name.as_str(), within);
        let (container, image, answer) = tokio::join!(container, has_image, self.ask(spec));
        let container = container.map_err(|e| engine_fault(&e))?;
        let running = container.as_ref().is_some_and(|container| container.running);
        let (version, silence, sessions) = answer;
        Ok(TargetSeen {
            container,
            version,
            silence,
            sessions: if running { sessions } else { 0 },
            has_image: image.map_err(|e| engine_fault(&e))?.is_some(),
            built_in_image: files.built_in_image,
            has_client_conf: files.has_client_conf,
            huge_dir: files.huge_dir,
            cpus: files.cpus,
        })
    }

    /// The version that the control socket tells, why it does not, and how many machines are connected.
    async fn ask(&self, spec: &TargetSpec) -> (Option<String>, String, usize) {
        let within = self.policy.answer_timeout;
        let socket = self.sockets.at(&self.root.path(spec.control_sock.as_str()));
        match tokio::join!(socket.version(within), socket.controllers(within)) {
            (Ok(version), controllers) => {
                // One that has no controllers yet, or is still starting, has nobody connected.
                let controllers = controllers.unwrap_or_default();
                let sessions = controllers.iter().map(|one| one.sessions.len()).sum();
                (Some(version.version), String::new(), sessions)
            }
            (Err(error), _) => (None, chain(&error), 0),
        }
    }

    async fn files(&self, spec: &TargetSpec) -> Result<Files, Fault> {
        let (root, conf) = (self.root.clone(), spec.client_conf.clone());
        blocking(move || {
            let mounts = mounts::hugetlb_mounts(&root)?;
            let usable = |mount: &&_| is_usable(mount);
            Ok(Files {
                built_in_image: own_image::reference().unwrap_or_default(),
                has_client_conf: conf.is_some_and(|path| root.path(path.as_str()).is_file()),
                huge_dir: mounts.iter().find(usable).map(|mount| mount.path.clone()),
                cpus: cpus::cpus(&root)?,
            })
        })
        .await?
    }
}

/// Whether a target can keep its memory there.
fn is_usable(mount: &crate::model::mounts::HugetlbMount) -> bool {
    mount.page_size == PageSize::MIB_2 && mount.writable && mount.reachable
}

/// A call to the engine that failed, on behalf of a target.
pub fn engine_fault(error: &EngineError) -> Fault {
    let code = match error {
        EngineError::Absent { .. } => "engine-absent",
        EngineError::Timeout { .. } => "engine-not-answering",
        EngineError::Refused { .. } | EngineError::Call { .. } => "engine-refused",
    };
    Fault::new(code, chain(error))
}
