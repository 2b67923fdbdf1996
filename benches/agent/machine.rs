//! Which CPU a process runs on, the time it has had there, and the most memory it has held.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Who runs where, so that neither side takes the other's time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seats {
    pub(crate) server: usize,
    pub(crate) clients: usize,
}

impl Seats {
    /// The first CPU that this process may use for the clients, the last one for who is measured.
    pub(crate) fn find() -> Result<Seats> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut all = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let clients = all.next().context("no CPU to run on")?;
        Ok(Seats { server: all.next_back().unwrap_or(clients), clients })
    }

    pub(crate) fn print(self) {
        match self.server == self.clients {
            true => {
                println!("  all on CPU {}, for there is no other: the figures mix", self.server)
            }
            false => println!(
                "  who is measured on CPU {}, its callers and everybody played on CPU {}",
                self.server, self.clients
            ),
        }
    }
}

/// Keeps all threads of a process on one CPU; those that they begin later stay there too.
pub(crate) fn pin(pid: u32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    move_to(pid, &set)
}

/// This process stays on one CPU until this is dropped.
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    pub(crate) fn here(cpu: usize) -> Result<Pinned> {
        let before = sched_getaffinity(Pid::from_raw(0))?;
        pin(std::process::id(), cpu)?;
        Ok(Pinned(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = move_to(std::process::id(), &self.0);
    }
}

fn move_to(pid: u32, set: &CpuSet) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(task), set).context("sched_setaffinity")?;
    }
    Ok(())
}

/// The time that all threads of a process, also those that are gone, have been on a CPU.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))?;
    Ok(clock.now()?.into())
}

/// The same of the calling thread alone.
pub(crate) fn own_cpu_time() -> Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

/// Lets the peak of a process' memory begin anew (proc_pid_clear_refs(5)).
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("clear_refs")
}

/// The most memory that a process has held, in KiB.
pub(crate) fn peak_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// As many files as may be: a thousand callers have a thousand sockets.
pub(crate) fn many_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
