//! Settings with their defaults, and the policies that planners and owners take from them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::access::{Access, MaybeAddress, Tls};
use super::fallback;
use super::outgoing::EgressSettings;
use super::registry;
use crate::model::fallback::FallbackAddress;
use crate::model::node::Exposure;
use crate::model::policy::{
    CallbackPolicy, EnginePolicy, HealPolicy, HealthPolicy, HttpPolicy, LibvirtPolicy, MountPolicy,
    PoolPolicy, ReportPolicy, StoragePolicy, TargetPolicy, TargetSettings, VolumePolicy,
};
use crate::model::registry::{RegistryLogins, RegistryPolicy, registry_of};
use crate::model::url::HttpUrl;

/// Settings of the agent, as the TOML file has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Listen address; `[::]` is dual stack and falls back to IPv4 where IPv6 is off.
    pub listen: SocketAddr,
    /// Address of `/healthz`, `/readyz` and `/metrics` without access control; empty: the main listener.
    pub admin_listen: MaybeAddress,
    /// Folder of state that survives a reboot.
    pub state_dir: PathBuf,
    /// Folder of state for the current boot only; a reboot empties it.
    pub run_dir: PathBuf,
    /// Folder of logs of processes that the agent runs: the package manager, a `dockerd` without systemd.
    pub log_dir: PathBuf,
    /// Address of the legacy agent (kvmagent), `http://host:port`, for requests that this agent does not serve; empty:
    /// none.
    pub fallback_url: String,
    /// Agent's own log.
    pub log: Log,
    pub access: Access,
    /// TLS of the listener.
    pub tls: Tls,
    /// Limits of the HTTP server.
    pub http: HttpPolicy,
    /// Delivery of task results to callback addresses.
    pub callbacks: CallbackPolicy,
    /// Status reports to the controller.
    pub report: ReportPolicy,
    /// Egress settings.
    pub outgoing: EgressSettings,
    /// Hugepage pools.
    pub pools: PoolPolicy,
    /// Hugetlbfs mounts.
    pub mount: MountPolicy,
    /// Docker engine.
    pub engine: EnginePolicy,
    /// Hook for libvirt.
    pub libvirt: LibvirtPolicy,
    /// Client of the storage, where no legacy agent looks after it.
    pub storage: StoragePolicy,
    pub target: TargetSettings,
    /// Health probes of targets.
    pub health: HealthPolicy,
    pub volume: VolumePolicy,
    /// Restart of targets.
    pub heal: HealPolicy,
    /// Logins at image registries.
    pub registry: RegistryLogins,
}

/// Agent's own log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,vhost_agent::agent=debug`.
    pub level: String,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `Human` on a terminal, `Journald` under systemd, `Json` elsewhere.
    Auto,
    /// Text lines for people to read.
    Human,
    /// JSON, an object per line.
    Json,
    /// journald's own protocol.
    Journald,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            listen: SocketAddr::from(([0u16; 8], 7070)),
            admin_listen: MaybeAddress::default(),
            state_dir: PathBuf::from("/var/lib/vhost-agent"),
            run_dir: PathBuf::from("/run/vhost-agent"),
            log_dir: PathBuf::from("/var/log/vhost-agent"),
            fallback_url: String::new(),
            log: Log::default(),
            access: Access::default(),
            tls: Tls::default(),
            http: HttpPolicy::default(),
            callbacks: CallbackPolicy::default(),
            report: ReportPolicy::default(),
            outgoing: EgressSettings::default(),
            pools: PoolPolicy::default(),
            mount: MountPolicy::default(),
            engine: EnginePolicy::default(),
            libvirt: LibvirtPolicy::default(),
            storage: StoragePolicy::default(),
            target: TargetSettings::default(),
            health: HealthPolicy::default(),
            volume: VolumePolicy::default(),
            heal: HealPolicy::default(),
            registry: RegistryLogins::new(),
        }
    }
}

impl Log {
    /// Finds an invalid `level`: the key and the reason.
    fn problem(&self) -> Option<(&'static str, String)> {
        let wrong = |why: String| {
            let level = &self.level;
            Some(("log.level", format!("'{level}' is no level or filter: {why}")))
        };
        if let Err(e) = EnvFilter::builder().parse(&self.level) {
            return wrong(e.to_string());
        }
        // `EnvFilter` takes a bare word that is no level for the name of a module, and would silence all other modules.
        let mut words = self.level.split(',').map(str::trim);
        let bare = |word: &&str| !word.contains(['=', '[', ']', '{', '}', '"']);
        match words.find(|word| bare(word) && word.parse::<LevelFilter>().is_err()) {
            Some(word) => {
                wrong(format!("'{word}' is none of off, error, warn, info, debug, trace"))
            }
            None => None,
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Auto, level: "info".to_string() }
    }
}

impl Settings {
    /// Collects the settings that the owners of targets follow.
    pub fn target_policy(&self) -> TargetPolicy {
        TargetPolicy {
            target: self.target.clone(),
            health: self.health.clone(),
            volumes: self.volume.clone(),
            heal: self.heal,
            registries: RegistryPolicy {
                logins: self.registry.clone(),
                engine: self.engine.clone(),
            },
            image_folder: self.state_dir.join("images"),
        }
    }

    /// Addresses that the node has to reach by the settings, each with its use. Names are left out: asking for their
    /// addresses could wait.
    pub fn needed_addresses(&self) -> Vec<(String, IpAddr)> {
        let of_url = |url: &str| url.parse::<HttpUrl>().ok()?.address();
        let of_registry = |name: &str| {
            let with_port = || Some(name.parse::<SocketAddr>().ok()?.ip());
            name.parse().ok().or_else(with_port)
        };
        let urls = [
            ("the controller (report.url)", &self.report.url),
            ("the server of target.image_url", &self.target.image_url),
        ];
        let registries = registry_of(&self.target.image).into_iter();
        let registries = registries.chain(self.registry.keys().map(String::as_str));
        let of_urls = urls.into_iter().filter_map(|(it, url)| Some((it, of_url(url)?)));
        let all = of_urls.chain(registries.filter_map(|it| Some(("a registry", of_registry(it)?))));
        all.map(|(it, address)| (it.to_string(), address)).collect()
    }

    /// Computes the exposure of an agent with these settings that listens at `listen`.
    pub fn exposure(&self, listen: SocketAddr) -> Exposure {
        let rules = self.access.rules(&self.tls);
        let socket = Some(&self.access.socket).filter(|path| !path.is_empty()).cloned();
        Exposure {
            listen: listen.to_string(),
            tls: !self.tls.certificate.is_empty(),
            client_certificates: rules.certificates,
            tokens: rules.tokens,
            certificate_names: !self.access.certificate.is_empty(),
            allow: rules.allow,
            open: rules.open,
            admin_listen: self.admin_listen.0.map(|address| address.to_string()),
            socket,
            loopback: listen.ip().is_loopback(),
            warnings: Vec::new(),
        }
        .with_warnings()
    }

    /// Parses `fallback_url`; `None` if it is empty. An invalid URL is refused when the settings are loaded.
    pub fn fallback(&self) -> Option<FallbackAddress> {
        self.fallback_url.parse().ok()
    }

    /// Finds the first invalid setting of the merged settings: its key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let http = &self.http;
        let callbacks = &self.callbacks;
        let at_least_one = [
            ("http.max_connections", http.max_connections),
            ("http.max_tasks", http.max_tasks),
            ("http.body_limit_kib", http.body_limit_kib),
            ("callbacks.max_pending", callbacks.max_pending),
            ("callbacks.parallel", callbacks.parallel),
        ];
        let spans = [
            ("http.header_timeout", http.header_timeout),
            ("http.body_timeout", http.body_timeout),
            ("http.write_timeout", http.write_timeout),
            ("callbacks.first_delay", callbacks.first_delay),
            ("callbacks.max_delay", callbacks.max_delay),
            ("callbacks.attempt_timeout", callbacks.attempt_timeout),
            ("report.interval", self.report.interval),
            ("report.timeout", self.report.timeout),
            ("report.first_delay", self.report.first_delay),
            ("report.max_delay", self.report.max_delay),
            ("report.unknown_delay", self.report.unknown_delay),
            ("pools.write_timeout", self.pools.write_timeout),
            ("engine.ping_timeout", self.engine.ping_timeout),
            ("engine.ready_timeout", self.engine.ready_timeout),
            ("engine.install_timeout", self.engine.install_timeout),
            ("storage.heartbeat_timeout", self.storage.heartbeat_timeout),
            ("target.call_timeout", self.target.call_timeout),
            ("target.load_timeout", self.target.load_timeout),
            ("target.ready_timeout", self.target.ready_timeout),
            ("target.stall_timeout", self.target.stall_timeout),
            ("health.timeout", self.health.timeout),
            ("health.deep_timeout", self.health.deep_timeout),
        ];
        let absolute = [
            ("mount.path", &self.mount.path_2m),
            ("mount.path_1g", &self.mount.path_1g),
            ("engine.socket", &self.engine.socket),
            ("engine.daemon_json", &self.engine.daemon_json),
            ("engine.pid_file", &self.engine.pid_file),
        ];
        const MOST: usize = 1_000_000;
        const DAYS_30: Duration = Duration::from_secs(30 * 24 * 3600);
        let count = at_least_one
            .iter()
            .find(|(_, value)| !(1..=MOST).contains(value))
            .map(|(key, value)| (*key, format!("{value} is not between 1 and {MOST}")));
        let span = spans
            .iter()
            .find(|(_, span)| span.is_zero() || *span > DAYS_30)
            .map(|(key, span)| (*key, format!("{span:?} is not between 1ms and 30days")));
        let path = absolute
            .iter()
            .find(|(_, path)| !path.starts_with('/') || path.contains("/../") || path.contains(','))
            .map(|(key, path)| (*key, format!("'{path}' is not a plain absolute path")));
        let percent = [
            ("pools.floor_percent", self.pools.floor_percent),
            ("pools.max_percent", self.pools.max_percent),
        ]
        .iter()
        .find(|(_, percent)| *percent > 100)
        .map(|(key, percent)| (*key, format!("{percent} is more than 100")));
        let floor = (self.pools.floor_mib > 1 << 40).then(|| {
            ("pools.floor_mib", format!("{} MiB is no machine's memory", self.pools.floor_mib))
        });
        let reserve = (self.pools.arrival_reserve > 1 << 33).then(|| {
            let text = format!("{} pages are no machine's memory", self.pools.arrival_reserve);
            ("pools.arrival_reserve", text)
        });
        let whole = count.or(span).or(path).or(percent).or(floor).or(reserve);
        let whole = whole
            .or_else(|| self.log.problem().or_else(|| self.report.problem()))
            .or_else(|| self.target.problem().or_else(|| self.health.problem()))
            .or_else(|| self.volume.problem().or_else(|| self.heal.problem()))
            .or_else(|| self.storage.problem().or_else(|| self.libvirt.problem()));
        whole
            .or_else(|| self.tls.problem().or_else(|| self.access.problem(&self.tls)))
            .or_else(|| registry::problem(&self.registry))
            .or_else(|| fallback::problem(&self.fallback_url, self.listen))
    }
}

/// Finds the first duration in `spans` below its minimum: its key and the reason. Each entry is (key, value, minimum).
pub(super) fn too_short<const N: usize>(
    spans: [(&'static str, Duration, Duration); N],
) -> Option<(&'static str, String)> {
    let mut short = spans.into_iter().filter(|(_, span, least)| span < least);
    short.next().map(|(key, span, least)| (key, format!("{span:?} is less than {least:?}")))
}
