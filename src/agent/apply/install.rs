//! Installation of packages of the engine or of the storage's client: of several sets, the first that is available. Package lists are refreshed
//! once if they may be the cause of a failure, the lock of another package manager is waited for, and an interrupted
//! installation is finished first. All calls share one deadline. `host::packages` interprets the output of package
//! managers.

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::super::observe::blocking;
use crate::host::packages::{self, Failure};
use crate::host::spawn::{Invocation, RunEnd, RunRequest, Spawner};
use crate::host::{Root, dpkg};
use crate::model::code::Code;
use crate::model::engine::PackageManager;
use crate::model::fault::{Fault, chain};
use crate::model::policy::EnginePolicy;

/// Pause before a locked package manager is called again.
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// Owner of the packages that are installed, which decides what can be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InstallSubject {
    Engine,
    StorageClient,
}

/// Installation in progress.
pub(super) struct Installation<'a, S, L> {
    root: &'a Root,
    spawner: &'a S,
    policy: &'a EnginePolicy,
    manager: PackageManager,
    subject: InstallSubject,
    line: L,
    deadline: Instant,
    lock_deadline: Instant,
    refreshed: bool,
    /// Trouble that the refresh of the lists had with repositories: its cause, and lines about it.
    trouble: Option<(Failure, String)>,
    mended: bool,
}

impl<'a, S: Spawner, L: Fn(String) + Send + Sync> Installation<'a, S, L> {
    /// Starts the deadlines; output goes to `line`.
    pub(super) fn new(
        root: &'a Root,
        spawner: &'a S,
        policy: &'a EnginePolicy,
        (manager, subject): (PackageManager, InstallSubject),
        line: L,
    ) -> Installation<'a, S, L> {
        let now = Instant::now();
        Installation {
            root,
            spawner,
            policy,
            manager,
            subject,
            line,
            deadline: now + policy.install_timeout,
            lock_deadline: now + policy.lock_timeout,
            refreshed: false,
            trouble: None,
            mended: false,
        }
    }

    /// Installs the first available one of `sets`, and returns which.
    pub(super) async fn run(mut self, sets: &[Vec<String>]) -> Result<String, Fault> {
        if !self.wanted_anew().await?.is_empty() {
            // apt takes packages that dpkg wants installed anew for installed ones, and would do nothing.
            self.mend().await?;
        }
        let (mut at, mut conflict) = (0, None);
        while let Some(set) = sets.get(at) {
            let args = &self.policy.install_args;
            let lock_timeout = self.lock_timeout();
            let rehearsed = match packages::rehearse(self.manager, set, args, lock_timeout) {
                Some(call) => Some(self.call(call).await?),
                None => None,
            };
            let foretold =
                rehearsed.and_then(|end| Some((packages::foretold(self.manager, &end)?, end)));
            let (end, failure) = match foretold {
                Some((failure, end)) => (end, Some(failure)),
                None => {
                    let call = packages::install(self.manager, set, args, lock_timeout);
                    let end = self.call(call).await?;
                    let failure = packages::failure(self.manager, &end);
                    (end, failure)
                }
            };
            match failure {
                None => return Ok(set.join(" ")),
                Some(failure @ (Failure::NotAvailable | Failure::Conflict))
                    if at + 1 < sets.len() =>
                {
                    if failure == Failure::Conflict {
                        conflict = Some(self.fault(&sets[at..=at], failure, &end));
                    }
                    at += 1;
                }
                Some(Failure::NotAvailable | Failure::Fetch) if self.refresh().await? => at = 0,
                Some(Failure::Interrupted) if self.mend().await? => {}
                Some(failure) => {
                    let fault = self.fault(&sets[..=at], failure, &end);
                    // A conflict of an earlier set is reported rather than that a later set is not available: the
                    // operator can resolve a conflict.
                    let conflict = conflict.filter(|_| failure == Failure::NotAvailable);
                    return Err(conflict.unwrap_or(fault));
                }
            }
        }
        Err(Fault::new(
            Code::NoPackagesConfigured,
            format!("no packages are configured for {}", self.manager),
        ))
    }

    /// Refreshes the lists of packages; `false` when that was done before or is not supported.
    async fn refresh(&mut self) -> Result<bool, Fault> {
        let call = packages::refresh(self.manager, self.lock_timeout());
        let Some(call) = call.filter(|_| !self.refreshed) else { return Ok(false) };
        self.refreshed = true;
        let end = self.call(call).await?;
        // After any other failure the existing lists may do: one broken repository of many is no reason to stop.
        if packages::failure(self.manager, &end) == Some(Failure::Locked) {
            return Err(self.fault(&[], Failure::Locked, &end));
        }
        self.trouble = packages::list_trouble(&end);
        Ok(true)
    }

    /// Finishes an interrupted installation; `false` when that was tried before or cannot be done. The
    /// next installation shows whether it helped.
    async fn mend(&mut self) -> Result<bool, Fault> {
        let calls = packages::mend(self.manager, self.lock_timeout());
        if self.mended || calls.is_empty() {
            return Ok(false);
        }
        self.mended = true;
        for call in calls {
            self.call(call).await?;
        }
        // Checked only now: packages that another package manager was unpacking a moment ago are complete by now.
        let broken = self.wanted_anew().await?;
        if let Some(call) = packages::unpack_anew(&broken, self.lock_timeout()) {
            self.call(call).await?;
        }
        Ok(true)
    }

    async fn wanted_anew(&self) -> Result<Vec<String>, Fault> {
        let root = self.root.clone();
        match self.manager {
            PackageManager::Apt => blocking(move || dpkg::wanted_anew(&root)).await,
            _ => Ok(Vec::new()),
        }
    }

    fn lock_timeout(&self) -> u64 {
        self.policy.lock_timeout.as_secs()
    }

    /// Runs a command, and again while another package manager holds a lock: package managers do not wait
    /// for every lock themselves.
    async fn call(&self, call: Invocation) -> Result<RunEnd, Fault> {
        loop {
            let mut end = self.call_once(call.clone()).await?;
            let locked = packages::failure(self.manager, &end) == Some(Failure::Locked);
            if !locked {
                return Ok(end);
            }
            if Instant::now() + LOCK_PAUSE >= self.lock_deadline {
                // apt does not always print the holder.
                let root = self.root.clone();
                if let Some(holder) = blocking(move || dpkg::lock_holder(&root)).await? {
                    end.output.push_str(&format!("\nthe lock is held by {holder}\n"));
                }
                return Ok(end);
            }
            sleep(LOCK_PAUSE).await;
        }
    }

    async fn call_once(&self, call: Invocation) -> Result<RunEnd, Fault> {
        let program = call.program.clone();
        let (sender, mut lines) = mpsc::channel(256);
        let within = self.deadline.saturating_duration_since(Instant::now());
        let run = self.spawner.run(RunRequest { invocation: call, within, lines: sender });
        tokio::pin!(run);
        let end = loop {
            tokio::select! {
                // Cancel-safe: a line that was not received stays in the channel.
                Some(text) = lines.recv() => (self.line)(text),
                // Not cancelled here: the loop ends with it.
                end = &mut run => break end,
            }
        };
        while let Ok(text) = lines.try_recv() {
            (self.line)(text);
        }
        let end = end.map_err(|e| Fault::new(Code::PackageManagerFailed, chain(&e)))?;
        if end.timed_out {
            return Err(Fault::new(
                Code::PackageManagerTimeout,
                format!(
                    "{program} was not done within {:?} (engine.install_timeout) and was left running, for a \
                     package manager must not be cut off: see {}, then {}",
                    self.policy.install_timeout,
                    end.log.display(),
                    self.subject.again()
                ),
            ));
        }
        Ok(end)
    }

    fn fault(&self, tried: &[Vec<String>], failure: Failure, end: &RunEnd) -> Fault {
        let tried: Vec<String> = tried.iter().map(|set| set.join(" ")).collect();
        let what = match tried.is_empty() {
            true => "fetch its lists of packages".to_string(),
            false => format!("install {}", tried.join(", nor ")),
        };
        let mut reason = packages::reason_lines(&end.output);
        let removed = packages::would_remove(&end.output);
        if failure == Failure::Conflict && !removed.is_empty() {
            reason += &format!(" It would take away {}", removed.join(", "));
        }
        // A package whose list could not be fetched, or is not trusted, counts as not available.
        let trouble = self.trouble.clone().or_else(|| packages::list_trouble(end));
        let (failure, reason) = match (failure, trouble) {
            (Failure::NotAvailable, Some((cause, lines))) if reason.contains(&lines) => {
                (cause, reason)
            }
            (Failure::NotAvailable, Some((cause, lines))) => {
                (cause, format!("{reason}; before that: {lines}"))
            }
            _ => (failure, reason),
        };
        let (code, advice) = self.subject.advice(failure);
        Fault::new(
            code,
            format!(
                "{} could not {what} (exit code {}): {reason}; {advice} (all of it: {})",
                self.manager,
                end.code.map_or("none".to_string(), |code| code.to_string()),
                end.log.display()
            ),
        )
    }
}

impl InstallSubject {
    /// Call that begins the installation again.
    fn again(self) -> &'static str {
        match self {
            InstallSubject::Engine => "prepare again",
            InstallSubject::StorageClient => "call again",
        }
    }

    /// Maps a failure to its stable code and a remedy.
    fn advice(self, failure: Failure) -> (Code, String) {
        let (code, remedy) = match (failure, self) {
            (Failure::Locked, _) => {
                (Code::PackageManagerLocked, "wait until the other package manager is done")
            }
            (Failure::Interrupted, _) => (
                Code::PackageManagerInterrupted,
                "an earlier run was cut off and could not be finished: run `dpkg --configure -a` and \
                 `apt-get --fix-broken install`",
            ),
            (Failure::DiskFull, _) => (Code::DiskFull, "free space"),
            (Failure::NotAvailable, InstallSubject::Engine) => (
                Code::PackagesNotAvailable,
                "add the repository that has them, or set engine.packages and engine.install_args",
            ),
            (Failure::NotAvailable, InstallSubject::StorageClient) => (
                Code::PackagesNotAvailable,
                "add the repository that has them (the call names those that are used), or install them by hand",
            ),
            (Failure::Conflict, InstallSubject::Engine) => (
                Code::PackagesConflict,
                "what is installed stays: name packages in engine.packages that go with it (Debian's docker.io \
                 shares containerd and runc), or take away what is in their way",
            ),
            (Failure::Conflict, InstallSubject::StorageClient) => (
                Code::PackagesConflict,
                "what is installed stays: take away what is in their way, or install them by hand",
            ),
            (Failure::Fetch, _) => (
                Code::PackagesNotFetched,
                "see whether this node resolves and reaches the mirror (DNS, route, firewall, proxy), and whether that \
                 has what was asked for",
            ),
            (Failure::Dates, _) => (
                Code::PackagesNotFetched,
                "see whether the node's clock is right (`date`, `timedatectl`); if it is, name a mirror that is kept up \
                 to date",
            ),
            (Failure::Untrusted, _) => (
                Code::PackagesNotTrusted,
                "install the key of the repository (`signed-by` for apt, `gpgkey` for dnf and yum, `rpm --import` for \
                 zypper), or take the repository away",
            ),
            (Failure::Other, _) => (Code::PackageManagerFailed, "see its log"),
        };
        (code, format!("{remedy}, then {}", self.again()))
    }
}
