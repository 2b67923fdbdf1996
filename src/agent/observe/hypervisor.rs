//! Versions of the installed libvirt and QEMU, which the controller requests when it connects.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::blocking;
use crate::host::Root;
use crate::host::process::{FileStamp, file_stamp, find_executable};
use crate::host::spawn::{Invocation, Spawner};

/// Timeout of a program that prints its version.
const ANSWER: Duration = Duration::from_secs(2);
/// Programs that print libvirt's version.
const LIBVIRT: &[&str] = &["libvirtd", "virtqemud"];
/// Programs that print QEMU's version.
const QEMU: &[&str] = &["qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm", "kvm"];

/// Observer of the versions. Runs one program for each version, and again only if its file was replaced or it printed
/// no version.
#[derive(Debug)]
pub struct Hypervisor<S> {
    root: Root,
    spawner: S,
    libvirt: SharedRun,
    qemu: SharedRun,
}

/// Version that a program printed, once it has run; `None` if it printed none.
type PrintedVersion = Arc<OnceCell<Option<String>>>;

/// Runs of the programs of one version; concurrent callers share one run.
#[derive(Debug, Default)]
struct SharedRun {
    /// Version printed by the file that was run last.
    last: Mutex<Option<(FileStamp, PrintedVersion)>>,
    /// Program that was killed and that the kernel has not let go of yet: none is run beside it.
    left: Mutex<Option<JoinHandle<()>>>,
}

/// Installed versions; empty where nothing is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HypervisorVersions {
    pub libvirt: String,
    pub qemu: String,
}

impl<S: Spawner> Hypervisor<S> {
    /// Makes an observer; runs nothing yet.
    pub fn new(root: &Root, spawner: S) -> Hypervisor<S> {
        Hypervisor {
            root: root.clone(),
            spawner,
            libvirt: SharedRun::default(),
            qemu: SharedRun::default(),
        }
    }

    /// Returns the versions, from the cache where possible.
    pub async fn versions(&self) -> HypervisorVersions {
        let (libvirt, qemu) =
            tokio::join!(self.version(LIBVIRT, &self.libvirt), self.version(QEMU, &self.qemu));
        HypervisorVersions { libvirt, qemu }
    }

    async fn version(&self, programs: &'static [&str], run: &SharedRun) -> String {
        let root = self.root.clone();
        let found = blocking(move || {
            let program = programs.iter().find_map(|name| find_executable(&root, name))?;
            file_stamp(&root, &program)
        });
        let Ok(Some(stamp)) = found.await else { return String::new() };
        let cell = {
            let mut last_run = run.last.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last_run {
                // A program that printed no version is run again.
                Some((known, cell)) if *known == stamp && cell.get() != Some(&None) => cell.clone(),
                _ => last_run.insert((stamp.clone(), Arc::default())).1.clone(),
            }
        };
        let program = self.root.path(&stamp.path).display().to_string();
        cell.get_or_init(|| self.ask(program, &run.left)).await.clone().unwrap_or_default()
    }

    async fn ask(&self, program: String, left: &Mutex<Option<JoinHandle<()>>>) -> Option<String> {
        let left = || left.lock().unwrap_or_else(PoisonError::into_inner);
        if left().as_ref().is_some_and(|left| !left.is_finished()) {
            return None;
        }
        let invocation = Invocation { program, args: vec!["--version".into()], env: Vec::new() };
        let end = self.spawner.query(invocation, ANSWER).await.ok()?;
        *left() = end.left;
        let version = version_in(&end.output);
        (end.code == Some(0) && !version.is_empty()).then_some(version)
    }
}

/// Finds the first word that looks like a version: digits with dots.
fn version_in(output: &str) -> String {
    output
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .unwrap_or_default()
        .to_string()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the tests put files in place
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::host::HostError;
    use crate::host::spawn::{Daemon, QueryEnd, RunEnd, RunRequest};

    /// Spawner that reads a program's file instead of running it: the text is its output, the word `fails` makes it
    /// fail, and `hangs` makes it one that cannot be reaped.
    #[derive(Clone)]
    struct Reads {
        runs: Arc<Mutex<Vec<String>>>,
    }

    impl Spawner for Reads {
        async fn run(&self, _: RunRequest) -> Result<RunEnd, HostError> {
            unreachable!("no program is left running")
        }

        async fn daemon(&self, _: Invocation, _: &str) -> Result<Daemon, HostError> {
            unreachable!("no daemon is started")
        }

        async fn query(&self, invocation: Invocation, _: Duration) -> Result<QueryEnd, HostError> {
            let output = fs::read_to_string(&invocation.program).unwrap();
            self.runs.lock().unwrap().push(invocation.program);
            if output.contains("hangs") {
                let left = Some(tokio::spawn(std::future::pending()));
                return Ok(QueryEnd { timed_out: true, left, ..QueryEnd::default() });
            }
            let code = Some(i32::from(output.contains("fails")));
            Ok(QueryEnd { code, output, ..QueryEnd::default() })
        }
    }

    /// Puts another file in a program's place, as a package manager does.
    fn install(root: &Root, text: &str) {
        let path = root.path("/usr/sbin/libvirtd");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    #[tokio::test]
    async fn a_program_is_asked_once_and_again_when_it_was_upgraded_or_had_failed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let runs = Arc::default();
        let spawner = Reads { runs: Arc::clone(&runs) };
        let hypervisor = Hypervisor::new(&root, spawner);
        let libvirt = async || hypervisor.versions().await.libvirt;
        assert_eq!(libvirt().await, "", "nothing is installed");
        install(&root, "fails 9.0.0");
        assert_eq!(libvirt().await, "");
        fs::write(root.path("/usr/sbin/libvirtd"), "libvirtd (libvirt) 9.0.0").unwrap();
        assert_eq!((libvirt().await, libvirt().await), ("9.0.0".into(), "9.0.0".into()));
        assert_eq!(runs.lock().unwrap().len(), 2);
        install(&root, "libvirtd (libvirt) 10.1.0");
        assert_eq!((libvirt().await, libvirt().await), ("10.1.0".into(), "10.1.0".into()));
        assert_eq!(runs.lock().unwrap().len(), 3);
        install(&root, "fails 10.1.0");
        assert_eq!((libvirt().await, libvirt().await), (String::new(), String::new()));
        assert_eq!(runs.lock().unwrap().len(), 5, "a failure is not kept");
    }

    #[tokio::test]
    async fn program_that_cannot_be_reaped_is_not_run_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let runs = Arc::default();
        let hypervisor = Hypervisor::new(&root, Reads { runs: Arc::clone(&runs) });
        install(&root, "hangs");
        for _ in 0..3 {
            assert_eq!(hypervisor.versions().await.libvirt, "");
        }
        assert_eq!(runs.lock().unwrap().len(), 1);
    }

    #[test]
    fn versions_are_found_in_what_the_programs_print() {
        let qemu = "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022";
        assert_eq!(version_in(qemu), "7.2.17");
        assert_eq!(version_in("libvirtd (libvirt) 9.0.0\n"), "9.0.0");
        assert_eq!(version_in("nothing here"), "");
    }
}
