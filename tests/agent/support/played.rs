//! A node whose engine runs one container, and in it a target that does what a test wants: both are played
//! over their sockets.

use std::fs;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::Place;

/// The pid of the container's process; it lives on the fixture's `/proc`.
const PID: u32 = 77;
/// Where the engine listens, as a setting.
const ENGINE: &str = "engine.socket = \"/run/docker.sock\"\n";

/// What the target does with a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    Answers,
    /// As `Answers`, and so many requests have waited for a large I/O buffer.
    Waits(u64),
    /// Its version, but not that its start has ended.
    OnlyStarts,
    NeverAnswers,
    Says(&'static str),
    /// This, and then no newline and no end.
    Endless(&'static str),
    /// As `Endless`, with line ends in between.
    EndlessLines(&'static str),
    ClosesAtOnce,
}

/// A node with an engine, one container, and a target whose manner changes.
pub(crate) struct Played {
    pub(crate) place: Place,
    manner: Arc<Mutex<Manner>>,
}

impl Played {
    /// With these settings more; they may begin with keys of the top level. The target answers.
    pub(crate) fn with(settings: &str) -> Played {
        let place = Place::on("two-node").mounted().settings(&format!("{ENGINE}{settings}"));
        fs::create_dir_all(place.path("var/tmp/vhost-sockets")).unwrap();
        fs::create_dir_all(place.path(&format!("proc/{PID}"))).unwrap();
        let rest = "0 ".repeat(44);
        place.write(&format!("proc/{PID}/stat"), &format!("{PID} (vhost) S 0 1 1 0 -1 {rest}\n"));
        run_engine(&place, PID);
        let manner = Arc::new(Mutex::new(Manner::Answers));
        serve_at(&place, "var/tmp/vhost-sockets/vhost.sock", manner.clone());
        Played { place, manner }
    }

    /// Plays another target, which answers at this control socket; its container has the same process.
    pub(crate) fn also_at(&self, socket: &str) {
        fs::create_dir_all(self.place.path(socket).parent().unwrap()).unwrap();
        serve_at(&self.place, socket, Arc::new(Mutex::new(Manner::Answers)));
    }

    /// From now on the target does that.
    pub(crate) fn becomes(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }
}

/// Plays a target at a control socket.
fn serve_at(place: &Place, socket: &str, manner: Arc<Mutex<Manner>>) {
    let target = UnixListener::bind(place.path(socket)).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = target.accept().await {
            tokio::spawn(behave(stream, manner.clone()));
        }
    });
}

/// Plays an engine that knows one running container with that process, under whatever name it is asked for.
pub(crate) fn run_engine(place: &Place, pid: u32) {
    fs::create_dir_all(place.path("run")).unwrap();
    let engine = UnixListener::bind(place.path("run/docker.sock")).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = engine.accept().await {
            tokio::spawn(serve_the_container(stream, pid));
        }
    });
}

async fn serve_the_container(stream: UnixStream, pid: u32) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut name = "zbs-vhost".to_string();
    while let Ok(Some(line)) = lines.next_line().await {
        let path = line.split_once("/containers/").and_then(|(_, path)| path.split_once("/json"));
        if let Some((asked, _)) = path {
            name = asked.to_string();
        }
        let state = json!({"Running": true, "Pid": pid});
        let body = json!({"Id": "c0ffee", "Name": format!("/{name}"), "State": state}).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if line.is_empty() && write.write_all((head + &body).as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn behave(mut stream: UnixStream, manner: Arc<Mutex<Manner>>) {
    let mut bytes = Vec::new();
    loop {
        let mut requests = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        let request = requests.next();
        let taken = requests.byte_offset();
        let Some(Ok(request)) = request else {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        bytes.drain(..taken);
        let manner = *manner.lock().unwrap();
        let said = match manner {
            Manner::OnlyStarts if request["method"] == "framework_wait_init" => Ok(()),
            Manner::Waits(retry) if request["method"] == "iobuf_get_stats" => {
                let pool = |retry| json!({"cache": 5, "main": 6, "retry": retry});
                let module =
                    json!({"module": "bdev", "small_pool": pool(0), "large_pool": pool(retry)});
                let reply = json!({"id": request["id"], "result": [module]});
                stream.write_all(format!("{reply}\n").as_bytes()).await
            }
            Manner::Answers | Manner::Waits(_) | Manner::OnlyStarts => {
                let result = json!({"version": "SPDK v24.01", "reactors": [{}]});
                let reply = json!({"id": request["id"], "result": result});
                stream.write_all(format!("{reply}\n").as_bytes()).await
            }
            Manner::NeverAnswers => Ok(()),
            Manner::Says(text) => stream.write_all(text.as_bytes()).await,
            Manner::Endless(text) => pour(&mut stream, text, "0,").await,
            Manner::EndlessLines(text) => pour(&mut stream, text, "0,\n").await,
            Manner::ClosesAtOnce => return,
        };
        if said.is_err() {
            return;
        }
    }
}

async fn pour(stream: &mut UnixStream, text: &str, drop: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    let drops = drop.repeat(20_000);
    loop {
        stream.write_all(drops.as_bytes()).await?;
    }
}
