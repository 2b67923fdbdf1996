//! Deep probe: verification of a target's data path by I/O through a controller, which nothing less can verify (field
//! note 12).
//!
//! ```text
//! prove ─▸ capabilities ─▸ leftovers removed ─▸ canary made ─▸ write, flush, read, compare
//!                                                     └─▸ disconnected, session gone ─▸ canary removed
//! ```
//!
//! Each probe uses a disk of the agent's own (`canary`) as a virtual machine would (`handshake`, `disk`), and connects
//! to no other vhost socket. Only one probe of a target runs at a time; callers that come meanwhile get its result. A
//! probe runs in a task of its own, so that a caller that goes away does not interrupt it. The I/O has to end within
//! three fifths of the time limit; the rest is for cleaning up.

mod canary;
mod disk;
mod handshake;
mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use canary::{Canary, clear_leftovers, rpc_fault};
use disk::{DISK, DiskError, MEMORY, Times};
pub use served::ServedTarget;

use crate::host::shared_memory::{Pages, SharedMemory};
use crate::host::{HostError, Root};
use crate::model::buffers::NOT_STARTED;
use crate::model::code::Code;
use crate::model::deep::{DeepHealth, MemoryKind, ProvenIo};
use crate::model::fault::{Fault, chain};
use crate::model::path::CleanPath;
use crate::spdk::{Sockets, Spdk};

/// Methods that a target must have for a canary.
const NEEDED: [&str; 5] = [
    "bdev_malloc_create",
    "bdev_malloc_delete",
    "vhost_create_blk_controller",
    "vhost_delete_controller",
    "vhost_get_controllers",
];
/// Beginning of the built-in target's version; that target also accepts memory that is not hugepages.
const BUILT_IN: &str = "vhost-agent target";
/// Time limit for connecting to a socket that was just created, which may refuse connections at first.
const CONNECT: Duration = Duration::from_millis(500);
/// Time that the blocking thread gets to notice that its connection was shut down.
const NOTICE: Duration = Duration::from_millis(500);
/// Longest time from a connection to the start of its session: SPDK v24.01 looks once a second.
const START_TIME: Duration = Duration::from_millis(1500);
/// Pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(5);

type TakesMemory = fn(Pages) -> Result<SharedMemory, HostError>;

/// Deep probe of this node's targets; clones share the running probes.
#[derive(Debug, Clone)]
pub struct DeepProbe(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Root,
    sockets: Sockets,
    within: Duration,
    take: TakesMemory,
    made: AtomicU64,
    /// Numbers of the canaries in use.
    at_work: Mutex<BTreeSet<u64>>,
    /// Control sockets of the targets from which leftover canaries were removed.
    cleared: Mutex<BTreeSet<CleanPath>>,
    running: Mutex<BTreeMap<CleanPath, watch::Receiver<Option<DeepHealth>>>>,
}

impl DeepProbe {
    /// Probe for the targets of this node; `within` is the time limit of each run.
    pub fn new(root: &Root, sockets: Sockets, within: Duration) -> DeepProbe {
        DeepProbe::with_memory(root, sockets, within, |pages| SharedMemory::take(pages, MEMORY))
    }

    fn with_memory(
        root: &Root,
        sockets: Sockets,
        within: Duration,
        take: TakesMemory,
    ) -> DeepProbe {
        let (made, at_work, running) = (AtomicU64::default(), Mutex::default(), Mutex::default());
        let cleared = Mutex::default();
        let root = root.clone();
        DeepProbe(Arc::new(Inner { root, sockets, within, take, made, at_work, cleared, running }))
    }

    /// Probes the target with the control socket `control`. If a probe of that target is running, waits for its result
    /// instead.
    pub async fn prove(&self, control: &CleanPath) -> DeepHealth {
        let mut running = self.running(control);
        match running.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(deep)) => deep.clone(),
            _ => {
                let fault = Fault::new(Code::Stopping, "the probe was given up: call again");
                deep_health(Instant::now(), (None, Some(fault)))
            }
        }
    }

    fn running(&self, control: &CleanPath) -> watch::Receiver<Option<DeepHealth>> {
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        // The channel is closed if the probe's task ended without a result; then a new probe is started.
        if let Some(probe) = running.get(control).filter(|probe| probe.has_changed().is_ok()) {
            return probe.clone();
        }
        let (sender, receiver) = watch::channel(None);
        running.insert(control.clone(), receiver.clone());
        let (inner, control) = (self.0.clone(), control.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let came_to = inner.probe(&control, began).await;
            inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&control);
            sender.send_replace(Some(deep_health(began, came_to)));
        });
        receiver
    }
}

fn deep_health(began: Instant, (io, error): (Option<ProvenIo>, Option<Fault>)) -> DeepHealth {
    DeepHealth {
        ok: error.is_none(),
        at: humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
        duration_ms: milliseconds(began.elapsed()),
        io,
        error,
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl Inner {
    /// Probes the target once. Returns the result of the I/O, a fault, or both: the I/O may succeed and the canary
    /// stay.
    async fn probe(
        &self,
        control: &CleanPath,
        began: Instant,
    ) -> (Option<ProvenIo>, Option<Fault>) {
        // The probe has a connection of its own, which ends with it.
        let spdk = self.sockets.apart().at(&self.root.path(control.as_str()));
        let (first_by, io_by) = (began + self.within / 5, began + self.within * 3 / 5);
        let (memory, kind) = match self.prepare(&spdk, first_by).await {
            Ok(taken) => taken,
            Err(fault) => return (None, Some(fault)),
        };
        let number = self.begin();
        let at_work = || self.at_work().clone();
        clear_leftovers(&spdk, &self.root, at_work, Instant::now() + self.within / 5).await;
        let mut canary = Canary::new(&spdk, &self.root, number);
        let io = async {
            let paths = canary.make(&self.root, control, io_by).await?;
            let stream = connect(&paths, io_by).await?;
            let look = (io_by - self.within / 10).max(Instant::now() + START_TIME);
            let used = use_disk(stream, memory, io_by);
            tokio::pin!(used);
            let is_refused = tokio::select! {
                used = &mut used => return used,
                // The I/O is pinned and goes on; of a look that is dropped, the reply is passed over.
                it = canary.is_refused(look, io_by) => it,
            };
            used.await.map_err(|fault| match is_refused {
                true => Fault::new(fault.code, format!("{}: {NOT_STARTED}", fault.text)),
                false => fault,
            })
        };
        let io = io.await.map(|times| proven(times, kind));
        let gone = canary.remove(began + self.within).await;
        self.end(number);
        match (io, gone) {
            (Ok(io), gone) => (Some(io), gone.err()),
            (Err(fault), Ok(())) => (None, Some(fault)),
            (Err(fault), Err(stays)) => {
                let text = format!("{}; {}", fault.text, stays.text);
                (None, Some(Fault { code: fault.code, text }))
            }
        }
    }

    /// Allocates a number for a new canary, and marks it as in use.
    fn begin(&self) -> u64 {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        self.at_work().insert(number);
        number
    }

    fn end(&self, number: u64) {
        self.at_work().remove(&number);
    }

    /// Decides on the removal of leftovers from the target at `control`. If the last canary was removed (`went`),
    /// returns `true` unless that target is in `cleared`, and adds it. Otherwise the target is taken out of `cleared`,
    /// and the next call with `went` returns `true`.
    fn is_to_be_cleared(&self, control: CleanPath, went: bool) -> bool {
        let mut cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        match went {
            true => cleared.insert(control),
            false => {
                cleared.remove(&control);
                false
            }
        }
    }

    fn at_work(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the target has all methods of a probe, and allocates the memory for the I/O.
    async fn prepare(&self, spdk: &Spdk, by: Instant) -> Result<(SharedMemory, MemoryKind), Fault> {
        let within = by.saturating_duration_since(Instant::now());
        let (version, methods) = tokio::join!(spdk.version(within), spdk.methods(within));
        let (version, methods) =
            (version.map_err(|e| rpc_fault(&e))?, methods.map_err(|e| rpc_fault(&e))?);
        let lacks: Vec<&str> =
            NEEDED.into_iter().filter(|it| !methods.iter().any(|has| has == it)).collect();
        if !lacks.is_empty() {
            let text = format!(
                "I/O through {} cannot be proven: it has no {} (yet), and the probe needs a disk of its own",
                version.version,
                lacks.join(", no ")
            );
            return Err(Fault::new(Code::DeepImpossible, text));
        }
        let (take, built_in) = (self.take, version.version.starts_with(BUILT_IN));
        let taken = spawn_blocking(move || match take(Pages::Huge2M) {
            Err(_) if built_in => Ok((take(Pages::Ordinary)?, MemoryKind::Ordinary)),
            taken => Ok((taken?, MemoryKind::Hugepages)),
        });
        let taken: Result<_, HostError> = taken.await.map_err(|e| gave_up(&e))?;
        Ok(taken?)
    }
}

fn proven(times: Times, memory: MemoryKind) -> ProvenIo {
    let (write_ms, read_ms) = (milliseconds(times.write), milliseconds(times.read));
    ProvenIo { bytes: DISK as u64, write_ms, read_ms, memory }
}

fn gave_up(error: &tokio::task::JoinError) -> Fault {
    Fault::new(Code::Stopping, format!("the probe's thread was given up: {error}"))
}

/// Connects to the canary at one of `paths`, of which not every one need be visible from here.
async fn connect(paths: &[PathBuf], by: Instant) -> Result<UnixStream, Fault> {
    let by = by.min(Instant::now() + CONNECT);
    loop {
        let mut refused = String::new();
        for path in paths {
            match timeout_at(by, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => refused += &failure_text(path, &e.to_string()),
                Err(_) => refused += &failure_text(path, "no connection in time"),
            }
        }
        if Instant::now() >= by {
            let text = format!("the socket that the target just made cannot be reached{refused}");
            return Err(Fault::new(Code::DeepIoFailed, text));
        }
        sleep(PAUSE).await;
    }
}

fn failure_text(path: &Path, why: &str) -> String {
    format!("; {}: {why}", path.display())
}

/// Uses the disk on a blocking thread. The connection is shut down at the end of the I/O, or at the deadline `by`.
async fn use_disk(stream: UnixStream, memory: SharedMemory, by: Instant) -> Result<Times, Fault> {
    let open = || {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok((stream.try_clone()?, stream))
    };
    let (line, stream) = open().map_err(|e: std::io::Error| {
        Fault::new(Code::DeepIoFailed, format!("the vhost-user connection cannot be used: {e}"))
    })?;
    let mut work =
        spawn_blocking(move || disk::prove(stream, &memory, by.into_std()).map_err(io_fault));
    let ended = timeout_at(by, &mut work).await;
    // The thread may be waiting for a reply; shutting the connection down ends that wait.
    let _ = line.shutdown(Shutdown::Both);
    if let Ok(ended) = ended {
        return ended.map_err(|e| gave_up(&e))?;
    }
    let why = match timeout(NOTICE, work).await {
        Ok(Ok(Err(fault))) => format!(" ({})", fault.text),
        _ => String::new(),
    };
    let text = format!("I/O through the target was not done in time{why}");
    Err(Fault::new(Code::DeepIoFailed, text))
}

fn io_fault(error: DiskError) -> Fault {
    let code = match error {
        DiskError::Differs { .. } => Code::DeepDataDiffers,
        _ => Code::DeepIoFailed,
    };
    Fault::new(code, chain(&error))
}

#[cfg(test)]
#[path = "deep_tests.rs"]
mod tests;
