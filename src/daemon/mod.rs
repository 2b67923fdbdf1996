//! Composition root: the only module that names every concrete type; `adapters` has the adapters between modules.
//!
//! `Core` is the agent without its listeners: the owners and their handles. [`serve`] adds HTTP, the
//! outbox, systemd's readiness and watchdog. [`InProcess`] adds the native routes alone, for a command.

mod adapters;
mod guards;
mod listeners;
mod owners;
mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use axum::Router;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use self::adapters::{StorageAdapter, VersionsAdapter, fallback};
use self::guards::{GuardFiles, GuardFilesRead};
use self::listeners::Listeners;
pub use self::listeners::socket_path;
use self::owners::Core;
use crate::agent::observe::hypervisor::Hypervisor;
use crate::agent::status::Reports;
use crate::api::metrics::Metrics;
use crate::api::refusals::Refusals;
use crate::api::serve::Endpoint;
use crate::api::{self, AgentPhase, Api, Native};
use crate::config::Settings;
use crate::controller::client::ControllerClient;
use crate::controller::deliver;
use crate::controller::identity::Identities;
use crate::controller::outbox::{Offering, Outbox};
use crate::controller::progress_posts::ProgressPosts;
use crate::controller::reaches::Reaches;
use crate::controller::report::{self, Tally};
use crate::host::own_process::{forbid_dumps, give_memory_back};
use crate::host::{Root, facts};
use crate::model::fault::chain;
use crate::model::identity::HostIdentity;
use crate::model::node::Exposure;
use crate::model::policy::HttpPolicy;
use crate::store::{Durability, Lock, Store, StoreError};
use crate::watchdog::Watchdog;

/// Folder of state until the next boot: by default below `--root`, the observed machine, which may not
/// be this one.
pub fn run_dir(settings: &Settings, root: &Path) -> PathBuf {
    let usual = Settings::default().run_dir;
    match settings.run_dir == usual {
        true => Root::new(root).path(usual),
        false => settings.run_dir.clone(),
    }
}

/// Host name of the machine; empty if it cannot be read.
pub fn hostname(root: &Path) -> String {
    facts::hostname(&Root::new(root)).unwrap_or_default()
}

/// Timeout of waiting for another command that holds the node's lock.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Interval of trying the lock.
pub const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Delay from the end of some work until free memory is returned to the kernel.
const TIDY_AFTER: Duration = Duration::from_secs(10);
/// Time for deliveries while the agent stops, if all results are on the disk.
const LAST_OFFER: Duration = Duration::from_millis(500);
/// Time for deliveries while the agent stops, if a result is in memory only: its caller is still there, or calls again.
const LAST_OFFERS: Duration = Duration::from_secs(3);
/// Timeout for an interrupted pool growth to be recorded or given back; with the drain it fits into
/// the unit's TimeoutStopSec.
const POOLS_STOP: Duration = Duration::from_secs(2);

/// Takes the node's lock; waits for a command that holds it, not for a running agent.
///
/// # Errors
/// [`StoreError::Locked`] with the holder, and other errors of the store.
pub async fn take_lock(store: &Store) -> Result<Lock, StoreError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match store.lock() {
            Err(StoreError::Locked { holder, .. })
                if url_in(&holder).is_none() && Instant::now() < deadline =>
            {
                sleep(LOCK_PAUSE).await;
            }
            taken => return taken,
        }
    }
}

/// Extracts the lock holder's listen URL, if it is a running agent: `http://…` or `https://…`.
pub fn url_in(holder: &str) -> Option<&str> {
    holder.split_once(", ").map(|(_, url)| url).filter(|url| url.contains("://"))
}

/// Checks the access settings and the files that they name; returns a warning for the operator, if any.
///
/// # Errors
/// TLS or tokens that cannot be used.
pub fn check_access(settings: &Settings) -> Result<Option<String>> {
    let GuardFilesRead { tls, tokens } = GuardFiles::of(settings).read_now();
    let tls = tls.context("TLS cannot be used")?;
    tokens.context("the tokens cannot be used")?;
    Ok(tls.and_then(|(guard, _)| guard.warning(SystemTime::now())))
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the state, the address, another agent.
pub async fn serve(mut settings: Settings, root: PathBuf) -> Result<()> {
    forbid_dumps();
    let stop = Stop::listen().context("cannot listen for signals")?;
    let store = Store::open(&settings.state_dir, run_dir(&settings, &root))?;
    let mut lock = take_lock(&store).await?;
    lock.sign(None);
    if let Err(e) = store.sweep() {
        tracing::warn!(
            error = %chain(&e),
            "left-over files in {} or the run folder could not be removed or restored: {}",
            settings.state_dir.display(),
            chain(&e)
        );
    }
    let mut listeners = Listeners::open(&settings, &root).await?;
    let (address, socket) = (listeners.address, listeners.socket.take());
    let scheme = if listeners.tls { "https" } else { "http" };
    lock.sign(Some(&format!("{scheme}://{}", reachable(address))));

    let watchdog = watchdog();
    let identities = Arc::new(Identities::open(store.clone())?);
    let core = Core::start(&settings, &root, store, identities.watch(), &watchdog)?;
    core.watch_targets(&settings);
    core.warn_of_unlisted(&settings);
    core.log_closed_folders();
    let (phase, watch_phase) = watch::channel(AgentPhase::Starting);
    let reaches = Reaches::new(settings.outgoing.to.clone(), identities.clone());
    let outbox = start_outbox(&settings, core.store.clone(), reaches.clone(), &watchdog)?;
    let reports = core.report(&identities, &watchdog)?;
    let (tally, refusals) = (Arc::default(), Refusals::default());
    let posting = (&*identities, reaches.clone());
    start_reporting(&settings, reports.clone(), posting, &tally, &watchdog);
    settings.http = listeners::affordable(settings.http);
    let parts = RouterParts {
        outbox: outbox.clone(),
        identities,
        reaches,
        reports,
        metrics: core.metrics(tally, refusals.clone()),
        exposure: listeners::exposure(&settings, &listeners, &root),
    };
    let access = parts.exposure.text();
    for warning in &parts.exposure.warnings {
        tracing::warn!("{warning}");
    }
    let api = known_to_handlers(&settings, &core, parts, watch_phase);
    let routers = api::routers(api, settings.admin_listen.0.is_some());
    let endpoints = listeners.endpoints(&settings, routers, &refusals);
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), access, "vhost-agent listens on {address}");
    let deadline = run_until_stopped(endpoints, settings.http, (&core, &outbox), phase, stop).await;
    drop(socket);
    drain(&outbox, deadline).await;
    if !core.pools.stop(POOLS_STOP).await {
        tracing::warn!(
            "the change of a hugepage pool is not done {POOLS_STOP:?} after the stop: the agent exits, the kernel may \
             still complete the change"
        );
    }
    tracing::info!("stopped");
    drop(lock);
    Ok(())
}

fn watchdog() -> Watchdog {
    match sd_notify::watchdog_enabled() {
        Some(within) => Watchdog::new(within / 2, || {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }),
        None => Watchdog::default(),
    }
}

/// Parts that the handlers get besides the owners.
struct RouterParts {
    outbox: Outbox,
    identities: Arc<Identities>,
    reaches: Reaches,
    reports: Reports,
    metrics: Metrics,
    exposure: Exposure,
}

/// Builds the state of the native routes.
fn known_to_native_routes(
    settings: &Settings,
    core: &Core,
    exposure: Option<Exposure>,
    phase: watch::Receiver<AgentPhase>,
) -> Arc<Native> {
    Arc::new(Native {
        prepare: core.prepare.clone(),
        pools: core.pools.clone(),
        node: core.node.clone(),
        domains: core.domains.clone(),
        targets: core.targets.clone(),
        desired: core.desired.watch(),
        events: core.events.clone(),
        target_defaults: settings.target.clone(),
        pool_defaults: settings.pools.clone(),
        progress: core.progress.clone(),
        http: settings.http,
        exposure,
        phase,
    })
}

/// Native routes over owners in this process.
pub struct InProcess {
    pub router: Router,
    /// Sender of the agent's phase; dropping it ends the streams.
    _phase: watch::Sender<AgentPhase>,
}

impl InProcess {
    /// Starts the owners, for a command where no agent runs. The caller holds the node's lock, or only
    /// reads.
    ///
    /// # Errors
    /// When the kernel's counters or the state cannot be read.
    pub fn start(settings: &Settings, root: &Path, store: Store) -> Result<InProcess> {
        // It only feeds a finding, which an unreadable one must not make a failure of.
        let identity =
            store.read::<HostIdentity>(HostIdentity::FILE, Durability::Disk).ok().flatten();
        let identity = watch::Sender::new(identity.unwrap_or_default()).subscribe();
        let core = Core::start(settings, root, store, identity, &Watchdog::default())?;
        tokio::spawn(core.events.clone().follow_work(core.progress.clone()));
        let (_phase, phase) = watch::channel(AgentPhase::Serving);
        let router = api::v1::router(known_to_native_routes(settings, &core, None, phase));
        Ok(InProcess { router, _phase })
    }
}

/// Builds the state of the handlers.
fn known_to_handlers(
    settings: &Settings,
    core: &Core,
    parts: RouterParts,
    phase: watch::Receiver<AgentPhase>,
) -> Api {
    let hypervisor = Hypervisor::new(&core.root, core.processes.clone());
    let RouterParts { outbox, identities, reaches, reports, metrics, exposure } = parts;
    Api {
        native: known_to_native_routes(settings, core, Some(exposure), phase),
        progress_posts: ProgressPosts::new(
            identities.clone(),
            reaches.clone(),
            settings.report.timeout,
        ),
        outbox,
        identities,
        reaches,
        reports,
        hypervisor: Box::new(VersionsAdapter(hypervisor)),
        storage: Box::new(StorageAdapter(core.storage(settings))),
        fallback: fallback(settings),
        metrics,
    }
}

/// Serves, and becomes ready meanwhile. Returns once a stop was requested and the connections have ended; the result is
/// the deadline by which the tasks have to end too.
async fn run_until_stopped(
    endpoints: Vec<Endpoint>,
    limits: HttpPolicy,
    (core, outbox): (&Core, &Outbox),
    phase: watch::Sender<AgentPhase>,
    mut stop: Stop,
) -> Instant {
    let mut draining = phase.subscribe();
    let ready = async {
        tokio::select! {
            // Dropped when a stop is requested: the pools' owner goes on alone.
            () = start::become_ready(core, &phase) => {}
            // Cancel-safe: a phase that was not observed stays.
            _ = draining.wait_for(|phase| *phase == AgentPhase::Draining) => {}
        }
    };
    // Connections and tasks share one limit: systemd kills a service that takes much longer.
    let mut deadline = Instant::now();
    let stopped = async {
        let signal = stop.asked().await;
        deadline = Instant::now() + limits.drain_timeout;
        tracing::info!(
            signal,
            "{signal} was received, stopping: connections and tasks have {:?} to end (http.drain_timeout)",
            limits.drain_timeout
        );
        phase.send_replace(AgentPhase::Draining);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        // The listeners stay open while tasks end, so that a caller is told why it is refused.
        let _ = timeout_at(deadline, outbox.durable()).await;
        deadline
    };
    tokio::join!(api::serve::serve(endpoints, limits, stopped), ready);
    deadline
}

fn start_outbox(
    settings: &Settings,
    store: Store,
    reaches: Reaches,
    watchdog: &Watchdog,
) -> Result<Outbox> {
    let callbacks = &settings.callbacks;
    let offering = Offering { callbacks: callbacks.clone(), max_tasks: settings.http.max_tasks };
    let outbox = Outbox::open(offering, store, watchdog.register())?;
    let client = Arc::new(ControllerClient::default());
    let (timeout, parallel) = (callbacks.attempt_timeout, callbacks.parallel);
    let heartbeat = watchdog.register();
    tokio::spawn(deliver::run(outbox.clone(), client, reaches, timeout, parallel, heartbeat));
    tokio::spawn(tidy(outbox.clone()));
    Ok(outbox)
}

/// Reports the node's status to the controller, unless that is switched off.
fn start_reporting(
    settings: &Settings,
    reports: Reports,
    (identities, reaches): (&Identities, Reaches),
    tally: &Arc<Tally>,
    watchdog: &Watchdog,
) {
    if !settings.report.enabled {
        return;
    }
    let policy = settings.report.clone();
    let client = ControllerClient::default();
    let (identity, tally) = (identities.watch(), tally.clone());
    let heartbeat = watchdog.register();
    tokio::spawn(report::run(policy, (client, reaches), reports, identity, tally, heartbeat));
}

/// Returns to the kernel the memory that a burst of calls took.
async fn tidy(outbox: Outbox) {
    loop {
        outbox.wait_for_end().await;
        sleep(TIDY_AFTER).await;
        give_memory_back();
    }
}

/// Waits for running tasks until the deadline, then for the delivery of results: briefly where the next start can
/// deliver them too, longer where it cannot.
async fn drain(outbox: &Outbox, deadline: Instant) {
    let durable = timeout_at(deadline, outbox.durable()).await.is_ok();
    let last = if outbox.is_in_memory() { LAST_OFFERS } else { LAST_OFFER };
    let soon = deadline.min(Instant::now() + last);
    if durable && timeout_at(soon, outbox.empty()).await.is_ok() {
        return;
    }
    let (at_work, waiting) = outbox.load();
    tracing::warn!(
        at_work,
        waiting,
        "stopped with work unfinished or results undelivered ({at_work} tasks, {waiting} results): the next start \
         reports to the controller the outcome of calls that change the node"
    );
}

/// Address under which this machine reaches the listener.
fn reachable(address: std::net::SocketAddr) -> std::net::SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    address
}

/// Signals that request a stop.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Stop> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Stop {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            // Both are cancel-safe.
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
