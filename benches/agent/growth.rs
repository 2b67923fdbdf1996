//! Growing 1,024 pages of 2 MiB, against one bare write of the same number. The ways take turns, for the
//! state of the machine's free memory changes with every growth.
//!
//! The write may last for seconds where memory is fragmented, so a server does it on a thread that may block:
//! what a bare write on such a thread takes is shown too.
//!
//! The owner of the pools grows what it has reserved before, as after a boot. The whole call reserves
//! anew, and has that on the disk before it answers; its floor is a bare write and such a file.

use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use vhost_agent::agent::apply::memory::MemoryApplier;
use vhost_agent::agent::memory::MemoryWork;
use vhost_agent::agent::observe::memory::MemoryObserver;
use vhost_agent::agent::pools::Pools;
use vhost_agent::agent::progress_sink::ProgressSink;
use vhost_agent::config::Settings;
use vhost_agent::host::Root;
use vhost_agent::model::pools::{Placement, PoolGoal, PoolWant};
use vhost_agent::model::units::PageSize;
use vhost_agent::model::work::WorkId;
use vhost_agent::store::{Durability, Store};
use vhost_agent::watchdog::Watchdog;

use crate::agent::{Agent, EngineUse};
use crate::figures::{Samples, print_comparison, print_ratio};
use crate::http::Connection;
use crate::pages::{Found, wanted};

const PAGES: u64 = 1024;
const ROUNDS: usize = 320;
const WARM_UP: usize = 4;

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("growing {PAGES} pages of 2 MiB, engine {engine:?}");
    let (agent, _) = Agent::start(engine)?;
    let mut ways = Ways::new(&agent)?;
    let cpus = std::thread::available_parallelism()?.get();
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            ways.measured = Measured::default();
        }
        // As often near to where the pages were given back as far from there.
        let cpu = round / 4 % cpus;
        // In turn first, second, third, last: who comes first finds other memory than who comes last.
        for turn in 0..4 {
            ways.found.level(PAGES, cpu)?;
            match (round + turn) % 4 {
                0 => ways.bare()?,
                1 => ways.on_another_thread()?,
                2 => ways.through_owner()?,
                _ => ways.through_call()?,
            }
            ways.found.expect(0)?;
        }
    }
    ways.measured.print();
    Ok(())
}

/// The ways to grow the pool; each gives the pages back.
struct Ways {
    found: Found,
    owner: Owner,
    call: Connection<TcpStream>,
    /// Pages that are free when the growth has succeeded.
    free: u64,
    disk: Store,
    measured: Measured,
}

#[derive(Default)]
struct Measured {
    bare: Samples,
    /// A bare write, and then a file on the disk.
    bare_and_file: Samples,
    /// A bare write on a thread that may block, awaited on the runtime.
    on_another_thread: Samples,
    through_owner: Samples,
    through_call: Samples,
}

impl Ways {
    fn new(agent: &Agent) -> Result<Ways> {
        let owner = Owner::start()?;
        Ok(Ways {
            found: Found::now()?,
            call: agent.connect()?,
            free: wanted(PAGES)?,
            disk: Store::open(owner.state.path().join("disk"), owner.state.path())?,
            owner,
            measured: Measured::default(),
        })
    }

    fn bare(&mut self) -> Result<()> {
        let began = Instant::now();
        self.found.grow(PAGES)?;
        self.measured.bare.push(began.elapsed());
        // What a boot is to take again has to be on the disk before the caller is answered.
        self.disk.write("reservations.json", &self.free, Durability::Disk)?;
        self.measured.bare_and_file.push(began.elapsed());
        self.found.expect(PAGES)?;
        self.found.restore()
    }

    fn on_another_thread(&mut self) -> Result<()> {
        let (runtime, growth) = (&self.owner.runtime, self.found.growth(PAGES));
        let write = async { tokio::task::spawn_blocking(growth).await };
        self.measured.on_another_thread.time(|| runtime.block_on(write))??;
        self.found.expect(PAGES)?;
        self.found.restore()
    }

    fn through_owner(&mut self) -> Result<()> {
        let (owner, free) = (&self.owner, self.free);
        self.measured.through_owner.time(|| owner.grow(free))?;
        self.found.expect(PAGES)?;
        self.found.restore()
    }

    fn through_call(&mut self) -> Result<()> {
        let route = "/zbs/primarystorage/vhost/target/prepareenv";
        let body = format!(r#"{{"hugepageNr":{}}}"#, self.free);
        let call = &mut self.call;
        let answer = self.measured.through_call.time(|| call.get_done("POST", route, &body))?;
        succeeded(&answer.body)?;
        self.found.expect(PAGES)?;
        self.call.get_done("POST", "/v1/reclaim", "{}").map(drop)
    }
}

impl Measured {
    fn print(&self) {
        self.bare.print("floor: one bare write");
        self.bare_and_file.print("floor: and a durable file");
        self.on_another_thread.print("a bare write on another thread");
        self.through_owner.print("through the pools' owner");
        self.through_call.print("through the whole prepareenv");
        print_ratio("the pools' owner", &self.through_owner, &self.bare, 1.1);
        print_ratio(
            "against that on another thread",
            &self.through_owner,
            &self.on_another_thread,
            1.1,
        );
        print_comparison("the whole prepareenv", &self.through_call, &self.bare_and_file);
    }
}

fn succeeded(body: &[u8]) -> Result<()> {
    let answer: Value = serde_json::from_slice(body)?;
    match answer.get("success").and_then(Value::as_bool) {
        Some(true) => Ok(()),
        _ => bail!("the growth failed: {answer}"),
    }
}

/// The pools' owner in this process, as the agent starts it.
struct Owner {
    runtime: Runtime,
    pools: Pools,
    state: TempDir,
    _run: TempDir,
}

impl Owner {
    fn start() -> Result<Owner> {
        // As by default: the ledger in memory, the reservations on the disk.
        let (state, run) = (tempfile::tempdir()?, tempfile::tempdir_in("/run")?);
        let (root, settings) = (Root::new("/"), Settings::default());
        let work = MemoryWork::new(
            MemoryObserver::new(&root)?,
            MemoryApplier::new(&root, settings.mount.clone())?,
            settings.pools.clone(),
            settings.mount.clone(),
            Store::open(state.path(), run.path())?,
            ProgressSink::default(),
        )?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pools = runtime.block_on(async {
            Pools::start(work, settings.pools.write_timeout, Watchdog::default().register())
        });
        Ok(Owner { runtime, pools, state, _run: run })
    }

    /// Grows until so many pages are free.
    fn grow(&self, free: u64) -> Result<()> {
        let want = PoolWant {
            size: PageSize::MIB_2,
            pages: free,
            placement: Placement::Spread,
            move_shortfall: false,
        };
        let goal = PoolGoal::Free(vec![want]);
        let report = self.runtime.block_on(self.pools.prepare(
            WorkId::next(),
            goal,
            Vec::new(),
            false,
            false,
        ));
        match report.errors.first() {
            None => Ok(()),
            Some(fault) => bail!("the growth failed: {fault}"),
        }
    }
}
