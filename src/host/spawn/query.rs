//! Programs that are asked something: they change nothing, so that they can be killed at any time. Their output comes
//! over pipes and is bounded, and no wait for them lasts much longer than their time limit.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, write};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Invocation, command, spawn_error};
use crate::host::process::find_executable;
use crate::host::{HostError, Root};

/// Bytes that are kept of a program's output, and of its error output: the last ones.
const MOST_OUTPUT: usize = 8 * 1024;
/// Time for a killed program to be reaped before its caller is answered.
const REAPED: Duration = Duration::from_secs(1);
/// Time for the rest of the output once the program has exited.
const REST: Duration = Duration::from_millis(500);
/// Time by which the limit of timeout(1) is behind that of the agent.
const LATER: Duration = Duration::from_secs(5);
/// Score by which the kernel chooses what it ends where memory is short, as text; the agent's unit has -900.
const OOM_SCORE: &[u8] = b"500";

/// Exit and output of a program that was asked.
#[derive(Debug, Default)]
pub struct QueryEnd {
    /// Exit code of the program; `None` when a signal ended it, as at the time limit.
    pub code: Option<i32>,
    /// Last part of its output, and then that of its error output; at most 8 KiB each.
    pub output: String,
    /// Set if the program was killed at the time limit.
    pub timed_out: bool,
    /// Task that ends with the program, where the kernel did not let go of it a moment after the kill.
    pub left: Option<JoinHandle<()>>,
}

/// Runs a program until it exits, or until its time limit. The kernel may keep a process for as long as a disk hangs:
/// then a task of its own reaps it, and this returns.
pub(super) async fn ask(invocation: Invocation, within: Duration) -> Result<QueryEnd, HostError> {
    let deadline = Instant::now() + within;
    let broken_off = spawn_error(&invocation);
    let mut starting = spawn_blocking(move || started(&invocation, within));
    let mut child = match timeout_at(deadline, &mut starting).await {
        Ok(Ok(started)) => started?,
        Ok(Err(error)) => return Err(broken_off(std::io::Error::other(error))),
        Err(_) => {
            let left = tokio::spawn(async move {
                if let Ok(Ok(child)) = starting.await
                    && let Some(left) = killed(child).await
                {
                    let _ = left.await;
                }
            });
            return Ok(QueryEnd { timed_out: true, left: Some(left), ..QueryEnd::default() });
        }
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let exited = {
        let read = async {
            tokio::join!(keep_tail(stdout, &mut output), keep_tail(stderr, &mut errors));
        };
        tokio::pin!(read);
        let exited = timeout_at(deadline, async {
            tokio::select! {
                // Cancel-safe: the child keeps its exit, and `read` goes on below.
                ended = child.wait() => (ended, false),
                () = &mut read => (child.wait().await, true),
            }
        });
        let exited = exited.await;
        if let Ok((_, false)) = exited {
            // What the program has left running may hold the pipes open for ever.
            let _ = timeout(REST, read).await;
        }
        exited
    };
    let (code, left) = match &exited {
        Ok((ended, _)) => (ended.as_ref().ok().and_then(ExitStatus::code), None),
        Err(_) => (None, killed(child).await),
    };
    output.append(&mut errors);
    let output = String::from_utf8_lossy(&output).into_owned();
    Ok(QueryEnd { code, output, timed_out: exited.is_err(), left })
}

/// Starts the program; blocks, for the fork copies the agent's page tables, and the exec may wait for a disk. The program
/// is killed when nobody waits for it any more; where the node has timeout(1) also without the agent, which may be killed
/// itself.
fn started(invocation: &Invocation, within: Duration) -> Result<Child, HostError> {
    let mut command = command(&limited(invocation, within));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    dies_first(&mut command);
    command.spawn().map_err(spawn_error(invocation))
}

/// Returns the program behind timeout(1), with a limit that the agent's own comes before; as it is where one of the two
/// is not there.
fn limited(invocation: &Invocation, within: Duration) -> Invocation {
    let root = Root::new("/");
    let there = find_executable(&root, &invocation.program).is_some();
    let Some(program) = find_executable(&root, "timeout").filter(|_| there) else {
        return invocation.clone();
    };
    let seconds = (within + LATER).as_secs().to_string();
    let words = ["-s".to_string(), "KILL".to_string(), seconds, invocation.program.clone()];
    let args = words.into_iter().chain(invocation.args.iter().cloned()).collect();
    Invocation { program, args, env: invocation.env.clone() }
}

/// Has the kernel end the program before the agent, whose protection it would inherit, where memory is short
/// (proc_pid_oom_score_adj(5)).
#[allow(unsafe_code)]
fn dies_first(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; open(2), write(2) and close(2) are, and
    // neither the C string nor the closure allocates.
    unsafe {
        command.pre_exec(|| {
            // Without the file the program runs all the same.
            if let Ok(file) = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY, Mode::empty()) {
                let _ = write(&file, OOM_SCORE);
            }
            Ok(())
        });
    }
}

/// Kills the program with all that it started, and waits for its end for a moment. Returns the task that goes on waiting
/// where it has not ended by then.
async fn killed(mut child: Child) -> Option<JoinHandle<()>> {
    // Without an id the program was reaped already, and the number may be another group's.
    if let Some(group) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // None of them may be left.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    match timeout(REAPED, child.wait()).await {
        Ok(_) => None,
        Err(_) => Some(tokio::spawn(async move { drop(child.wait().await) })),
    }
}

/// Reads to the end, and keeps the last part of it in `kept`.
async fn keep_tail(reader: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut reader) = reader else { return };
    // What comes after a failed read is lost, and the program's exit code still counts.
    while let Ok(1..) = reader.read_buf(kept).await {
        let over = kept.len().saturating_sub(MOST_OUTPUT);
        kept.drain(..over);
    }
}
