//! Growing 1,024 pages of 2 MiB: through the owner of the pools and through the whole call, against
//! one bare write of the same number. The three take turns, for the state of the machine's free
//! memory changes with every growth.

use anyhow::{Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use vhost_agent::agent::apply::memory::MemoryApplier;
use vhost_agent::agent::memory::{MemoryWork, ReclaimOrder};
use vhost_agent::agent::observe::memory::MemoryObserver;
use vhost_agent::agent::pools::Pools;
use vhost_agent::agent::progress::ProgressSink;
use vhost_agent::agent::pulse::Pulse;
use vhost_agent::config::Settings;
use vhost_agent::host::Root;
use vhost_agent::model::pools::{Placement, PoolGoal, PoolWant};
use vhost_agent::model::units::PageSize;
use vhost_agent::store::Store;

use crate::agent::{Agent, EngineUse};
use crate::figures::{Samples, print_ratio};
use crate::pages::{Found, wanted};

const PAGES: u64 = 1024;
const ROUNDS: usize = 60;
const WARM_UP: usize = 4;

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("growing {PAGES} pages of 2 MiB, engine {engine:?}");
    let found = Found::now()?;
    let owner = Owner::start()?;
    let (agent, _) = Agent::start(engine)?;
    let mut call = agent.connect()?;
    let free = wanted(PAGES)?;
    let body = format!(r#"{{"hugepageNr":{free}}}"#);
    let mut bare = Samples::default();
    let mut through_owner = Samples::default();
    let mut through_call = Samples::default();
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            (bare, through_owner, through_call) = Default::default();
        }
        // In turn first, second and third: who comes first finds other memory than who comes last.
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => {
                    bare.time(|| found.grow(PAGES))?;
                    found.expect(PAGES)?;
                    found.restore()?;
                }
                1 => {
                    through_owner.time(|| owner.grow(free))?;
                    found.expect(PAGES)?;
                    owner.give_back()?;
                }
                _ => {
                    let route = "/zbs/primarystorage/vhost/target/prepareenv";
                    let answer = through_call.time(|| call.get_done("POST", route, &body))?;
                    succeeded(&answer.body)?;
                    found.expect(PAGES)?;
                    call.get_done("POST", "/v1/reclaim", "{}")?;
                }
            }
            found.expect(0)?;
        }
    }
    bare.print("floor: one bare write");
    through_owner.print("through the pools' owner");
    through_call.print("through the whole prepareenv");
    print_ratio("the pools' owner", &through_owner, &bare, 1.1);
    print_ratio("the whole prepareenv", &through_call, &bare, 1.1);
    Ok(())
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
    _state: TempDir,
}

impl Owner {
    fn start() -> Result<Owner> {
        let state = tempfile::tempdir()?;
        let (root, settings) = (Root::new("/"), Settings::default());
        let work = MemoryWork::new(
            MemoryObserver::new(&root)?,
            MemoryApplier::new(&root, settings.mount_policy())?,
            settings.pool_policy(),
            settings.mount_policy(),
            Store::open(state.path())?,
            ProgressSink::default(),
        )?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let pools = runtime.block_on(async {
            Pools::start(work, settings.pool_policy().write_timeout, Pulse::default().register())
        });
        Ok(Owner { runtime, pools, _state: state })
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
        let report = self.runtime.block_on(self.pools.prepare(goal, Vec::new(), false, false));
        match report.errors.first() {
            None => Ok(()),
            Some(fault) => bail!("the growth failed: {fault}"),
        }
    }

    fn give_back(&self) -> Result<()> {
        self.runtime.block_on(self.pools.reclaim(ReclaimOrder::default()))?;
        Ok(())
    }
}
