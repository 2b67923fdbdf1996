//! Owners of the node, wired to their observers and appliers: the agent without its listeners.

use std::collections::BTreeSet;
use std::future::ready;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::agent::apply::dependencies::DependencyApplier;
use crate::agent::apply::engine::EngineApplier;
use crate::agent::apply::memory::MemoryApplier;
use crate::agent::apply::target::TargetApplier;
use crate::agent::apply::volumes::VolumeApplier;
use crate::agent::domains::Domains;
use crate::agent::engine::EngineHandle;
use crate::agent::events::Events;
use crate::agent::memory::{DownTargets, MemoryWork};
use crate::agent::node::Node;
use crate::agent::observe::engine::{EngineObserver, Needed};
use crate::agent::observe::figures::Figures;
use crate::agent::observe::guests::GuestObserver;
use crate::agent::observe::libvirt::DomainObserver;
use crate::agent::observe::memory::MemoryObserver;
use crate::agent::observe::node::NodeObserver;
use crate::agent::observe::storage::StorageObserver;
use crate::agent::observe::target::TargetObserver;
use crate::agent::observe::volumes::VolumeObserver;
use crate::agent::pools::Pools;
use crate::agent::prepare::Prepare;
use crate::agent::progress_sink::ProgressSink;
use crate::agent::status::{self, Reports};
use crate::agent::storage::StorageClient;
use crate::agent::{guests, idle_release, legacy_calls, reservations};
use crate::api::metrics::Metrics;
use crate::api::refusals::Refusals;
use crate::config::Settings;
use crate::controller::identity::Identities;
use crate::controller::report::Tally;
use crate::docker::client::{Consent, Contact, DockerClient, Refusal};
use crate::health::deep::DeepProbe;
use crate::host::engine_process::is_unit_of;
use crate::host::engine_socket::{listening_unit, podman_socket};
use crate::host::mounts::hugetlb_mounts;
use crate::host::socket_place::in_folder;
use crate::host::spawn::{HostWide, Processes};
use crate::host::systemd::Systemd;
use crate::host::{Root, facts};
use crate::model::bounds::{Paths, authorize_target, authorize_volume};
use crate::model::engine::Init;
use crate::model::guest::Guests;
use crate::model::identity::HostIdentity;
use crate::model::policy::EnginePolicy;
use crate::model::target::TargetKind;
use crate::model::units::PageSize;
use crate::spdk::Sockets;
use crate::store::Store;
use crate::targets::desired::DesiredTargets;
use crate::targets::observer::{EngineNews, Observers, Probe};
use crate::targets::{Exits, Parts, Statuses, Targets};
use crate::watchdog::Watchdog;

/// Longest wait for systemd's word on the engine's unit before a connection to the engine is made.
const SYSTEMD_WAIT: Duration = Duration::from_secs(1);

/// Owners of this node, started.
pub(super) struct Core {
    pub prepare: Prepare,
    /// Owner of the hugepage pools.
    pub pools: Pools,
    /// Observer of the node.
    pub node: Node,
    /// Observer of virtual machines.
    pub domains: Domains,
    /// Owners of the targets.
    pub targets: Targets,
    pub desired: DesiredTargets,
    /// Events for their subscribers.
    pub events: Events,
    /// Statuses of targets, with their volumes.
    pub statuses: Statuses,
    /// Progress of work in flight.
    pub progress: ProgressSink,
    pub store: Store,
    pub(super) root: Root,
    pub(super) processes: Processes,
    /// Spawner of programs that change the whole machine.
    host_wide: HostWide,
    memory: MemoryObserver,
    probe: Arc<Probe<DockerClient>>,
    news: EngineNews,
    guests: watch::Sender<Arc<Guests>>,
}

impl Core {
    /// Starts the owners. The caller holds the node's lock, or only reads.
    ///
    /// # Errors
    /// When the kernel's counters or the state cannot be read.
    pub(super) fn start(
        settings: &Settings,
        root: &Path,
        store: Store,
        identity: watch::Receiver<HostIdentity>,
        watchdog: &Watchdog,
    ) -> Result<Core> {
        let root = Root::new(root);
        let progress = ProgressSink::default();
        let desired = DesiredTargets::open(store.clone(), &settings.target)?;
        let events = Events::default();
        let statuses = Statuses::new(events.clone());
        let memory = MemoryObserver::new(&root)?;
        let systemd = Arc::new(Systemd::new());
        // Changes of the whole machine go through its PID 1 where that is systemd.
        let first = (facts::init(&root) == Init::Systemd).then(|| systemd.clone());
        let applier =
            MemoryApplier::new(&root, settings.mount.clone())?.with_systemd(first.clone());
        let pool_policy = settings.pools.clone();
        let write_timeout = pool_policy.write_timeout;
        let work = MemoryWork::new(
            memory.clone(),
            applier,
            pool_policy,
            settings.mount.clone(),
            store.clone(),
            progress.clone(),
        )?;
        let targets = DownTargets {
            desired: desired.watch(),
            statuses: statuses.watch(),
            policy: settings.target.clone(),
        };
        let work = work.with_targets(targets);
        let pools = Pools::start(work, write_timeout, watchdog.register());

        let policy = settings.engine.clone();
        let socket = root.path(&policy.socket).display().to_string();
        let consent = consent(&root, &policy, first.clone());
        let docker = Arc::new(DockerClient::new(socket.clone(), consent));
        let sockets = Sockets::default();
        let policy_of_targets = settings.target_policy();
        let guests = watch::Sender::default();
        let probe = Probe::new(&root, docker.clone(), sockets.apart(), policy_of_targets.clone());
        let (probe, news) = (Arc::new(probe), EngineNews::default());
        let observers = Observers::new(probe.clone(), news.clone(), desired.watch());
        let processes = Processes::new(&settings.log_dir);
        let host_wide = HostWide::new(processes.clone(), first);
        let spawner = host_wide.clone();
        let observer = EngineObserver::new(&root, policy.clone(), docker.clone(), systemd.clone());
        let client_conf = settings.target.client_conf.clone();
        let needed = Needed::new(settings.needed_addresses(), identity, client_conf);
        let observer = Arc::new(observer.with_needed(needed));
        let applier = EngineApplier::new(&root, policy.clone(), docker.clone(), systemd, spawner);
        let engine = EngineHandle::start(
            observer.clone(),
            applier,
            policy.clone(),
            progress.clone(),
            watchdog.register(),
        );
        let volumes = policy_of_targets.volumes.clone();
        let alone = policy.manage && facts::init(&root) != Init::Systemd;
        let parts = Parts {
            observer: TargetObserver::new(
                &root,
                docker.clone(),
                sockets.clone(),
                policy_of_targets.clone(),
            ),
            applier: TargetApplier::new(
                &root,
                docker.clone(),
                sockets.clone(),
                policy_of_targets.clone(),
            ),
            volume_observer: VolumeObserver::new(&root, sockets.clone(), volumes),
            volume_applier: VolumeApplier::new(&root, sockets.clone(), policy_of_targets.clone()),
            policy: policy_of_targets,
            desired: desired.clone(),
            exits: Exits::new(store.clone()),
            probe: probe.clone(),
            observers,
            statuses: statuses.clone(),
            progress: progress.clone(),
            pages: pools.watch(),
            guests: guests.subscribe(),
            engine: alone.then(|| engine.clone()),
            deep: DeepProbe::new(&root, sockets, settings.health.deep_timeout),
        };
        let targets = Targets::new(parts, watchdog.clone());
        let prepare = Prepare::start(pools.clone(), engine, policy.manage, watchdog.register());
        let node =
            Node::start(NodeObserver::new(&root, memory.clone()), pools.clone(), observer, socket);
        Ok(Core {
            prepare,
            domains: Domains::new(DomainObserver::new(&root, memory.clone()), pools.clone()),
            pools,
            node,
            targets,
            desired,
            events,
            statuses,
            progress,
            store,
            root,
            processes,
            host_wide,
            memory,
            probe,
            news,
            guests,
        })
    }

    /// Starts publishing the node's status.
    pub(super) fn report(&self, identities: &Identities, watchdog: &Watchdog) -> Result<Reports> {
        let sources = status::Sources {
            statuses: self.statuses.watch(),
            desired: self.desired.watch(),
            records: self.pools.watch(),
            identity: identities.watch(),
            memory: self.memory.clone(),
            events: self.events.clone(),
        };
        Ok(status::start(sources, watchdog.register())?)
    }

    /// Builds the client of the storage, for a controller without a legacy agent.
    pub(super) fn storage(&self, settings: &Settings) -> StorageClient<HostWide> {
        let (conf, spawner) = (settings.target.client_conf.clone(), || self.host_wide.clone());
        let observer = StorageObserver::new(&self.root, spawner(), conf);
        let applier = DependencyApplier::new(&self.root, spawner(), settings.engine.clone());
        StorageClient::new(observer, applier, settings.storage.clone())
    }

    /// Builds the agent's metrics.
    pub(super) fn metrics(&self, tally: Arc<Tally>, refusals: Refusals) -> Metrics {
        let figures = Figures::new(&self.root, self.memory.clone());
        Metrics::new(figures, self.pools.watch(), self.statuses.watch(), tally, refusals)
    }

    /// Warns of desired targets and volumes that the allow-lists do not permit. They go on, but a new call for one
    /// would be refused.
    pub(super) fn warn_of_unlisted(&self, settings: &Settings) {
        let desired = self.desired.watch().borrow().clone();
        let settings = &settings.target;
        let targets = desired.targets.values().map(|spec| {
            (
                format!("target {}", spec.name),
                authorize_target(spec, None, settings, Paths::AsNamed),
            )
        });
        let volumes = desired.volumes.iter().flat_map(|(target, specs)| {
            specs.values().map(move |spec| {
                let authorized = authorize_volume(spec, None, settings, Paths::AsNamed);
                (format!("volume {} of target {target}", spec.name), authorized)
            })
        });
        for (name, authorized) in targets.chain(volumes) {
            if let Err(fault) = authorized {
                tracing::warn!(
                    code = %fault.code,
                    "{name} is kept, but the settings would refuse a new deploy or activation of it: {fault}"
                );
            }
        }
    }

    /// Watches desired state and follows the engine's events for as long as the agent runs.
    pub(super) fn watch_targets(&self, settings: &Settings) {
        tokio::spawn(self.events.clone().follow_work(self.progress.clone()));
        let within = settings.target.call_timeout;
        tokio::spawn(self.news.clone().follow(self.probe.clone(), within));
        let (keep, after) = (settings.volume.keep_pages, settings.volume.give_back_after);
        tokio::spawn(idle_release::follow(self.desired.watch(), self.pools.clone(), keep, after));
        tokio::spawn(reservations::follow(self.pools.clone(), self.memory.clone()));
        if settings.fallback().is_some() {
            tokio::spawn(legacy_calls::follow(self.pools.clone()));
        }
        let observer = GuestObserver::new(&self.root, settings.volume.clone());
        let pause = settings.volume.look_interval;
        let statuses = self.statuses.watch();
        tokio::spawn(guests::follow(observer, statuses, pause, self.guests.clone()));
        self.targets.observe_all();
    }

    /// Logs now a fault that would only show after a crash of a target: folders without write access, in
    /// which the agent has to remove a dead target's remains and make the next one's sockets.
    pub(super) fn log_closed_folders(&self) {
        let wanted: Vec<_> = self.desired.watch().borrow().targets.values().cloned().collect();
        let root = self.root.clone();
        // Not awaited: one of the folders may lie on a disk that hangs.
        drop(tokio::task::spawn_blocking(move || {
            let sockets = wanted.iter().map(|spec| spec.socket_dir.as_str().to_string());
            let mut folders: BTreeSet<String> = sockets.collect();
            if wanted.iter().any(|spec| spec.kind != TargetKind::BuiltIn) {
                let mounts = hugetlb_mounts(&root).unwrap_or_default();
                // The mount is chosen as for each target.
                let used = mounts.into_iter().find(|it| it.is_good_for(PageSize::MIB_2));
                folders.extend(used.map(|mount| mount.path));
            }
            for why in folders.iter().filter_map(|folder| in_folder(&root, folder)) {
                tracing::error!("a desired target could not be restarted if it exits: {why}");
            }
        }));
    }
}

/// Consent to contact the engine. With `systemd` as PID 1 the engine must listen itself, and a new connection is not
/// made to an engine that is being stopped. systemd says so before it sends the signal, and so before the engine stops
/// to accept. Its unit is the one that it runs in, which need not be that of the settings, unless that unit is of something
/// else from which it was started. Podman, which systemd starts upon a connection, is not contacted.
fn consent(root: &Root, policy: &EnginePolicy, systemd: Option<Arc<Systemd>>) -> Consent {
    let Some(systemd) = systemd else { return Arc::new(|_| Box::pin(ready(Ok(())))) };
    let (root, policy) = (root.clone(), policy.clone());
    // One look at a time, also where one hangs: they take one thread.
    let looks = Arc::new(Semaphore::new(1));
    let last = Arc::new(AtomicU32::default());
    Arc::new(move |contact| {
        let (root, policy, systemd) = (root.clone(), policy.clone(), systemd.clone());
        let (turn, last) = (looks.clone().acquire_owned(), last.clone());
        Box::pin(async move {
            let turn = turn.await;
            let of_look = policy.clone();
            let look = move || {
                let policy = of_look;
                let unit = match podman_socket(&root, &policy.socket) {
                    Some(path) => Err(Refusal::NotDocker(format!("podman ({path})"))),
                    None => listening_unit(&root, &policy, &last).ok_or(Refusal::StartsEngine),
                };
                drop(turn);
                unit
            };
            let name = spawn_blocking(look).await.unwrap_or(Err(Refusal::StartsEngine))?;
            if contact == Contact::Request {
                return Ok(());
            }
            // A message bus that hangs must not make the engine unreachable.
            match timeout(SYSTEMD_WAIT, systemd.unit(&name)).await {
                Ok(Ok(unit)) if unit.active == "deactivating" && is_unit_of(&unit, &policy) => {
                    Err(Refusal::StartsEngine)
                }
                _ => Ok(()),
            }
        })
    })
}
