//! Health through HTTP: one call after the other, and many at once, against one raw `spdk_get_version` on
//! the same control socket and against a bare hyper server; forks and CPU time of a call; and the time
//! from the death of a target's process to the event that tells it.

use std::convert::Infallible;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::{Agent, EngineUse};
use crate::figures::{Samples, millis, print_aim, print_comparison};
use crate::http::Connection;
use crate::machine::cpu_time;
use crate::target::{NAME, Raw, Target};

const ROUNDS: usize = 3000;
const WARM_UP: usize = 200;
/// Calls at once.
const AT_ONCE: [usize; 3] = [1, 50, 200];
/// Rounds of so many calls.
const ROUNDS_AT_ONCE: usize = 200;
/// Deaths of a target.
const DEATHS: usize = 60;

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("health of a target, through HTTP");
    if engine == EngineUse::LeftAlone {
        println!("  SKIPPED: it is measured with a real engine, and there is none to be had here");
        return Ok(());
    }
    let path = format!("/v1/targets/{NAME}/health");
    let echo = echo()?;
    let (agent, _) = Agent::start(engine)?;
    let mut target = Target::deploy(&agent)?;
    one_after_the_other(&agent, &path)?;
    for count in AT_ONCE {
        at_once(&agent, &path, echo, count)?;
    }
    deaths(&agent, &mut target)?;
    drop(target);
    drop(agent);
    let (agent, _) = Agent::start(EngineUse::LiveHealth)?;
    let _target = Target::deploy(&agent)?;
    println!("  a live answer each time (health.max_age = \"0s\")");
    one_after_the_other(&agent, &path)
}

fn one_after_the_other(agent: &Agent, path: &str) -> Result<()> {
    let (mut call, mut raw) = (agent.connect()?, Raw::connect()?);
    let (mut figure, mut floor) = <(Samples, Samples)>::default();
    let (mut cpu, mut forks) = (Duration::ZERO, 0);
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            (figure, floor) = Default::default();
            (cpu, forks) = (cpu_time(agent.pid())?, processes()?);
        }
        let answer = figure.time(|| call.get_done("GET", path, ""))?;
        serving(&answer.body)?;
        floor.time(|| raw.call("spdk_get_version"))?;
    }
    let (cpu, forks) = (cpu_time(agent.pid())? - cpu, processes()? - forks);
    figure.print("a call");
    floor.print("floor: one raw spdk_get_version");
    print_comparison("a call", &figure, &floor);
    #[allow(clippy::cast_possible_truncation)]
    let each = cpu / ROUNDS as u32;
    println!(
        "  {:<34} {:.1} us of CPU time of the agent, its watching included",
        "each call",
        each.as_secs_f64() * 1e6
    );
    println!("  {:<34} {forks} on the whole machine in {ROUNDS} calls", "forks");
    Ok(())
}

/// A round sends `count` calls on as many connections and waits for all answers.
fn at_once(agent: &Agent, path: &str, echo: SocketAddr, count: usize) -> Result<()> {
    let connect =
        |to: SocketAddr| (0..count).map(|_| Connection::tcp(to)).collect::<Result<Vec<_>>>();
    let (mut calls, mut echoes) = (connect(agent.address())?, connect(echo)?);
    let (mut figure, mut floor) = <(Samples, Samples)>::default();
    for round in 0..10 + ROUNDS_AT_ONCE {
        if round == 10 {
            (figure, floor) = Default::default();
        }
        for (samples, connections) in [(&mut figure, &mut calls), (&mut floor, &mut echoes)] {
            let began = Instant::now();
            for connection in connections.iter_mut() {
                connection.send("GET", path, "")?;
            }
            for connection in connections.iter_mut() {
                let answer = connection.receive()?;
                if answer.status != 200 {
                    bail!("{path}: {}", answer.status);
                }
            }
            samples.push(began.elapsed());
        }
    }
    figure.print(&format!("{count} calls at once, until the last"));
    floor.print("floor: a bare hyper server");
    print_comparison(&format!("{count} at once"), &figure, &floor);
    Ok(())
}

/// From SIGKILL of the target's process to the event that says that it has failed.
fn deaths(agent: &Agent, target: &mut Target) -> Result<()> {
    let mut events = follow(agent)?;
    let mut figure = Samples::default();
    for _ in 0..DEATHS {
        let pid = Pid::from_raw(target.pid()?);
        let began = Instant::now();
        kill(pid, Signal::SIGKILL)?;
        await_state(&mut events, "failed")?;
        figure.push(began.elapsed());
        target.put()?;
        await_state(&mut events, "serving")?;
    }
    figure.print("SIGKILL to the event");
    let p99 = figure.quantile(0.99);
    print_aim("p99", &millis(p99), "< 10 ms", p99 < Duration::from_millis(10));
    Ok(())
}

fn follow(agent: &Agent) -> Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(agent.address())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let mut events = BufReader::new(stream);
    await_line(&mut events, |line| line.contains("following"))?;
    Ok(events)
}

fn await_state(events: &mut BufReader<TcpStream>, state: &str) -> Result<()> {
    let wanted = format!(r#""state":"{state}""#);
    await_line(events, |line| line.contains(r#""type":"target""#) && line.contains(&wanted))
}

fn await_line(events: &mut BufReader<TcpStream>, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut line = String::new();
    while !wanted(&line) {
        line.clear();
        if events.read_line(&mut line)? == 0 {
            bail!("the events have ended");
        }
    }
    Ok(())
}

fn serving(body: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(body)?;
    match text.contains(r#""state":"serving""#) {
        true => Ok(()),
        false => bail!("it does not serve: {text}"),
    }
}

/// A hyper server that answers what a health call is answered with, on a thread of its own.
fn echo() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let answer = service_fn(async |_| {
                    let body = Full::new(Bytes::from_static(&[b'x'; 256]));
                    Ok::<_, Infallible>(hyper::Response::new(body))
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(async move {
                    let _ = http.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
    });
    Ok(address)
}

/// Processes and threads that were ever made on this machine.
fn processes() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("processes "));
    Ok(line.context("no processes in /proc/stat")?.trim().parse()?)
}
