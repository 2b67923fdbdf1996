//! Start of programs that change the whole machine, such as a package manager. Where systemd is PID 1, they run as
//! services of their own, to which the limits of the agent's unit do not apply.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Daemon, Invocation, Processes, QueryEnd, RunEnd, RunRequest, Spawner, spawn_error};
use crate::host::process::find_executable;
use crate::host::systemd::Systemd;
use crate::host::watch::PathWatch;
use crate::host::{HostError, Root};

/// Spawner for programs that change the whole machine.
#[derive(Debug, Clone)]
pub struct HostWide {
    processes: Processes,
    systemd: Option<Arc<Systemd>>,
}

impl HostWide {
    /// Spawner that uses `systemd` if it is PID 1, and `processes` otherwise.
    pub fn new(processes: Processes, systemd: Option<Arc<Systemd>>) -> HostWide {
        HostWide { processes, systemd }
    }

    async fn run_as_service(
        &self,
        systemd: &Systemd,
        RunRequest { invocation, within, lines }: &RunRequest,
    ) -> Result<RunEnd, HostError> {
        let deadline = Instant::now() + *within;
        let named = invocation.program.clone();
        let found = spawn_blocking(move || find_executable(&Root::new("/"), &named)).await;
        let missing = || spawn_error(invocation)(std::io::ErrorKind::NotFound.into());
        let program = found.ok().flatten().ok_or_else(missing)?;
        let (following, file) = self.processes.open_run(invocation, PathWatch::new).await?;
        let failed = |source| {
            let (program, source) = (invocation.program.clone(), Box::new(source));
            HostError::Service { program, source }
        };
        let service = systemd.run(unit_of(&program), &program, invocation, &file).await;
        let service = service.map_err(failed)?;
        let ended = async { service.ended().await.map_err(failed) };
        let end = following.until_end(ended, deadline, lines).await;
        service.let_go().await;
        end
    }
}

/// Unique name of a service that runs `program` once.
fn unit_of(program: &str) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    format!("vhost-agent-{name}-{}.service", Uuid::new_v4().simple())
}

impl Spawner for HostWide {
    async fn run(&self, run: RunRequest) -> Result<RunEnd, HostError> {
        match &self.systemd {
            Some(systemd) => self.run_as_service(systemd, &run).await,
            None => self.processes.run(run).await,
        }
    }

    /// Starts a daemon as a child. Not used where systemd is PID 1: there the daemon is a systemd unit.
    async fn daemon(&self, invocation: Invocation, log: &str) -> Result<Daemon, HostError> {
        self.processes.daemon(invocation, log).await
    }

    /// Runs a program as a child: one that changes nothing needs none of the rights that the agent's unit lacks.
    async fn query(&self, invocation: Invocation, within: Duration) -> Result<QueryEnd, HostError> {
        self.processes.query(invocation, within).await
    }
}
