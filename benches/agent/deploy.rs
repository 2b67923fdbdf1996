//! Deploying a target, until it serves, against a bare `docker run` of the same container until its control
//! socket answers the same.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::agent::{Agent, EngineUse};
use crate::figures::{Samples, print_ratio};
use crate::target::{NAME, Raw, Target};

const ROUNDS: usize = 25;
const WARM_UP: usize = 2;
/// Between two questions to a target that starts, as the agent asks.
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("deploying a target whose image is there");
    if engine == EngineUse::LeftAlone {
        println!("  SKIPPED: it is measured with a real engine, and there is none to be had here");
        return Ok(());
    }
    let (agent, _) = Agent::start(engine)?;
    let mut target = Target::deploy(&agent)?;
    let same = docker_run()?;
    target.delete()?;
    let (mut figure, mut floor) = <(Samples, Samples)>::default();
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            (figure, floor) = Default::default();
        }
        figure.time(|| target.put())?;
        target.delete()?;
        floor.time(|| run_and_await(&same))?;
        docker(&["rm", "-f", NAME])?;
    }
    figure.print("a deploy");
    floor.print("floor: docker run, until it answers");
    print_ratio("a deploy", &figure, &floor, 1.05);
    Ok(())
}

/// `docker run` with what makes the same container as the agent has made.
fn docker_run() -> Result<Vec<String>> {
    let seen: Value = serde_json::from_str(&docker(&["inspect", NAME])?)?;
    let seen = seen.get(0).context("no container")?;
    let text = |pointer: &str| seen.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let list = |pointer: &str| -> Vec<String> {
        let items = seen.pointer(pointer).and_then(Value::as_array);
        let items = items.into_iter().flatten().filter_map(Value::as_str);
        items.map(str::to_string).collect()
    };
    let mut args = vec!["run".to_string(), "-d".into(), "--network".into(), "host".into()];
    let mut option = |name: &str, value: &str| args.extend([name.to_string(), value.to_string()]);
    option("--name", NAME);
    option("--cpuset-cpus", text("/HostConfig/CpusetCpus"));
    option("--cpuset-mems", text("/HostConfig/CpusetMems"));
    list("/HostConfig/CapDrop").iter().for_each(|cap| option("--cap-drop", cap));
    list("/HostConfig/CapAdd").iter().for_each(|cap| option("--cap-add", cap));
    list("/HostConfig/Binds").iter().for_each(|bind| option("-v", bind));
    args.push(text("/Config/Image").to_string());
    args.extend(list("/Config/Cmd"));
    Ok(args)
}

fn run_and_await(args: &[String]) -> Result<()> {
    docker(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    await_answer()
}

/// Waits for a target that starts, as the agent does.
pub(crate) fn await_answer() -> Result<()> {
    let began = Instant::now();
    loop {
        let answers = || {
            let mut raw = Raw::connect()?;
            for method in ["framework_wait_init", "framework_get_reactors", "spdk_get_version"] {
                raw.call(method)?;
            }
            anyhow::Ok(())
        };
        match answers() {
            Ok(()) => return Ok(()),
            Err(e) if began.elapsed() > Duration::from_secs(20) => return Err(e),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

pub(crate) fn docker(args: &[&str]) -> Result<String> {
    let done = Command::new("docker").args(args).output().context("docker")?;
    if !done.status.success() {
        bail!("docker {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8(done.stdout)?)
}
