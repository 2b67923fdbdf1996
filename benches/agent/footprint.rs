//! How soon the agent answers after its start, and what it holds after many calls.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent::{Agent, EngineUse};
use crate::figures::{Samples, millis, print_aim};

const STARTS: usize = 40;
const CALLS: usize = 10_000;
/// Every so many calls comes over a new connection.
const CALLS_PER_CONNECTION: usize = 100;

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("footprint, engine {engine:?}");
    let mut starts = Samples::default();
    for _ in 0..STARTS {
        let (agent, took) = Agent::start(engine)?;
        starts.push(took);
        drop(agent);
    }
    starts.print("start to the first answer");
    let slowest = starts.quantile(1.0);
    print_aim("slowest start", &millis(slowest), "< 50 ms", slowest.as_millis() < 50);

    let (agent, _) = Agent::start(engine)?;
    Held::by(agent.pid())?.print("after the start");
    // The first round connects to the engine, and that connection is kept.
    call_often(&agent)?;
    let before = Held::by(agent.pid())?;
    before.print(&format!("after {CALLS_PER_CONNECTION} calls"));
    for _ in 1..CALLS / CALLS_PER_CONNECTION {
        call_often(&agent)?;
    }
    let after = Held::by(agent.pid())?;
    after.print(&format!("after {CALLS} calls"));
    let mib = after.rss_kib as f64 / 1024.0;
    print_aim("resident after the calls", &format!("{mib:.1} MiB"), "< 15 MiB", mib < 15.0);
    let fds = format!("{} -> {}", before.fds, after.fds);
    print_aim("open files", &fds, "no more than before", after.fds <= before.fds);
    Ok(())
}

/// Calls of each kind over a connection of their own.
fn call_often(agent: &Agent) -> Result<()> {
    let mut connection = agent.connect()?;
    for call in 0..CALLS_PER_CONNECTION {
        match call % 4 {
            0 => connection.get_done("GET", "/healthz", "")?,
            1 => connection.get_done("GET", "/v1/node", "")?,
            2 => connection.get_done("POST", "/v1/prepare", r#"{"hugepages":[]}"#)?,
            _ => connection.get_done("POST", "/host/ping", "{}")?,
        };
    }
    Ok(())
}

/// What a process holds.
pub(crate) struct Held {
    pub(crate) rss_kib: u64,
    anonymous_kib: u64,
    peak_kib: u64,
    threads: u64,
    fds: usize,
}

impl Held {
    pub(crate) fn by(pid: u32) -> Result<Held> {
        // The end of the last connection has to be seen on the other side too.
        std::thread::sleep(Duration::from_millis(50));
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).with_context(|| format!("no {key}"))
        };
        Ok(Held {
            rss_kib: number("VmRSS:")?,
            anonymous_kib: number("RssAnon:")?,
            peak_kib: number("VmHWM:")?,
            threads: number("Threads:")?,
            fds: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        })
    }

    pub(crate) fn print(&self, when: &str) {
        println!(
            "  {when:<34} RSS {} KiB (anonymous {} KiB, peak {} KiB), {} threads, {} open files",
            self.rss_kib, self.anonymous_kib, self.peak_kib, self.threads, self.fds
        );
    }
}
