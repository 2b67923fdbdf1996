//! The listener under load: calls from 1 to 1,000 callers at once, plain and through TLS, on kept connections
//! and on one for each call, against a bare hyper server with the same answer, its floor. The node is played
//! and no call waits for anybody, so that what is measured is the way of a request through the agent.
//!
//! On loopback the kernel brings what is sent to its receiver in the sender's time, so that each side's CPU
//! time has a part of the other's; the floor's as much as the agent's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::agent::EngineUse;
use crate::callers::{Callers, Connections, Stage};
use crate::dial::Door;
use crate::figures::{Samples, millis};
use crate::floor::Floor;
use crate::machine::{
    Pinned, Seats, cpu_time, forget_peak, many_files, own_cpu_time, peak_kib, pin,
};
use crate::played::{Guard, HEALTH, Played};

/// Before figures are taken …
const WARM_UP: Duration = Duration::from_millis(500);
/// … and while they are.
const SPAN: Duration = Duration::from_secs(2);
const PING: &str = "/host/ping";
/// Callers at once, and their connections.
const ROWS: [(usize, Connections); 6] = [
    (1, Connections::Kept),
    (50, Connections::Kept),
    (200, Connections::Kept),
    (1000, Connections::Kept),
    (1, Connections::OneEach),
    (50, Connections::OneEach),
];
/// Calls by which the bytes of one are found.
const METERED: usize = 100;

pub(crate) fn run(_: EngineUse) -> Result<()> {
    println!("the listener under load, on a node that is played");
    let (seats, played) = (Seats::find()?, Played::new()?);
    seats.print();
    many_files()?;
    let _pinned = Pinned::here(seats.clients)?;
    for tls in [false, true] {
        let (agent, door) = played.agent(Guard::of(tls))?;
        pin(agent.pid(), seats.server)?;
        let agent = Server { pid: agent.pid(), door, _process: agent };
        for (path, body) in [(PING, "{}".to_string()), (HEALTH, played.health_call())] {
            println!("  {path}, {}", if tls { "through TLS" } else { "plain" });
            let call = Call { path, headers: "", body: &body };
            let floor = floor(&agent, &call, &played, tls, seats)?;
            call.print_bytes("agent", &agent)?;
            call.print_bytes("floor", &floor)?;
            for (at_once, connections) in ROWS {
                compare(&call, &agent, &floor, at_once, connections)?;
            }
        }
    }
    authorised(&played, seats)
}

/// Times that each side is measured, one after the other: what else the machine does comes to both.
const TURNS: usize = 5;

/// What it costs to judge a token, and the role that it gives, of each call.
fn authorised(played: &Played, seats: Seats) -> Result<()> {
    println!("  {HEALTH}, with a token in each call beside none, 50 at once on kept connections");
    let body = played.health_call();
    let mut sides = Vec::new();
    for guard in [Guard::None, Guard::Token] {
        let (agent, door) = played.agent(guard)?;
        pin(agent.pid(), seats.server)?;
        let call = Call { path: HEALTH, headers: guard.headers(), body: &body };
        sides.push((call, Server { pid: agent.pid(), door, _process: agent }, Vec::new()));
    }
    for _ in 0..TURNS {
        for (call, agent, runs) in &mut sides {
            runs.push(call.measure(agent, 50, Connections::Kept)?);
        }
    }
    let median = |runs: &[Run], of: fn(&Run) -> f64| {
        let mut all: Vec<f64> = runs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let figures: Vec<(f64, f64)> = sides
        .iter()
        .map(|(_, _, runs)| {
            (median(runs, |run| run.took.median().as_secs_f64()), median(runs, Run::cpu_each))
        })
        .collect();
    if let [(took, cpu), (token_took, token_cpu)] = figures[..] {
        println!(
            "      none {:.1} us p50, {cpu:.1} us CPU; token {:.1} us p50, {token_cpu:.1} us CPU: {:.3} x and {:.3} x \
             (aim: 1.05), medians of {TURNS} turns",
            took * 1e6,
            token_took * 1e6,
            token_took / took,
            token_cpu / cpu
        );
    }
    Ok(())
}

/// A process that listens, as long as this is there.
struct Server<P> {
    pid: u32,
    door: Door,
    _process: P,
}

/// The floor of a call: it answers as the agent does.
fn floor<P>(
    agent: &Server<P>,
    call: &Call,
    played: &Played,
    tls: bool,
    seats: Seats,
) -> Result<Server<Floor>> {
    let answer = agent.door.connect()?.get_done("POST", call.path, call.body)?;
    let floor = Floor::start(&answer.body, played.identity(tls))?;
    pin(floor.pid(), seats.server)?;
    let door = Door::new(floor.address, tls)?;
    Ok(Server { pid: floor.pid(), door, _process: floor })
}

struct Call<'a> {
    path: &'a str,
    headers: &'a str,
    body: &'a str,
}

impl Call<'_> {
    /// What goes over TCP for a call, without the heads of its packets.
    fn print_bytes<P>(&self, name: &str, server: &Server<P>) -> Result<()> {
        let (mut connection, meter) = server.door.metered()?;
        connection.get_done("POST", self.path, self.body)?;
        let first = meter.read();
        for _ in 0..METERED {
            connection.get_done("POST", self.path, self.body)?;
        }
        let all = meter.read();
        let each = |first: usize, all: usize| (all - first) / METERED;
        println!(
            "    {name}: {} bytes in and {} out a call, {} and {} with its connection",
            each(first.0, all.0),
            each(first.1, all.1),
            first.0,
            first.1
        );
        Ok(())
    }

    /// Lets so many call for a while.
    fn measure<P>(&self, server: &Server<P>, at_once: usize, how: Connections) -> Result<Run> {
        let request = Callers::request("POST", self.path, self.headers, self.body);
        let callers = Callers { door: server.door.clone(), request, at_once, connections: how };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        forget_peak(server.pid)?;
        runtime.block_on(async {
            let stage = Arc::new(Stage::default());
            let calling = tokio::spawn(callers.call(stage.clone()));
            tokio::time::sleep(WARM_UP).await;
            let (began, cpu, own) = (Instant::now(), cpu_time(server.pid)?, own_cpu_time()?);
            stage.counts();
            tokio::time::sleep(SPAN).await;
            stage.ends();
            let (cpu, own) = (cpu_time(server.pid)? - cpu, own_cpu_time()? - own);
            let span = began.elapsed();
            let took = calling.await??;
            if took.count() == 0 {
                bail!("no call of {at_once} at once was answered within {SPAN:?}");
            }
            Ok(Run { took, span, cpu, own, peak_kib: peak_kib(server.pid)? })
        })
    }
}

/// What came of calling for a while.
struct Run {
    took: Samples,
    span: Duration,
    /// The server's CPU time …
    cpu: Duration,
    /// … and its callers'.
    own: Duration,
    peak_kib: u64,
}

impl Run {
    fn cpu_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.took.count() as f64
    }

    fn print(&self, name: &str) {
        let quantile = |share| millis(self.took.quantile(share));
        let busy = |time: Duration| 100.0 * time.div_duration_f64(self.span);
        println!(
            "      {name:<6} p50 {:>9}  p99 {:>10}  max {:>10}  {:>6.0} calls/s  {:>6.1} us CPU each  \
             busy {:>3.0} %, callers {:>3.0} %  peak {} KiB",
            quantile(0.5),
            quantile(0.99),
            quantile(1.0),
            self.took.count() as f64 / self.span.as_secs_f64(),
            self.cpu_each(),
            busy(self.cpu),
            busy(self.own),
            self.peak_kib
        );
    }
}

fn compare<A, F>(
    call: &Call,
    agent: &Server<A>,
    floor: &Server<F>,
    at_once: usize,
    connections: Connections,
) -> Result<()> {
    let figure = call.measure(agent, at_once, connections)?;
    let floor = call.measure(floor, at_once, connections)?;
    let how = match connections {
        Connections::Kept => "kept connections",
        Connections::OneEach => "a connection for each call",
    };
    println!("    {at_once} at once, {how}");
    figure.print("agent");
    floor.print("floor");
    println!(
        "      ratio  p50 {:.2} x, CPU {:.2} x the floor",
        figure.took.median().div_duration_f64(floor.took.median()),
        figure.cpu_each() / floor.cpu_each()
    );
    Ok(())
}
