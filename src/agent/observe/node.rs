//! Observation of the whole node for `GET /v1/node`.

use super::blocking;
use super::memory::MemoryObserver;
use crate::agent::memory::Published;
use crate::host::{Root, cpus, facts};
use crate::model::fault::Fault;
use crate::model::ledger::Ledger;
use crate::model::node::{EngineStatus, NodeStatus, PoolStatus, PoolTotals};
use crate::model::pools::PoolsSeen;
use crate::model::units::PageSize;

/// Observer of the whole node.
#[derive(Debug, Clone)]
pub struct NodeObserver {
    root: Root,
    memory: MemoryObserver,
}

impl NodeObserver {
    pub fn new(root: &Root, memory: MemoryObserver) -> NodeObserver {
        NodeObserver { root: root.clone(), memory }
    }

    /// Observes the node. Parts that cannot be read are empty and listed in `errors`.
    ///
    /// # Errors
    /// Only when the agent itself fails.
    pub async fn look(
        &self,
        records: Published,
        engine: EngineStatus,
    ) -> Result<NodeStatus, Fault> {
        let observer = self.clone();
        blocking(move || observer.look_blocking(records, engine)).await
    }

    fn look_blocking(&self, records: Published, engine: EngineStatus) -> NodeStatus {
        let kept = records.kept_free();
        let mut ledger = records.ledger;
        let root = &self.root;
        let mut errors = Vec::new();
        let seen = or_empty(self.memory.pools(), &mut errors);
        let findings = ledger.finding().into_iter().collect();
        // Others may have changed the pools since the agent last did.
        ledger.reconcile(&seen);
        NodeStatus {
            hostname: or_empty(facts::hostname(root), &mut errors),
            boot_id: or_empty(facts::boot_id(root), &mut errors),
            kernel: or_empty(facts::kernel(root), &mut errors),
            agent_version: env!("CARGO_PKG_VERSION").to_string(),
            page_sizes: seen.sizes(),
            default_page_size: self.memory.default_size(),
            pools: seen
                .pools
                .iter()
                .map(|pool| PoolStatus {
                    pool: *pool,
                    grown: ledger.grown(pool.key),
                    kept: kept.get(&pool.key).copied().unwrap_or(0),
                })
                .collect(),
            totals: seen.sizes().into_iter().map(|size| totals(size, &seen, &ledger)).collect(),
            memory: seen.memory,
            cpus: or_empty(cpus::cpus(root), &mut errors),
            mounts: or_empty(self.memory.mounts(), &mut errors),
            engine,
            // Filled in by the server, which alone knows it.
            access: None,
            findings,
            errors,
        }
    }
}

fn totals(size: PageSize, seen: &PoolsSeen, ledger: &Ledger) -> PoolTotals {
    let mut totals =
        PoolTotals { size, total: 0, free: 0, reserved: seen.reserved(size), surplus: 0, grown: 0 };
    for pool in seen.pools.iter().filter(|pool| pool.key.size == size) {
        totals.total += pool.total;
        totals.free += pool.free;
        totals.surplus += pool.surplus;
        totals.grown += ledger.grown(pool.key);
    }
    totals
}

fn or_empty<T: Default, E: Into<Fault>>(looked: Result<T, E>, errors: &mut Vec<Fault>) -> T {
    looked.unwrap_or_else(|e| {
        errors.push(e.into());
        T::default()
    })
}
