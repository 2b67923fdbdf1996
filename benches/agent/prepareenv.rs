//! `prepareenv` with everything in place, through HTTP, against its floor: reading the same files
//! and one `_ping` of the engine in a bare loop.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::statfs::statfs;

use crate::agent::{Agent, ENGINE_SOCKET, EngineUse};
use crate::figures::{Samples, millis, print_aim, print_ratio};
use crate::http::Connection;
use crate::pages::{Found, wanted};

const ROUNDS: usize = 3000;
const WARM_UP: usize = 200;
/// Pages that are held meanwhile.
const PAGES: u64 = 16;
const ROUTE: &str = "/zbs/primarystorage/vhost/target/prepareenv";

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("prepareenv with everything in place");
    if engine == EngineUse::LeftAlone {
        println!("  SKIPPED: it is measured with a real engine, and there is none to be had here");
        return Ok(());
    }
    let _found = Found::now()?;
    let mut floor = Floor::find()?;
    // An answer of the engine is good for a second, as by default; and then none is good for long.
    measure("as by default", engine, &mut floor)?;
    measure("the engine asked each time", EngineUse::AskedEachTime, &mut floor)?;
    floor.print_by_itself()
}

fn measure(name: &str, engine: EngineUse, floor: &mut Floor) -> Result<()> {
    let (agent, _) = Agent::start(engine)?;
    let mut call = agent.connect()?;
    let body = format!(r#"{{"hugepageNr":{}}}"#, wanted(PAGES)?);
    // This call takes the pages and makes the mount; all further calls find everything in place.
    holds(&call.get_done("POST", ROUTE, &body)?.body, false)?;
    floor.find_mounts()?;
    let (mut figure, mut empty) = <(Samples, Samples)>::default();
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            (figure, empty) = Default::default();
            floor.forget();
        }
        let answer = figure.time(|| call.get_done("POST", ROUTE, &body))?;
        holds(&answer.body, true)?;
        empty.time(|| call.get_done("GET", "/healthz", ""))?;
        floor.once()?;
    }
    call.get_done("POST", "/v1/reclaim", "{}")?;
    println!("  {name}");
    figure.print("call");
    empty.print("a call that does nothing (/healthz)");
    floor.print();
    print_ratio("p50", &figure, &floor.whole, 1.5);
    let p50 = figure.median();
    print_aim("p50", &millis(p50), "< 1 ms", p50.as_micros() < 1000);
    Ok(())
}

fn holds(body: &[u8], untouched: bool) -> Result<()> {
    let text = std::str::from_utf8(body)?;
    let done = text.contains(r#""success":true"#);
    let quiet = !untouched || text.contains(r#""outcome":"holds""#);
    if done && quiet { Ok(()) } else { bail!("not everything is in place: {text}") }
}

/// What a call cannot do without, in a loop.
struct Floor {
    files: Files,
    engine: Connection<UnixStream>,
    whole: Samples,
    ping: Samples,
}

impl Floor {
    fn find() -> Result<Floor> {
        let engine = Connection::unix(Path::new(ENGINE_SOCKET))?;
        let (whole, ping) = Default::default();
        Ok(Floor { files: files_of_a_call()?, engine, whole, ping })
    }

    fn once(&mut self) -> Result<()> {
        let began = Instant::now();
        self.files.read()?;
        let engine = &mut self.engine;
        self.ping.time(|| engine.get_done("GET", "/_ping", ""))?;
        self.whole.push(began.elapsed());
        Ok(())
    }

    /// The mounts are there when the first call has made them.
    fn find_mounts(&mut self) -> Result<()> {
        self.files = files_of_a_call()?;
        Ok(())
    }

    fn forget(&mut self) {
        (self.whole, self.ping) = Default::default();
    }

    fn print(&self) {
        self.whole.print(&format!("floor: {} files and a ping", self.files.read.len()));
        self.ping.print("  of it the ping");
    }

    /// The same without a call in between: every cache is warm, and nobody else wakes up.
    fn print_by_itself(&mut self) -> Result<()> {
        self.forget();
        for _ in 0..ROUNDS {
            self.once()?;
        }
        self.whole.print("for comparison: the floor alone");
        Ok(())
    }
}

/// The files that a call reads (as `strace -f` shows); the engine's own are not among them as long as
/// nothing happens to them.
struct Files {
    read: Vec<PathBuf>,
    /// Mount points that are looked at.
    mounts: Vec<PathBuf>,
}

impl Files {
    fn read(&self) -> Result<()> {
        let mut buffer = [0; 32 * 1024];
        for path in &self.read {
            let mut file = File::open(path).with_context(|| path.display().to_string())?;
            while file.read(&mut buffer)? > 0 {}
        }
        for path in &self.mounts {
            statfs(path)?;
        }
        Ok(())
    }
}

fn files_of_a_call() -> Result<Files> {
    let mut read = Vec::new();
    for node in folders("/sys/devices/system/node", "node")? {
        for pool in folders(node.join("hugepages"), "hugepages-")? {
            let counters = ["nr_hugepages", "free_hugepages", "surplus_hugepages"];
            read.extend(counters.map(|counter| pool.join(counter)));
        }
    }
    let sizes = folders("/sys/kernel/mm/hugepages", "hugepages-")?;
    read.extend(sizes.iter().map(|size| size.join("resv_hugepages")));
    read.push("/sys/devices/system/node/has_cpu".into());
    read.push("/proc/meminfo".into());
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let hugetlb = table.lines().filter(|line| line.contains(" - hugetlbfs "));
    let mounts = hugetlb.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
    Ok(Files { read, mounts })
}

/// The folders in `parent` whose names begin with `prefix`.
fn folders(parent: impl AsRef<Path>, prefix: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(parent)?.collect::<Result<Vec<_>, _>>()?;
    let named = entries.iter().filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
    Ok(named.map(fs::DirEntry::path).filter(|path| path.is_dir()).collect())
}
