//! A health call that is called back, from its first byte to the arrival of its result: one after the other and
//! many at once, against a bare hyper server that answers and posts back. The node is played, and so is the
//! controller. What the agent holds after so many of them is shown too.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::agent::EngineUse;
use crate::callers::ask;
use crate::dial::Door;
use crate::figures::{Samples, millis, print_aim};
use crate::floor::Floor;
use crate::footprint::Held;
use crate::machine::{Pinned, Seats, pin};
use crate::played::{Guard, HEALTH, Played};

/// Callers at once, and the calls of them all.
const ROWS: [(usize, usize); 2] = [(1, 3_000), (50, 10_000)];
const WARM_UP: usize = 200;
/// By then the agent has given back what the calls took at one time.
const TIDIED: Duration = Duration::from_secs(11);
/// More than any result takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(_: EngineUse) -> Result<()> {
    println!("health with its callback, on a node that is played");
    let (seats, played) = (Seats::find()?, Played::new()?);
    seats.print();
    let _pinned = Pinned::here(seats.clients)?;
    let (agent, door) = played.agent(Guard::None)?;
    pin(agent.pid(), seats.server)?;
    let body = played.health_call();
    let floor = Floor::start(&door.connect()?.get_done("POST", HEALTH, &body)?.body, None)?;
    pin(floor.pid(), seats.server)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let controller = Controller::start().await?;
        let callers = |door| Callers { door, controller: controller.clone(), body: body.clone() };
        let (agents, floors) = (callers(door), callers(Door::new(floor.address, false)?));
        let idle = Held::by(agent.pid())?;
        idle.print("before the calls");
        for callers in [&agents, &floors] {
            callers.call(1, WARM_UP).await?;
        }
        for (at_once, calls) in ROWS {
            compare(
                at_once,
                &agents.call(at_once, calls).await?,
                &floors.call(at_once, calls).await?,
            );
        }
        Held::by(agent.pid())?.print("after them");
        sleep(TIDIED).await;
        let held = Held::by(agent.pid())?;
        held.print("once it is quiet");
        let more = held.rss_kib.saturating_sub(idle.rss_kib);
        print_aim("more resident", &format!("{more} KiB"), "<= 2048 KiB", more <= 2048);
        Ok(())
    })
}

/// What came of calls: how long each took, and all of them.
struct Run {
    took: Samples,
    span: Duration,
}

impl Run {
    fn rate(&self) -> f64 {
        self.took.count() as f64 / self.span.as_secs_f64()
    }

    fn print(&self, name: &str) {
        self.took.print(name);
        println!("  {:<34} {:.0} calls/s", "", self.rate());
    }
}

fn compare(at_once: usize, figure: &Run, floor: &Run) {
    figure.print(&format!("{at_once} at once, called back"));
    floor.print("floor: a bare hyper server");
    println!(
        "  {:<34} p50 {:.2} x, calls/s {:.2} x the floor",
        "ratio",
        figure.took.median().div_duration_f64(floor.took.median()),
        figure.rate() / floor.rate()
    );
    match at_once {
        1 => {
            let p50 = figure.took.median();
            print_aim("p50", &millis(p50), "<= 0.5 ms", p50 <= Duration::from_micros(500));
        }
        _ => {
            let rate = figure.rate();
            print_aim("calls/s", &format!("{rate:.0}"), ">= 3000", rate >= 3000.0);
        }
    }
}

/// Callers of one listener.
#[derive(Clone)]
struct Callers {
    door: Door,
    controller: Controller,
    body: String,
}

impl Callers {
    /// Lets so many share these calls.
    async fn call(&self, at_once: usize, calls: usize) -> Result<Run> {
        let (mut took, began) = (Samples::default(), Instant::now());
        let begin = |_| tokio::spawn(self.clone().one(calls / at_once));
        let callers: Vec<_> = (0..at_once).map(begin).collect();
        for caller in callers {
            for one in caller.await?? {
                took.push(one);
            }
        }
        Ok(Run { took, span: began.elapsed() })
    }

    /// One call after the other, each once the one before was called back.
    async fn one(self, calls: usize) -> Result<Vec<Duration>> {
        let (mut stream, mut took) = (self.door.open().await?, Vec::with_capacity(calls));
        for _ in 0..calls {
            let (task, came) = self.controller.awaits();
            let request = format!(
                "POST {HEALTH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
                 taskuuid: {task}\r\ncallbackurl: {}\r\nContent-Length: {}\r\n\r\n{}",
                self.controller.url,
                self.body.len(),
                self.body
            );
            let began = Instant::now();
            ask(&mut *stream, request.as_bytes()).await?;
            timeout(PATIENCE, came).await.context("a call was not called back")??;
            took.push(began.elapsed());
        }
        Ok(took)
    }
}

/// A controller that takes everything.
#[derive(Clone)]
struct Controller {
    url: Arc<str>,
    waits: Arc<Mutex<Waits>>,
}

/// Who waits for which task.
#[derive(Default)]
struct Waits {
    tasks: u128,
    tells: HashMap<String, oneshot::Sender<()>>,
}

impl Controller {
    async fn start() -> Result<Controller> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/zstack/asyncrest/callback", listener.local_addr()?).into();
        let controller = Controller { url, waits: Arc::default() };
        let serves = controller.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serves.clone().serve(stream));
            }
        });
        Ok(controller)
    }

    /// A new task, and the word that it was called back.
    fn awaits(&self) -> (String, oneshot::Receiver<()>) {
        let (tell, came) = oneshot::channel();
        let mut waits = self.waits();
        waits.tasks += 1;
        let task = format!("{:032x}", waits.tasks);
        waits.tells.insert(task.clone(), tell);
        (task, came)
    }

    async fn serve(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let answer = service_fn(|request: Request<Incoming>| async {
            let (head, body) = request.into_parts();
            let _ = body.collect().await;
            let task = head.headers.get("taskuuid").and_then(|task| task.to_str().ok());
            if let Some(tell) = task.and_then(|task| self.waits().tells.remove(task)) {
                let _ = tell.send(());
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
