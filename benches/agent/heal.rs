//! From the death of a target's process until all of its volumes serve again, part by part, against a bare
//! start of the same container through the engine and the same requests raw; and what the agent holds with
//! many volumes after many of that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::agent::{Agent, ENGINE_SOCKET, EngineUse};
use crate::deploy::{await_answer, docker};
use crate::figures::{Samples, millis, print_aim, print_comparison};
use crate::footprint::Held;
use crate::http::Connection;
use crate::target::{NAME, Target};
use crate::volumes::{Kind, MEMORY_MIB, PATH, all_serve, list, make_raw};

/// Volumes, and how many deaths of a target with so many.
const COUNTS: [(usize, usize); 3] = [(1, 15), (100, 11), (1000, 9)];
/// Deaths in a row of a target that has the most, for what the agent holds afterwards.
const DEATHS: usize = 8;
/// More than any part takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The parts; a part ends with the last of its steps.
const PARTS: [&str; 4] = [
    "  notice, until the event",
    "  engine, until it is started",
    "  target, until it answers",
    "  rebuild, until all serve",
];

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("from a target's death until its volumes serve again");
    if engine == EngineUse::LeftAlone {
        println!("  SKIPPED: it is measured with a real engine, and there is none to be had here");
        return Ok(());
    }
    for (count, rounds) in COUNTS {
        measure(count, rounds)?;
    }
    memory()
}

fn measure(count: usize, rounds: usize) -> Result<()> {
    let (mut whole, mut floor, mut noticed) = <(Samples, Samples, Samples)>::default();
    let mut both = Samples::default();
    let mut parts: [Samples; 4] = Default::default();
    for round in 0..=rounds {
        let (agent, _) = Agent::start(EngineUse::FallsForgotten)?;
        let mut target = Target::deploy_with(&agent, MEMORY_MIB)?;
        let put = agent.connect()?.get_done("PUT", PATH, &list(Kind::Malloc, count))?;
        all_serve(&put.body, count)?;
        let course = fall(&agent, &mut target, count)?;
        let pid = target.pid()?;
        target.leave();
        // From here on nobody looks after it.
        drop(agent);
        let (exit, start) = bare(pid, count)?;
        // The first of each is not counted: caches are cold.
        if round > 0 {
            whole.push(course.iter().sum());
            parts.iter_mut().zip(course).for_each(|(part, took)| part.push(took));
            noticed.push(exit);
            floor.push(start);
            both.push(exit + start);
        }
    }
    docker(&["rm", "-f", NAME])?;
    println!("  {count} volumes");
    whole.print("SIGKILL until all serve");
    PARTS.iter().zip(&parts).for_each(|(name, part)| part.print(name));
    floor.print("floor: a bare start and raw requests");
    noticed.print("before it: the engine sees the end");
    print_comparison("until all serve", &whole, &floor);
    // Nothing starts a container whose end the engine has not seen.
    print_comparison("until all serve, with that", &whole, &both);
    let most = floor.median().mul_f64(1.05) + Duration::from_millis(50);
    let aim = format!("<= {}: the floor, 5 % and 50 ms", millis(most));
    print_aim("p50", &millis(whole.median()), &aim, whole.median() <= most);
    Ok(())
}

/// Kills the target's process and returns how long each part took until all serve again.
fn fall(agent: &Agent, target: &mut Target, count: usize) -> Result<[Duration; 4]> {
    let mut http = agent.connect()?;
    let before = Status::get(&mut http, None)?;
    let pid = Pid::from_raw(target.pid()?);
    let events = follow(agent)?;
    let began = Instant::now();
    kill(pid, Signal::SIGKILL)?;
    let mut status = before.clone();
    while status.restarts == before.restarts || !status.serves || status.serving < count {
        status = Status::get(&mut http, Some(&status.generation))?;
        if began.elapsed() > PATIENCE {
            bail!("not all serve again within {PATIENCE:?}: {status:?}");
        }
    }
    let served = Instant::now();
    let failed = r#""state":"failed""#;
    let (mut notice, mut engine, mut answer) = (None, None, None);
    // The last of them may still be on its way.
    while (notice.is_none() || engine.is_none() || answer.is_none())
        && let Ok((at, line)) = events.recv_timeout(PATIENCE)
    {
        let ended = |step: &str| {
            line.contains(r#""kind":"ended""#) && line.contains(&format!(r#""step":"{step}""#))
        };
        if notice.is_none() && line.contains(r#""type":"target""#) && line.contains(failed) {
            notice = Some(at);
        } else if ended("startContainer") {
            engine = Some(at);
        } else if ended("awaitTarget") {
            answer = Some(at);
        }
    }
    let notice = notice.context("no event that it has failed")?;
    let engine = engine.context("no event of its container's start")?;
    let answer = answer.context("no event of its answer")?;
    Ok([notice - began, engine - notice, answer - engine, served.saturating_duration_since(answer)])
}

/// How the target stands, as the agent publishes it.
#[derive(Debug, Clone)]
struct Status {
    generation: String,
    restarts: u64,
    serves: bool,
    serving: usize,
}

impl Status {
    /// The newest, or the next one after a generation.
    fn get(http: &mut Connection<TcpStream>, after: Option<&str>) -> Result<Status> {
        let query = after.map_or(String::new(), |after| format!("?after={after}&timeoutMs=1000"));
        let body = http.get_done("GET", &format!("/v1/status{query}"), "")?.body;
        let report: Value = serde_json::from_slice(&body)?;
        let number = |at: &str| report.pointer(at).and_then(Value::as_u64).context(at.to_string());
        Ok(Status {
            generation: number("/generation")?.to_string(),
            restarts: number("/targets/0/restarts")?,
            serves: report.pointer("/targets/0/state").is_some_and(|state| state == "serving"),
            serving: usize::try_from(number("/targets/0/serving")?)?,
        })
    }
}

/// The agent's events, each with the moment in which it came.
fn follow(agent: &Agent) -> Result<Receiver<(Instant, String)>> {
    let mut stream = TcpStream::connect(agent.address())?;
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let mut events = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("following") {
        line.clear();
        if events.read_line(&mut line)? == 0 {
            bail!("the events have ended");
        }
    }
    let (tells, told) = channel();
    // Ends with the agent, or with who listens.
    std::thread::spawn(move || {
        for line in events.lines().map_while(Result::ok) {
            if tells.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    Ok(told)
}

/// The same without the agent: how long the engine takes to see that the process has ended, and how long
/// it takes from there until the volumes are there again.
fn bare(pid: i32, count: usize) -> Result<(Duration, Duration)> {
    let mut ended = UnixStream::connect(ENGINE_SOCKET)?;
    let wait = format!("POST /containers/{NAME}/wait HTTP/1.0\r\nHost: bench\r\n\r\n");
    ended.write_all(wait.as_bytes())?;
    // Its head comes at once, and its body when the container has ended.
    let mut head = [0; 12];
    ended.read_exact(&mut head)?;
    let mut engine = Connection::unix(Path::new(ENGINE_SOCKET))?;
    let began = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    ended.read_to_end(&mut Vec::new())?;
    let noticed = began.elapsed();
    let began = Instant::now();
    let started = engine.ask("POST", &format!("/containers/{NAME}/start"), "")?;
    if started.status != 204 {
        bail!("the engine did not start {NAME}: {}", String::from_utf8_lossy(&started.body));
    }
    await_answer()?;
    make_raw(Kind::Malloc, count)?;
    Ok((noticed, began.elapsed()))
}

/// What the agent holds with the most volumes, after falls and after many questions.
fn memory() -> Result<()> {
    let count = COUNTS.iter().map(|(count, _)| *count).max().unwrap_or_default();
    let (agent, _) = Agent::start(EngineUse::FallsForgotten)?;
    let mut target = Target::deploy_with(&agent, MEMORY_MIB)?;
    println!("  what the agent holds with {count} volumes");
    Held::by(agent.pid())?.print("before");
    let (mut http, body) = (agent.connect()?, list(Kind::Malloc, count));
    all_serve(&http.get_done("PUT", PATH, &body)?.body, count)?;
    Held::by(agent.pid())?.print("after their activation");
    for _ in 0..DEATHS {
        fall(&agent, &mut target, count)?;
    }
    let after = Held::by(agent.pid())?;
    after.print(&format!("after {DEATHS} rebuilds"));
    for _ in 0..20 {
        all_serve(&http.get_done("PUT", PATH, &body)?.body, count)?;
        all_serve(&http.get_done("GET", PATH, "")?.body, count)?;
    }
    Held::by(agent.pid())?.print("after 20 PUTs and GETs of all");
    let mib = after.rss_kib as f64 / 1024.0;
    print_aim("resident after the rebuilds", &format!("{mib:.1} MiB"), "< 24 MiB", mib < 24.0);
    Ok(())
}
