//! Programs that are asked something: they change nothing, so that they can be killed at any time. Their output comes
//! over pipes and is bounded.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::{Invocation, command, spawn_error};
use crate::host::HostError;

/// Bytes that are kept of a program's output, and of its error output: the last ones.
const MOST_OUTPUT: usize = 8 * 1024;

/// Exit and output of a program that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryEnd {
    /// Exit code of the program; `None` when a signal ended it, as at the time limit.
    pub code: Option<i32>,
    /// Last part of its output, and then that of its error output; at most 8 KiB each.
    pub output: String,
    /// Set if the program was killed at the time limit.
    pub timed_out: bool,
}

/// Runs a program until it exits and its output ends, or until its time limit.
pub(super) async fn ask(invocation: Invocation, within: Duration) -> Result<QueryEnd, HostError> {
    let deadline = Instant::now() + within;
    let mut child = started(invocation).await?;
    // Its process group: the program leads a session of its own.
    let group = child.id();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let ended = timeout_at(deadline, async {
        let (ended, (), ()) = tokio::join!(
            child.wait(),
            keep_tail(stdout, &mut output),
            keep_tail(stderr, &mut errors)
        );
        ended
    });
    let (code, timed_out) = match ended.await {
        Ok(ended) => (ended.ok().and_then(|status| status.code()), false),
        Err(_) => {
            kill_all(group);
            // The kernel may keep a process for as long as a disk hangs.
            let _ = child.wait().await;
            (None, true)
        }
    };
    output.append(&mut errors);
    Ok(QueryEnd { code, output: String::from_utf8_lossy(&output).into_owned(), timed_out })
}

/// Starts the program from a blocking thread: the fork copies the agent's page tables, and the exec may wait for a disk.
/// The program is killed when nobody waits for it any more.
async fn started(invocation: Invocation) -> Result<Child, HostError> {
    let broken_off = spawn_error(&invocation);
    let start = move || {
        let mut command = command(&invocation);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().map_err(spawn_error(&invocation))
    };
    match spawn_blocking(start).await {
        Ok(started) => started,
        Err(error) => Err(broken_off(std::io::Error::other(error))),
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

/// Kills the program with all that it started.
fn kill_all(group: Option<u32>) {
    let group = group.and_then(|pid| i32::try_from(pid).ok());
    if let Some(group) = group {
        // None of them may be left.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}
