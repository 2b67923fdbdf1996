//! Bounds of a growth: the floor of available memory, and the share of the machine that the agent's pages may take.

use super::Round;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::PoolPolicy;
use crate::model::pools::{PagesByPool, PoolWant};

impl Round<'_> {
    /// Largest part of `adds` that the floor and the limit allow.
    pub(super) fn within_bounds(&self, adds: &PagesByPool) -> PagesByPool {
        let memory = self.seen.memory;
        let above_floor =
            memory.available_kib.saturating_sub(floor_kib(self.policy, memory.total_kib));
        let mut left = above_floor.min(self.below_limit().unwrap_or(u64::MAX));
        let mut affordable = PagesByPool::new();
        for (key, add) in adds {
            let pages = (*add).min(left / key.size.kib());
            left -= key.size.kib_of(pages);
            if pages > 0 || *add == 0 {
                affordable.insert(*key, pages);
            }
        }
        affordable
    }

    /// Refuses a growth if the `missing` pages alone exceed the memory of the machine, whatever the floor is.
    pub(super) fn refuse_absurd(&self, want: &PoolWant, missing: u64) -> Result<(), Fault> {
        let total = self.seen.memory.total_kib;
        if want.size.kib_of(missing) <= total {
            return Ok(());
        }
        Err(Fault::new(
            Code::TooManyPages,
            format!(
                "{} free pages of {} were asked for and {missing} are missing: more than the {} MiB of \
                 memory that this machine has",
                want.pages,
                want.size,
                total / 1024
            ),
        ))
    }

    /// Refuses a growth after which less than the floor would be available (field note 6).
    pub(super) fn keep_floor(&self, adds: &PagesByPool) -> Result<(), Fault> {
        let memory = self.seen.memory;
        let floor = floor_kib(self.policy, memory.total_kib);
        let growth = kib_of(adds);
        if growth.saturating_add(floor) <= memory.available_kib {
            return Ok(());
        }
        let mib = |kib: u64| kib / 1024;
        Err(Fault::new(
            Code::MemoryFloor,
            format!(
                "growing by {} ({} MiB) would leave {} MiB of {} MiB available, below the floor of {} \
                 MiB; free memory, ask for fewer pages, or lower pools.floor_mib / pools.floor_percent",
                describe(adds),
                mib(growth),
                mib(memory.available_kib.saturating_sub(growth)),
                mib(memory.available_kib),
                floor.div_ceil(1024)
            ),
        ))
    }

    /// KiB by which the agent's pages may still grow until they reach their share of the machine. `None` if pages are
    /// restored that a boot took away: these were within the share when they were new, or are older than the limit.
    fn below_limit(&self) -> Option<u64> {
        let most = self.seen.memory.total_kib / 100 * self.policy.max_percent;
        self.restored.is_none().then(|| most.saturating_sub(kib_of(self.grown)))
    }

    /// Refuses a growth after which the agent's pages would take more than their share.
    pub(super) fn keep_limit(&self, adds: &PagesByPool) -> Result<(), Fault> {
        let growth = kib_of(adds);
        if self.below_limit().is_none_or(|left| growth <= left) {
            return Ok(());
        }
        let mib = |kib: u64| kib / 1024;
        Err(Fault::new(
            Code::PagesLimit,
            format!(
                "growing by {} ({} MiB) beside the {} MiB that this agent has grown would take more than {} % of the {} MiB of \
                 this machine; ask for fewer pages, give some back (`vhost-agent reclaim`), or raise pools.max_percent",
                describe(adds),
                mib(growth),
                mib(kib_of(self.grown)),
                self.policy.max_percent,
                mib(self.seen.memory.total_kib),
            ),
        ))
    }
}

/// KiB of `MemAvailable` that must remain: the larger one of `floor_mib`, and `floor_percent` of `total_kib`.
pub fn floor_kib(policy: &PoolPolicy, total_kib: u64) -> u64 {
    (policy.floor_mib * 1024).max(total_kib / 100 * policy.floor_percent)
}

fn kib_of(pages: &PagesByPool) -> u64 {
    pages.iter().fold(0, |sum, (key, pages)| sum.saturating_add(key.size.kib_of(*pages)))
}

fn describe(pages: &PagesByPool) -> String {
    let parts: Vec<String> =
        pages.iter().map(|(key, n)| format!("{n} pages of {} on {}", key.size, key.node)).collect();
    parts.join(" and ")
}
