//! The only module that starts processes.
//!
//! Processes started here outlive the agent: a package manager that is killed half-way leaves a machine that only a
//! person can repair, and a daemon must keep running. Each child therefore gets a session of its own, and writes to a
//! log file that the agent follows: a pipe would break when the agent exits. Where systemd is PID 1, it runs the
//! programs that change the whole machine (`host_wide`). Only programs that are asked something end with the agent, or
//! when they take too long (`query`).

mod host_wide;
mod query;

use std::ffi::OsString;
use std::future::Future;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

pub use self::host_wide::HostWide;
pub use self::query::QueryEnd;
use super::HostError;
use super::process::FOLDERS;
use super::watch::PathWatch;
use crate::model::fault::chain;

/// Polling interval of a log where no inotify watch is available.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    pub program: String,
    pub args: Vec<String>,
    /// Variables added to the program's environment.
    pub env: Vec<(String, String)>,
}

/// Request to run a program.
#[derive(Debug)]
pub struct RunRequest {
    pub invocation: Invocation,
    /// Time limit of the run.
    pub within: Duration,
    /// Receiver of each line of output, as it is written.
    pub lines: mpsc::Sender<String>,
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// Exit code of the program; `None` when a signal ended it, or it still runs.
    pub code: Option<i32>,
    /// Last part of the program's output, at most 32 KiB.
    pub output: String,
    /// Path of the log with the whole output.
    pub log: PathBuf,
    /// Set if the program still ran at the time limit; it was left running.
    pub timed_out: bool,
}

/// Starter of processes. A trait, so that tests can fake package managers.
pub trait Spawner: Send + Sync + 'static {
    /// Runs a program until it exits, or until its time limit.
    fn run(&self, run: RunRequest) -> impl Future<Output = Result<RunEnd, HostError>> + Send;

    /// Starts a daemon without waiting for it. Its output goes to the file `log` in the log folder.
    ///
    /// After the daemon's exit, [`Daemon::ended`] returns its exit code and last output.
    fn daemon(
        &self,
        invocation: Invocation,
        log: &str,
    ) -> impl Future<Output = Result<Daemon, HostError>> + Send;

    /// Runs a program that changes nothing and answers. It is killed, with all that it started, when its time limit has
    /// passed; then this returns a moment later, with [`QueryEnd::left`] if it has not ended by then.
    fn query(
        &self,
        invocation: Invocation,
        within: Duration,
    ) -> impl Future<Output = Result<QueryEnd, HostError>> + Send;
}

/// Daemon that was started, with its log.
#[derive(Debug)]
pub struct Daemon {
    life: Life,
    log: PathBuf,
    start: u64,
}

#[derive(Debug)]
enum Life {
    Process(Child),
    /// Faked by a test: the daemon's exit code and last output; `None` if it never exits.
    Played(Option<(Option<i32>, String)>),
}

impl Daemon {
    /// Fake for tests: a daemon that has exited with the exit code and the last output in `end`, or that never exits.
    pub fn played(end: Option<(Option<i32>, String)>, log: &str) -> Daemon {
        Daemon { life: Life::Played(end), log: PathBuf::from(log), start: 0 }
    }

    /// Waits for the daemon's exit; returns its exit code (`None` when a signal ended it) and last output. Cancel-safe.
    pub async fn ended(&mut self) -> (Option<i32>, String) {
        match &mut self.life {
            Life::Process(child) => {
                let code = child.wait().await.ok().and_then(|status: ExitStatus| status.code());
                (code, tail_from(&self.log, self.start).await)
            }
            Life::Played(Some(end)) => end.clone(),
            Life::Played(None) => std::future::pending().await,
        }
    }

    /// Path of the daemon's log.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

/// Spawner of real processes.
#[derive(Debug, Clone)]
pub struct Processes {
    log_dir: PathBuf,
}

impl Processes {
    /// Spawner that writes the output of programs to files in `log_dir`.
    pub fn new(log_dir: impl Into<PathBuf>) -> Processes {
        Processes { log_dir: log_dir.into() }
    }

    async fn open_log(&self, name: &str) -> Result<(PathBuf, std::fs::File, u64), HostError> {
        let path = self.log_dir.join(name);
        fs::create_dir_all(&self.log_dir)
            .await
            .map_err(|source| HostError::MakeFolder { path: self.log_dir.clone(), source })?;
        let open = async {
            let mut options = OpenOptions::new();
            let file = options.create(true).append(true).mode(0o640).open(&path).await?;
            let end = file.metadata().await?.len();
            Ok((file.into_std().await, end))
        };
        let (file, end) = open.await.map_err(|source| HostError::Write {
            path: path.clone(),
            value: "a log".to_string(),
            hint: "",
            source,
        })?;
        Ok((path, file, end))
    }

    /// Opens the log of a run and begins to follow it.
    async fn open_run(
        &self,
        invocation: &Invocation,
        watch: impl FnOnce(&Path) -> Result<PathWatch, HostError>,
    ) -> Result<(Following, std::fs::File), HostError> {
        let name = invocation.program.rsplit('/').next().unwrap_or("command");
        let (log, file, start) = self.open_log(&format!("{name}.log")).await?;
        // Everything that can fail comes before the start of the program, so that no program runs without a reader of
        // its log.
        let follower = Follower::new(&log, start).await?;
        let watch = watch(&log).inspect_err(|e| {
            tracing::debug!("the output of {name} is reported a second late: {}", chain(e));
        });
        Ok((Following { log, start, follower, watch: watch.ok() }, file))
    }

    /// Runs a program like [`Spawner::run`]; `watch` creates the watch on its log.
    async fn run_watched(
        &self,
        RunRequest { invocation, within, lines }: RunRequest,
        watch: impl FnOnce(&Path) -> Result<PathWatch, HostError>,
    ) -> Result<RunEnd, HostError> {
        let deadline = Instant::now() + within;
        let (following, file) = self.open_run(&invocation, watch).await?;
        let mut child = logged(&invocation, file)?.spawn().map_err(spawn_error(&invocation))?;
        // Cancel-safe: wait() keeps its state in the child.
        let ended = async { Ok(child.wait().await.ok().and_then(|status| status.code())) };
        following.until_end(ended, deadline, &lines).await
    }
}

/// Run of a program whose log is followed.
struct Following {
    log: PathBuf,
    start: u64,
    follower: Follower,
    watch: Option<PathWatch>,
}

impl Following {
    /// Forwards lines of the log until `ended` returns the program's exit code, or until `deadline`.
    async fn until_end(
        mut self,
        ended: impl Future<Output = Result<Option<i32>, HostError>>,
        deadline: Instant,
        lines: &mpsc::Sender<String>,
    ) -> Result<RunEnd, HostError> {
        tokio::pin!(ended);
        let ended = loop {
            tokio::select! {
                // `ended` is pinned, and not cancelled when a line comes first.
                ended = timeout_at(deadline, &mut ended) => break ended.ok(),
                // Cancel-safe: an unread event stays in the kernel's queue.
                () = grown(self.watch.as_ref()) => self.follower.pass_on(lines).await,
            }
        };
        self.follower.pass_on(lines).await;
        let (timed_out, code) = (ended.is_none(), ended.transpose()?.flatten());
        let output = tail_from(&self.log, self.start).await;
        Ok(RunEnd { code, output, log: self.log, timed_out })
    }
}

/// Returns when a log may have grown: on an event of `watch`, or after [`LOOK_AGAIN`] without a watch. The whole
/// machine shares the kernel's table of watches, which can be full.
async fn grown(watch: Option<&PathWatch>) {
    if let Some(watch) = watch
        && watch.changed().await.is_ok()
    {
        return;
    }
    sleep(LOOK_AGAIN).await;
}

impl Spawner for Processes {
    async fn run(&self, run: RunRequest) -> Result<RunEnd, HostError> {
        self.run_watched(run, PathWatch::new).await
    }

    async fn daemon(&self, invocation: Invocation, log: &str) -> Result<Daemon, HostError> {
        let (log, file, start) = self.open_log(log).await?;
        let child = logged(&invocation, file)?.spawn().map_err(spawn_error(&invocation))?;
        Ok(Daemon { life: Life::Process(child), log, start })
    }

    async fn query(&self, invocation: Invocation, within: Duration) -> Result<QueryEnd, HostError> {
        query::ask(invocation, within).await
    }
}

fn spawn_error(invocation: &Invocation) -> impl FnOnce(std::io::Error) -> HostError + use<> {
    let program = invocation.program.clone();
    move |source| HostError::Spawn { program, source }
}

/// Command whose output goes to the log `output`.
fn logged(invocation: &Invocation, output: std::fs::File) -> Result<Command, HostError> {
    let errors = output.try_clone().map_err(spawn_error(invocation))?;
    let mut command = command(invocation);
    command.stdout(output).stderr(errors);
    Ok(command)
}

fn command(invocation: &Invocation) -> Command {
    let mut command = Command::new(&invocation.program);
    command
        .args(invocation.args.iter().map(OsString::from))
        // The agent's own PATH may be shorter. After a plain su(1) it lacks the sbin folders, and dpkg refuses to work
        // without them.
        .env("PATH", FOLDERS.join(":"))
        .envs(invocation.env.iter().cloned())
        // Variables of systemd's readiness and watchdog protocol are for the agent only.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .current_dir("/")
        .kill_on_drop(false);
    in_own_session(&mut command);
    command
}

/// Gives the child a session of its own: neither the hang-up of a terminal nor a signal to the agent's process group
/// ends it then.
#[allow(unsafe_code)]
fn in_own_session(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; setsid(2) is one, and
    // the closure does nothing else. The standard library has no safe way to ask for it.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
}

/// Reader of the new lines of a log.
struct Follower {
    file: File,
    partial: String,
}

impl Follower {
    async fn new(path: &Path, start: u64) -> Result<Follower, HostError> {
        let read = |source| HostError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).await.map_err(read)?;
        file.seek(SeekFrom::Start(start)).await.map_err(read)?;
        Ok(Follower { file, partial: String::new() })
    }

    /// Forwards the complete lines since the last call. A receiver that is too slow loses lines; the log file keeps
    /// them.
    async fn pass_on(&mut self, lines: &mpsc::Sender<String>) {
        let mut bytes = Vec::new();
        // After a failed read, the rest is read at the next event.
        let _ = self.file.read_to_end(&mut bytes).await;
        self.partial.push_str(&String::from_utf8_lossy(&bytes));
        while let Some(end) = self.partial.find(['\n', '\r']) {
            let line: String = self.partial.drain(..=end).collect();
            if !line.trim().is_empty() {
                let _ = lines.try_send(line.trim_end().to_string());
            }
        }
    }
}

/// Last part of the text added to a log after the offset `start`, at most 32 KiB.
async fn tail_from(path: &Path, start: u64) -> String {
    const MOST: u64 = 32 * 1024;
    let read = async || -> std::io::Result<String> {
        let mut file = File::open(path).await?;
        let end = file.metadata().await?.len();
        // A log shorter than `start` was rotated meanwhile: all of its text is new.
        let start = if start > end { 0 } else { start };
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(MOST)))).await?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().await.unwrap_or_default()
}

#[cfg(test)]
#[path = "spawn_tests.rs"]
mod tests;
