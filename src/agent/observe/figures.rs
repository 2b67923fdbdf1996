//! Figures for a scrape of the metrics: the pools' counters and the agent's own process, read at once off
//! the runtime.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::blocking;
use super::memory::MemoryObserver;
use crate::host::Root;
use crate::host::footprint::OwnProcess;
use crate::model::fault::Fault;
use crate::model::footprint::Footprint;
use crate::model::pools::PoolsSeen;

/// Timeout of a reading; figures missing by then are left out.
const WITHIN: Duration = Duration::from_secs(2);

/// Reader of the figures.
#[derive(Debug, Clone)]
pub struct Figures {
    memory: MemoryObserver,
    process: OwnProcess,
    /// Permit for one reading at a time: hanging ones must not take a thread for each scrape.
    place: Arc<Semaphore>,
}

/// Figures as observed; each part is missing where it could not be read.
#[derive(Debug, Default)]
pub struct ObservedFigures {
    /// Pools with their reserved pages.
    pub pools: Option<PoolsSeen>,
    /// Resource use of the agent's own process.
    pub process: Option<Footprint>,
}

impl Figures {
    /// Makes a reader on the files that the observer of the pools holds.
    pub fn new(root: &Root, memory: MemoryObserver) -> Figures {
        let place = Arc::new(Semaphore::new(1));
        Figures { memory, process: OwnProcess::new(root), place }
    }

    /// Reads the current figures.
    pub async fn look(&self) -> ObservedFigures {
        let look = async {
            let place = self.place.clone().acquire_owned().await.ok()?;
            let (memory, process) = (self.memory.clone(), self.process.clone());
            let work = move || {
                let _place = place;
                (memory.counters(), process.read().map_err(Fault::from))
            };
            blocking(work).await.ok()
        };
        let Ok(Some((pools, process))) = timeout(WITHIN, look).await else {
            tracing::debug!(
                "the counters of the hugepage pools could not be read within {WITHIN:?}, and are left out of the metrics"
            );
            return ObservedFigures::default();
        };
        ObservedFigures { pools: logged(pools), process: logged(process) }
    }
}

fn logged<T>(read: Result<T, Fault>) -> Option<T> {
    read.inspect_err(
        |fault| tracing::debug!(code = %fault.code, "figures are left out of the metrics: {fault}"),
    )
    .ok()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::model::pools::{Pool, PoolKey};
    use crate::model::units::{NumaNode, PageSize};

    #[tokio::test]
    async fn what_cannot_be_read_is_missing_and_takes_nothing_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sys/devices/system/node/node1/hugepages/hugepages-2048kB");
        std::fs::create_dir_all(&folder).unwrap();
        for (name, number) in [("nr_hugepages", 9), ("free_hugepages", 5), ("surplus_hugepages", 1)]
        {
            std::fs::write(folder.join(name), format!("{number}\n")).unwrap();
        }
        let root = Root::new(dir.path());
        let figures = Figures::new(&root, MemoryObserver::new(&root).unwrap());
        let seen = figures.look().await;
        let key = PoolKey { size: PageSize::MIB_2, node: NumaNode(1) };
        let pool = Pool { key, total: 9, free: 5, surplus: 1 };
        assert_eq!(seen.pools.unwrap().pools, [pool]);
        assert_eq!(seen.process, None);
        std::fs::remove_dir_all(dir.path().join("sys")).unwrap();
        let figures = Figures::new(&Root::new("/"), MemoryObserver::new(&root).unwrap());
        assert!(figures.look().await.process.is_some());
    }
}
