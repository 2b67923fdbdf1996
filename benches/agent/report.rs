//! From the death of a target's process to the report of it at a controller, which is played on the same
//! machine: against a bare post to that controller, on a connection of its own as the agent's is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::agent::{Agent, EngineUse};
use crate::figures::{Samples, millis, print_aim};
use crate::target::Target;

/// Deaths of a target.
const DEATHS: usize = 60;
/// A target of which nothing was reported for so long has settled.
const SETTLED: Duration = Duration::from_millis(300);
/// More than any report takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("reports to the controller");
    if engine == EngineUse::LeftAlone {
        println!("  SKIPPED: it is measured with a real engine, and there is none to be had here");
        return Ok(());
    }
    let controller = Controller::start()?;
    let (agent, _) = Agent::start(EngineUse::FallsForgotten)?;
    let url = format!("http://{}/zstack/asyncrest/sendcommand", controller.address);
    let body = json!({"hostUuid": "bench", "sendCommandUrl": url}).to_string();
    agent.connect()?.get_done("POST", "/host/connect", &body)?;
    let mut target = Target::deploy(&agent)?;
    controller.await_report(|state| state == "serving")?;
    let (mut figure, mut floor) = <(Samples, Samples)>::default();
    for _ in 0..DEATHS {
        let pid = Pid::from_raw(target.pid()?);
        let began = Instant::now();
        kill(pid, Signal::SIGKILL)?;
        // The agent brings it up again at once: it may be starting before anybody could be told.
        let came = controller.await_report(|state| ["failed", "starting"].contains(&state))?;
        figure.push(came.duration_since(began));
        let began = Instant::now();
        post(controller.address)?;
        floor.push(controller.await_report(|state| state == "floor")?.duration_since(began));
        target.put()?;
        controller.await_report(|state| state == "serving")?;
        controller.forget();
    }
    figure.print("SIGKILL to the report's arrival");
    floor.print("floor: a bare post");
    let p99 = figure.quantile(0.99);
    print_aim("p99", &millis(p99), "< 10 ms", p99 < Duration::from_millis(10));
    Ok(())
}

/// A controller that takes everything.
struct Controller {
    address: SocketAddr,
    /// When a report had come, and the state of the first target in it.
    came: Receiver<(Instant, String)>,
}

impl Controller {
    fn start() -> Result<Controller> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (tells, came) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tells = tells.clone();
                std::thread::spawn(move || serve(stream, &tells));
            }
        });
        Ok(Controller { address, came })
    }

    /// When the first report came, of those not heard of yet, in which the target is in such a state.
    fn await_report(&self, wanted: impl Fn(&str) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.came.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, state)) if wanted(&state) => return Ok(at),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("no such report within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the controller has ended"),
            }
        }
    }

    /// What came until the target settled says nothing of its next death.
    fn forget(&self) {
        while self.came.recv_timeout(SETTLED).is_ok() {}
    }
}

/// Takes one post after the other, as long as its peer keeps the connection.
fn serve(mut stream: TcpStream, tells: &Sender<(Instant, String)>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let (head, length) = loop {
            if let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break (head + 4, content_length(&bytes[..head])?);
            }
            more(&mut stream, &mut bytes)?;
        };
        while bytes.len() < head + length {
            more(&mut stream, &mut bytes)?;
        }
        let at = Instant::now();
        let body: Value = serde_json::from_slice(&bytes[head..head + length])?;
        let state = body.pointer("/targets/0/state").and_then(Value::as_str).unwrap_or_default();
        tells.send((at, state.to_string()))?;
        bytes.drain(..head + length);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    Ok(length.context("no content-length")?.trim().parse()?)
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<()> {
    let mut part = [0; 16 * 1024];
    match stream.read(&mut part)? {
        0 => bail!("the connection has ended"),
        count => bytes.extend_from_slice(&part[..count]),
    }
    Ok(())
}

/// What the agent's post costs when nothing has to be found out.
fn post(to: SocketAddr) -> Result<()> {
    let body = r#"{"targets":[{"state":"floor"}]}"#;
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let head = format!("POST / HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes())?;
    more(&mut stream, &mut Vec::new())
}
