//! Observation of the storage from this node: whether its heartbeat volume can be read, and whether the packages of its
//! client are installed.

use std::time::Duration;

use super::blocking;
use crate::host::process::{FOLDERS, find_executable};
use crate::host::qemu_io::{self, ReadFailure};
use crate::host::spawn::{Invocation, QueryEnd, Spawner};
use crate::host::{Root, dpkg, packages};
use crate::model::code::Code;
use crate::model::engine::PackageManager;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::storage::{CBD, DependenciesSeen, HeartbeatVolume};

/// Timeout of rpm's answer: it may wait for a lock of its database.
pub const RPM_ANSWER: Duration = Duration::from_secs(30);

/// Observer of the storage of one machine.
#[derive(Debug, Clone)]
pub struct StorageObserver<S> {
    root: Root,
    spawner: S,
    /// Configuration of the storage's client.
    conf: CleanPath,
}

impl<S: Spawner> StorageObserver<S> {
    /// Makes an observer; `conf` is the configuration of the storage's client.
    pub fn new(root: &Root, spawner: S, conf: CleanPath) -> StorageObserver<S> {
        StorageObserver { root: root.clone(), spawner, conf }
    }

    /// Reads the first 4 KiB of `volume` as a virtual machine would, by QEMU's driver for the storage.
    ///
    /// # Errors
    /// `storage-client-missing` where the node lacks what that takes, `storage-unreachable` where it fails or lasts longer
    /// than `within`.
    pub async fn read_heartbeat(
        &self,
        volume: &HeartbeatVolume,
        within: Duration,
    ) -> Result<(), Fault> {
        let (root, conf) = (self.root.clone(), self.conf.clone());
        let look = move || {
            let program = find_executable(&root, qemu_io::PROGRAM);
            let program = program.map(|path| root.path(path).display().to_string());
            (program, root.path(conf.as_str()).is_file())
        };
        let (program, has_conf) = blocking(look).await?;
        let program = program.ok_or_else(|| no_program(volume))?;
        if !has_conf {
            return Err(self.no_conf(volume));
        }
        let command = qemu_io::read(program.clone(), volume, &self.conf);
        let end = self.asked(command, within).await?;
        match qemu_io::failure(&end) {
            None => Ok(()),
            Some(failure) => Err(self.not_read(volume, &program, (failure, &end), within)),
        }
    }

    fn no_conf(&self, volume: &HeartbeatVolume) -> Fault {
        let text = format!(
            "{volume} cannot be read: {} (target.client_conf) is not there; deploy the storage's client on this node",
            self.conf.as_str()
        );
        Fault::new(Code::StorageClientMissing, text)
    }

    fn not_read(
        &self,
        volume: &HeartbeatVolume,
        program: &str,
        (failure, end): (ReadFailure, &QueryEnd),
        within: Duration,
    ) -> Fault {
        let said = qemu_io::last_words(&end.output);
        match failure {
            ReadFailure::NoDriver => Fault::new(
                Code::StorageClientMissing,
                format!(
                    "{volume} cannot be read: {program} has no driver {CBD} ({said}); install the QEMU that comes with the \
                     storage's client"
                ),
            ),
            ReadFailure::TimedOut => Fault::new(Code::StorageUnreachable, late(volume, within)),
            ReadFailure::Other => {
                let code = end.code.map_or("none".to_string(), |code| code.to_string());
                let text = format!(
                    "{volume} could not be read by {program} (exit code {code}): {said}; see whether this node reaches the \
                     servers that {} names",
                    self.conf.as_str()
                );
                Fault::new(Code::StorageUnreachable, text)
            }
        }
    }

    /// Asks a program, and waits until the kernel has let go of it: a run keeps its place for so long.
    async fn asked(&self, command: Invocation, within: Duration) -> Result<QueryEnd, Fault> {
        let mut end = self.spawner.query(command, within).await?;
        if let Some(left) = end.left.take() {
            let _ = left.await;
        }
        Ok(end)
    }

    /// Observes the versions of `packages`. dpkg's records are read without starting a process; where rpm is the one that
    /// knows, it is asked.
    ///
    /// # Errors
    /// If rpm cannot be asked, or does not say.
    pub async fn dependencies(&self, packages: &[String]) -> Result<DependenciesSeen, Fault> {
        let (root, names) = (self.root.clone(), packages.to_vec());
        let look = move || {
            let rpm = find_executable(&root, "rpm").map(|path| root.path(path));
            (packages::find(&root), dpkg::installed_versions(&root, &names), rpm)
        };
        let (manager, in_dpkg, rpm) = blocking(look).await?;
        let versions = match (manager, rpm) {
            (Some(PackageManager::Apt), _) | (_, None) => in_dpkg,
            (_, Some(rpm)) => {
                let rpm = rpm.display().to_string();
                let end = self.asked(packages::ask_rpm(rpm.clone(), packages), RPM_ANSWER).await?;
                let answer = packages::rpm_answer(&end, packages);
                let versions = answer.ok_or_else(|| no_answer(&rpm, packages, &end))?;
                Some(versions).filter(|versions| !versions.is_empty())
            }
        };
        Ok(DependenciesSeen { versions, manager })
    }
}

/// Fault of an rpm that did not say whether `packages` are installed.
fn no_answer(rpm: &str, packages: &[String], end: &QueryEnd) -> Fault {
    let names = packages.join(" ");
    if end.timed_out {
        let text = format!(
            "{rpm} did not say within {RPM_ANSWER:?} whether {names} is installed, and was killed: see which process holds \
             the lock of its database, then call again"
        );
        return Fault::new(Code::PackageManagerTimeout, text);
    }
    let code = end.code.map_or("none".to_string(), |code| code.to_string());
    let text = format!(
        "{rpm} could not say whether {names} is installed (exit code {code}): {}; see `rpm -q {names}` and mend its \
         database (`rpm --rebuilddb`), then call again",
        qemu_io::last_words(&end.output)
    );
    Fault::new(Code::PackageManagerFailed, text)
}

fn no_program(volume: &HeartbeatVolume) -> Fault {
    let text = format!(
        "{volume} cannot be read: {} is in none of {}; install the QEMU that comes with the storage's client (its driver \
         {CBD} is needed too)",
        qemu_io::PROGRAM,
        FOLDERS.join(", ")
    );
    Fault::new(Code::StorageClientMissing, text)
}

/// Text of a read that was not done in time.
pub fn late(volume: &HeartbeatVolume, within: Duration) -> String {
    format!(
        "{volume} was not read within {within:?} (storage.heartbeat_timeout), and qemu-io was killed: see whether this node \
         reaches the storage"
    )
}
