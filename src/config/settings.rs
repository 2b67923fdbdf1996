//! The settings with their defaults, and what they mean for the planners.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::access::{Access, MaybeAddress, Tls};
use super::engine::Engine;
use super::fallback;
use super::outgoing::Outgoing;
use super::registry::{self, Registries};
use super::report::Report;
use super::target::{Health, Target};
use super::units::{Mode, Span};
use super::volume::{Heal, Volume};
use crate::model::policy::{EnginePolicy, MountPolicy, PoolPolicy, TargetDefaults, TargetPolicy};
use crate::model::registry::RegistryPolicy;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the agent listens; `[::]` is dual stack and falls back to IPv4 where IPv6 is off.
    pub listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are, without guards; empty: with everything else.
    pub admin_listen: MaybeAddress,
    /// What the agent remembers.
    pub state_dir: PathBuf,
    /// What it remembers until the next boot: a folder that a boot empties.
    pub run_dir: PathBuf,
    /// Logs of what the agent runs: the package manager, a `dockerd` without systemd.
    pub log_dir: PathBuf,
    /// Where everything goes that the agent does not serve: `http://host:port` of kvmagent; empty: nowhere.
    pub fallback_url: String,
    /// The agent's own log.
    pub log: Log,
    /// Who may call.
    pub access: Access,
    /// TLS of the listener.
    pub tls: Tls,
    /// Limits of the HTTP server.
    pub http: Http,
    /// Results that are called back.
    pub callbacks: Callbacks,
    /// What the controller is told unasked.
    pub report: Report,
    /// Whom the agent calls.
    pub outgoing: Outgoing,
    /// Hugepage pools.
    pub pools: Pools,
    /// The hugetlbfs mount.
    pub mount: Mount,
    /// Docker.
    pub engine: Engine,
    /// Targets.
    pub target: Target,
    /// How their health is known.
    pub health: Health,
    /// Their volumes.
    pub volume: Volume,
    /// How they are brought back.
    pub heal: Heal,
    /// Who pulls their images.
    pub registry: Registries,
}

/// The agent's own log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// In which form.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,vhost_agent::agent=debug`.
    pub level: String,
}

/// Forms of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human on a terminal, journald under systemd, JSON elsewhere.
    Auto,
    /// Lines for people.
    Human,
    /// A JSON object a line.
    Json,
    /// journald's own protocol.
    Journald,
}

/// Limits of the HTTP server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Connections at one time, of each listener; one peer has three quarters of them at most.
    pub max_connections: usize,
    /// Calls at work at one time that are called back, those that change the node and those that only look each
    /// by themselves; one more, and one that is beyond three quarters for its caller, is answered 503.
    pub max_tasks: usize,
    /// A request's body, in KiB.
    pub body_limit_kib: usize,
    /// How long a request's head may take, and how long a connection may lie idle.
    pub header_timeout: Span,
    /// How long a request's body may take.
    pub body_timeout: Span,
    /// How long a peer may take nothing of an answer.
    pub write_timeout: Span,
    /// How long work may go on after SIGTERM.
    pub drain_timeout: Span,
}

/// Results that are called back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Callbacks {
    /// How long a result is offered, restarts of the agent counted in.
    pub max_age: Span,
    /// Before the second attempt; doubled with each one after.
    pub first_delay: Span,
    /// The longest time between two attempts.
    pub max_delay: Span,
    /// How long one attempt may take.
    pub attempt_timeout: Span,
    /// Results that may wait, of calls that change the node and of those that only look each by themselves; a
    /// caller may have three quarters.
    pub max_pending: usize,
    /// Attempts at one time.
    pub parallel: usize,
}

/// Hugepage pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pools {
    /// Free 2 MiB pages wanted when a call names no number.
    pub default_pages: u64,
    /// `MemAvailable` that a growth must leave, in MiB …
    pub floor_mib: u64,
    /// … and in percent of `MemTotal`; the larger one counts.
    pub floor_percent: u64,
    /// Whether another node may give what one cannot, where a call does not say.
    pub move_shortfall: bool,
    /// Whether the page cache may be dropped when compaction was not enough.
    pub drop_page_cache: bool,
    /// How long one growth may take.
    pub write_timeout: Span,
}

/// The hugetlbfs mount that is made when there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mount {
    /// For 2 MiB pages.
    pub path: String,
    /// For 1 GiB pages.
    pub path_1g: String,
    /// Owner, by number.
    pub uid: u32,
    /// Group, by number.
    pub gid: u32,
    /// Mode, in octal.
    pub mode: Mode,
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
            http: Http::default(),
            callbacks: Callbacks::default(),
            report: Report::default(),
            outgoing: Outgoing::default(),
            pools: Pools::default(),
            mount: Mount::default(),
            engine: Engine::default(),
            target: Target::default(),
            health: Health::default(),
            volume: Volume::default(),
            heal: Heal::default(),
            registry: Registries::new(),
        }
    }
}

impl Log {
    /// What is wrong with the level.
    fn problem(&self) -> Option<(&'static str, String)> {
        let wrong = |why: String| {
            let level = &self.level;
            Some(("log.level", format!("'{level}' is no level or filter: {why}")))
        };
        if let Err(e) = EnvFilter::builder().parse(&self.level) {
            return wrong(e.to_string());
        }
        // A bare word that is no level would pass as the name of a module, and silence all others.
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

impl Default for Http {
    fn default() -> Http {
        Http {
            max_connections: 4096,
            max_tasks: 3072,
            body_limit_kib: 1024,
            header_timeout: Span::from_secs(30),
            body_timeout: Span::from_secs(30),
            write_timeout: Span::from_secs(30),
            drain_timeout: Span::from_secs(30),
        }
    }
}

impl Default for Callbacks {
    fn default() -> Callbacks {
        Callbacks {
            max_age: Span::from_secs(3600),
            first_delay: Span::from_secs(1),
            max_delay: Span::from_secs(60),
            attempt_timeout: Span::from_secs(15),
            max_pending: 4096,
            parallel: 16,
        }
    }
}

impl Default for Pools {
    fn default() -> Pools {
        Pools {
            default_pages: 1024,
            floor_mib: 1024,
            floor_percent: 5,
            move_shortfall: false,
            drop_page_cache: false,
            write_timeout: Span::from_secs(60),
        }
    }
}

impl Default for Mount {
    fn default() -> Mount {
        Mount {
            path: "/dev/hugepages2m".to_string(),
            path_1g: "/dev/hugepages1g".to_string(),
            uid: 0,
            gid: 0,
            mode: Mode(0o755),
        }
    }
}

impl Settings {
    /// The pool planner's share.
    pub fn pool_policy(&self) -> PoolPolicy {
        PoolPolicy {
            floor_kib: self.pools.floor_mib * 1024,
            floor_percent: self.pools.floor_percent,
            drop_page_cache: self.pools.drop_page_cache,
            write_timeout: self.pools.write_timeout.0,
        }
    }

    /// The mount planner's share.
    pub fn mount_policy(&self) -> MountPolicy {
        MountPolicy {
            path_2m: self.mount.path.clone(),
            path_1g: self.mount.path_1g.clone(),
            uid: self.mount.uid,
            gid: self.mount.gid,
            mode: self.mount.mode.0,
        }
    }

    /// The engine planner's share.
    pub fn engine_policy(&self) -> EnginePolicy {
        let engine = self.engine.clone();
        EnginePolicy {
            manage: engine.manage,
            install: engine.install,
            socket: engine.socket,
            unit: engine.unit,
            binary: engine.binary,
            daemon_json: engine.daemon_json,
            pid_file: engine.pid_file,
            require_iptables_false: engine.require_iptables_false,
            min_api: engine.min_api,
            ping_timeout: engine.ping_timeout.0,
            ping_max_age: engine.ping_max_age.0,
            ready_timeout: engine.ready_timeout.0,
            install_timeout: engine.install_timeout.0,
            lock_timeout: engine.lock_timeout.0,
            packages: engine.packages,
            install_args: engine.install_args,
        }
    }

    /// The target planner's share.
    pub fn target_policy(&self) -> TargetPolicy {
        let registries = RegistryPolicy {
            logins: registry::logins(&self.registry),
            allow_insecure: self.engine.insecure_registries,
            daemon_json: self.engine.daemon_json.clone(),
            pid_file: self.engine.pid_file.clone(),
            binary: self.engine.binary.clone(),
        };
        self.target.policy(&self.health, (&self.volume, &self.heal), &self.state_dir, registries)
    }

    /// What a call for a target means that does not say.
    pub fn target_defaults(&self) -> TargetDefaults {
        self.target.defaults()
    }

    /// What is wrong with the whole, as the key and the reason.
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
            ("target.call_timeout", self.target.call_timeout),
            ("target.load_timeout", self.target.load_timeout),
            ("target.ready_timeout", self.target.ready_timeout),
            ("target.stall_timeout", self.target.stall_timeout),
            ("health.timeout", self.health.timeout),
            ("health.deep_timeout", self.health.deep_timeout),
        ];
        let absolute = [
            ("mount.path", &self.mount.path),
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
            .find(|(_, span)| span.0.is_zero() || span.0 > DAYS_30)
            .map(|(key, span)| (*key, format!("{:?} is not between 1ms and 30days", span.0)));
        let path = absolute
            .iter()
            .find(|(_, path)| !path.starts_with('/') || path.contains("/../") || path.contains(','))
            .map(|(key, path)| (*key, format!("'{path}' is not a plain absolute path")));
        let percent = (self.pools.floor_percent > 100).then(|| {
            ("pools.floor_percent", format!("{} is more than 100", self.pools.floor_percent))
        });
        let floor = (self.pools.floor_mib > 1 << 40).then(|| {
            ("pools.floor_mib", format!("{} MiB is no machine's memory", self.pools.floor_mib))
        });
        let whole = count.or(span).or(path).or(percent).or(floor);
        let whole = whole
            .or_else(|| self.log.problem().or_else(|| self.report.problem()))
            .or_else(|| self.target.problem().or_else(|| self.health.problem()))
            .or_else(|| self.volume.problem().or_else(|| self.heal.problem()));
        whole
            .or_else(|| self.access.problem().or_else(|| self.tls.problem()))
            .or_else(|| registry::problem(&self.registry))
            .or_else(|| fallback::problem(self))
    }
}
