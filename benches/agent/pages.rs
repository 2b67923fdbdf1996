//! The machine's 2 MiB pages: how many there are, and as they were when the bench ends.

use std::fs;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The pool as it was found; dropped, it is so again.
pub(crate) struct Found {
    total: u64,
}

impl Found {
    /// Remembers the pool.
    pub(crate) fn now() -> Result<Found> {
        Ok(Found { total: counter("nr_hugepages")? })
    }

    /// One bare write of so many pages more.
    pub(crate) fn grow(&self, pages: u64) -> Result<()> {
        self.growth(pages)()
    }

    /// The same, to be done elsewhere.
    pub(crate) fn growth(&self, pages: u64) -> impl FnOnce() -> Result<()> + Send + use<> {
        let total = self.total + pages;
        move || write(total)
    }

    /// Whether so many pages more are there.
    pub(crate) fn expect(&self, pages: u64) -> Result<()> {
        let there = counter("nr_hugepages")?;
        if there != self.total + pages {
            bail!("the pool has {there} pages, not {}: others use it", self.total + pages);
        }
        Ok(())
    }

    /// Grows by so many pages and gives them back, on one CPU: who takes pages on the CPU that has given
    /// them back finds them in its caches, and before this it depended on who was measured last.
    pub(crate) fn level(&self, pages: u64, cpu: usize) -> Result<()> {
        let growth = self.growth(pages);
        let on_cpu = || {
            let mut cpus = CpuSet::new();
            cpus.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &cpus)?;
            growth()?;
            self.restore()
        };
        let broke = |_| anyhow!("the thread that levels broke off");
        std::thread::scope(|scope| scope.spawn(on_cpu).join().map_err(broke))?
    }

    /// Gives back what was grown.
    pub(crate) fn restore(&self) -> Result<()> {
        write(self.total)
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        let _ = self.restore();
    }
}

/// Pages that a call has to want so that it grows the pool by `more`.
pub(crate) fn wanted(more: u64) -> Result<u64> {
    Ok((counter("free_hugepages")? + more).saturating_sub(counter("resv_hugepages")?))
}

fn write(pages: u64) -> Result<()> {
    let path = format!("{POOL}/nr_hugepages");
    let mut file = fs::OpenOptions::new().write(true).open(&path)?;
    let text = pages.to_string();
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(|| path)
}

fn counter(name: &str) -> Result<u64> {
    let path = format!("{POOL}/{name}");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim().parse().with_context(|| format!("{path}: {text}"))
}
