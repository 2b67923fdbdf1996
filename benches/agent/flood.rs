//! Health beside a flood: how one caller of health fares, by turns on a kept connection and on a new one,
//! while others come in crowds from the same address; the same with a bare hyper server in the agent's place,
//! whose queue is as long but whose work is least.
//!
//! The caller of health is a thread that goes before the flood's on their CPU, so that it is the server that
//! it waits for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::setpriority_process;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::agent::EngineUse;
use crate::callers::{Callers, Connections, Stage};
use crate::dial::{Door, Line};
use crate::figures::{Samples, millis};
use crate::floor::Floor;
use crate::machine::{Pinned, Seats, cpu_time, many_files, own_cpu_time, pin};
use crate::played::{Guard, HEALTH, Played, serves};

/// Before figures are taken …
const WARM_UP: Duration = Duration::from_millis(500);
/// … and while they are.
const SPAN: Duration = Duration::from_secs(3);
/// Between two calls of health.
const PAUSE: Duration = Duration::from_millis(1);
/// Nice values, first the caller of health's and then the flood's (setpriority(2)).
const FIRST: i32 = -20;
const LAST: i32 = 10;

/// What comes beside health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flood {
    Nothing,
    Silent(usize),
    ComeAndGo { each_ms: usize },
    Callers(usize, &'static str, &'static str),
    SlowBodies(usize),
    Handshakes(usize),
}

const PLAIN: [Flood; 6] = [
    Flood::Nothing,
    Flood::Silent(1000),
    Flood::ComeAndGo { each_ms: 2 },
    Flood::Callers(200, "POST", "/host/ping"),
    Flood::SlowBodies(200),
    Flood::Callers(64, "GET", "/v1/node"),
];
const TLS: [Flood; 2] = [Flood::Nothing, Flood::Handshakes(100)];

pub(crate) fn run(_: EngineUse) -> Result<()> {
    println!("health beside a flood, on a node that is played");
    let (seats, played) = (Seats::find()?, Played::new()?);
    seats.print();
    many_files()?;
    let _pinned = Pinned::here(seats.clients)?;
    for (tls, floods) in [(false, &PLAIN[..]), (true, &TLS[..])] {
        println!("  {}", if tls { "through TLS" } else { "plain" });
        let (agent, door) = played.agent(Guard::of(tls))?;
        pin(agent.pid(), seats.server)?;
        let call = played.health_call();
        let answer = door.connect()?.get_done("POST", HEALTH, &call)?;
        let floor = Floor::start(&answer.body, played.identity(tls))?;
        pin(floor.pid(), seats.server)?;
        let floors = Door::new(floor.address, tls)?;
        for flood in floods {
            println!("    beside {}", flood.text());
            beside(*flood, &door, agent.pid(), &call)?.print("agent");
            beside(*flood, &floors, floor.pid(), &call)?.print("floor");
        }
    }
    Ok(())
}

/// What became of health beside a flood.
struct Outcome {
    kept: Samples,
    fresh: Samples,
    failed: Vec<anyhow::Error>,
    /// What else was done, in things of the flood's kind.
    flooded: usize,
    span: Duration,
    /// The server's CPU time …
    cpu: Duration,
    /// … and the flood's.
    own: Duration,
}

impl Outcome {
    fn print(&self, name: &str) {
        let busy = |time: Duration| 100.0 * time.div_duration_f64(self.span);
        println!(
            "      {name}: {} of {} calls of health failed; flood {:.0}/s, busy {:.0} %, flood's callers {:.0} %",
            self.failed.len(),
            self.failed.len() + self.kept.count() + self.fresh.count(),
            self.flooded as f64 / self.span.as_secs_f64(),
            busy(self.cpu),
            busy(self.own)
        );
        if let Some(first) = self.failed.first() {
            println!("        the first failure: {first:#}");
        }
        for (how, took) in [("kept connection", &self.kept), ("a connection each", &self.fresh)] {
            println!(
                "        {how:<18} p50 {:>9}  p99 {:>9}  max {:>9}  ({} samples)",
                millis(took.median()),
                millis(took.quantile(0.99)),
                millis(took.quantile(1.0)),
                took.count()
            );
        }
    }
}

fn beside(flood: Flood, door: &Door, pid: u32, call: &str) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stage = Arc::new(Stage::default());
    // Threads inherit it, so that each says its own.
    let _ = setpriority_process(None, LAST);
    let outcome = runtime.block_on(async {
        let flooding = tokio::spawn(flood.pour(door.clone(), stage.clone()));
        sleep(WARM_UP).await;
        let (began, cpu, own) = (Instant::now(), cpu_time(pid)?, own_cpu_time()?);
        stage.counts();
        let (caller, call) = (door.clone(), call.to_string());
        let health = tokio::task::spawn_blocking(move || call_health(&caller, &call)).await?;
        stage.ends();
        let span = began.elapsed();
        let (cpu, own) = (cpu_time(pid)? - cpu, own_cpu_time()? - own);
        let flooded = flooding.await??;
        let (kept, fresh, failed) = health;
        anyhow::Ok(Outcome { kept, fresh, failed, flooded, span, cpu, own })
    });
    let _ = setpriority_process(None, 0);
    outcome
}

/// One call after the other for a while, by turns on a kept and on a new connection; what failed.
fn call_health(door: &Door, call: &str) -> (Samples, Samples, Vec<anyhow::Error>) {
    let _ = setpriority_process(None, FIRST);
    let (mut kept, mut fresh) = <(Samples, Samples)>::default();
    let mut failed = Vec::new();
    let mut connection = None;
    let began = Instant::now();
    while began.elapsed() < SPAN {
        std::thread::sleep(PAUSE);
        // What was kept is made before the call's time begins.
        let known = connection.take().map_or_else(|| door.connect(), Ok);
        let at = Instant::now();
        match known.and_then(|known| healthy(known, call)) {
            Ok(known) => {
                kept.push(at.elapsed());
                connection = Some(known);
            }
            Err(e) => failed.push(e),
        }
        std::thread::sleep(PAUSE);
        let at = Instant::now();
        match door.connect().and_then(|new| healthy(new, call)) {
            Ok(_) => fresh.push(at.elapsed()),
            Err(e) => failed.push(e),
        }
    }
    (kept, fresh, failed)
}

fn healthy(mut connection: Line, call: &str) -> Result<Line> {
    let answer = connection.get_done("POST", HEALTH, call)?;
    anyhow::ensure!(serves(&answer.body), "it does not serve");
    Ok(connection)
}

impl Flood {
    fn text(self) -> String {
        match self {
            Flood::Nothing => "nothing".to_string(),
            Flood::Silent(count) => format!("{count} silent connections"),
            Flood::ComeAndGo { each_ms } => {
                format!("{} connections a second that come and go", each_ms * 1000)
            }
            Flood::Callers(count, method, path) => format!("{count} callers of {method} {path}"),
            Flood::SlowBodies(count) => format!("{count} bodies that come a byte at a time"),
            Flood::Handshakes(count) => format!("TLS handshakes, {count} at a time"),
        }
    }

    /// Goes on until the run ends; how much there was of it while it counted.
    async fn pour(self, door: Door, stage: Arc<Stage>) -> Result<usize> {
        match self {
            Flood::Nothing => Ok(0),
            Flood::Silent(count) => silent(door, stage, count).await,
            Flood::ComeAndGo { each_ms } => come_and_go(door, stage, each_ms).await,
            Flood::Callers(at_once, method, path) => {
                let request = Callers::request(method, path, "", "");
                let callers = Callers { door, request, at_once, connections: Connections::Kept };
                Ok(callers.call(stage).await?.count())
            }
            Flood::SlowBodies(count) => {
                each(count, stage, move |stage| slow_body(door.clone(), stage)).await
            }
            Flood::Handshakes(count) => {
                each(count, stage, move |stage| handshakes(door.clone(), stage)).await
            }
        }
    }
}

/// So many of the same; the sum of what they did.
async fn each<F>(count: usize, stage: Arc<Stage>, one: impl Fn(Arc<Stage>) -> F) -> Result<usize>
where
    F: Future<Output = Result<usize>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(one(stage.clone()));
    }
    let mut sum = 0;
    while let Some(done) = tasks.join_next().await {
        sum += done??;
    }
    Ok(sum)
}

async fn silent(door: Door, stage: Arc<Stage>, count: usize) -> Result<usize> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(door.open_bare().await?);
    }
    while !stage.has_ended() {
        sleep(PAUSE * 10).await;
    }
    Ok(0)
}

async fn come_and_go(door: Door, stage: Arc<Stage>, each_ms: usize) -> Result<usize> {
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut counted = 0;
    while !stage.has_ended() {
        tick.tick().await;
        for _ in 0..each_ms {
            drop(door.open_bare().await?);
            counted += usize::from(stage.is_counting());
        }
    }
    Ok(counted)
}

/// A call whose body never ends, though it goes on.
async fn slow_body(door: Door, stage: Arc<Stage>) -> Result<usize> {
    let mut stream = door.open().await?;
    let head = "POST /host/ping HTTP/1.1\r\nHost: bench\r\nContent-Length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut counted = 0;
    while !stage.has_ended() {
        stream.write_all(b" ").await?;
        counted += usize::from(stage.is_counting());
        sleep(PAUSE * 50).await;
    }
    Ok(counted)
}

async fn handshakes(door: Door, stage: Arc<Stage>) -> Result<usize> {
    let mut counted = 0;
    while !stage.has_ended() {
        drop(door.open().await?);
        counted += usize::from(stage.is_counting());
    }
    Ok(counted)
}
