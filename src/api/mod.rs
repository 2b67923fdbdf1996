//! Inbound HTTP: the route table, with the native routes in `v1`, and everything common to all routes.
//!
//! A request passes the listener's limits (`serve`), its trailing slash is dropped, and the router finds its handler;
//! the handler validates the body, hands a model value to an owner's handle and turns the outcome back into wire form.
//! Nothing here touches the machine.

pub mod audit;
pub mod bearer_tokens;
pub mod body;
pub mod errors;
pub mod fallback;
pub mod metrics;
pub mod probes;
pub mod refusals;
mod roles;
pub mod serve;
pub mod v1;
pub mod zstack;

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, get, post};
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::normalize_path::NormalizePath;

use self::roles::wants;
use crate::agent::domains::Domains;
use crate::agent::events::Events;
use crate::agent::node::Node;
use crate::agent::pools::Pools;
use crate::agent::prepare::Prepare;
use crate::agent::progress_sink::ProgressSink;
use crate::agent::status::Reports;
use crate::controller::identity::Identities;
use crate::controller::outbox::Outbox;
use crate::controller::progress_posts::ProgressPosts;
use crate::controller::reaches::Reaches;
use crate::model::access::Role;
use crate::model::bounds::{Paths, authorize_target};
use crate::model::fault::Fault;
use crate::model::node::Exposure;
use crate::model::path::CleanPath;
use crate::model::policy::{HttpPolicy, PoolPolicy, TargetSettings};
use crate::model::target::{Desired, TargetName, TargetSpec};
use crate::targets::Targets;

/// State of the agent, as readiness reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentPhase {
    /// Restoring what was kept over the last boot.
    Starting,
    Serving,
    /// Refusing new calls, while those in progress go on for a limited time.
    Draining,
}

/// Dependencies of the native routes: handles of the owners, and limits.
pub struct Native {
    pub prepare: Prepare,
    pub pools: Pools,
    pub node: Node,
    pub domains: Domains,
    pub targets: Targets,
    pub desired: watch::Receiver<Desired>,
    pub events: Events,
    pub target_defaults: TargetSettings,
    pub pool_defaults: PoolPolicy,
    /// Sink for the progress of long calls.
    pub progress: ProgressSink,
    /// Limits of a request.
    pub http: HttpPolicy,
    /// Listeners of this agent and its permitted callers. `None` in a command that works without a listener, so that
    /// nobody calls from outside.
    pub exposure: Option<Exposure>,
    pub phase: watch::Receiver<AgentPhase>,
}

/// Dependencies of all handlers of an agent that serves.
pub struct Api {
    pub native: Arc<Native>,
    /// Posts the progress of long calls to the controller, where a call asks for it.
    pub progress_posts: ProgressPosts,
    /// Outbox for the results of calls that are answered later.
    pub outbox: Outbox,
    /// Identity of this host towards the controller.
    pub identities: Arc<Identities>,
    /// Egress policies for URLs that callers supply.
    pub reaches: Reaches,
    /// Status reports of the node, as sent to the controller.
    pub reports: Reports,
    /// Source of the installed versions of libvirt and QEMU.
    pub hypervisor: Box<dyn zstack::host::AsksVersions>,
    /// Storage of the node, as far as a controller asks for it.
    pub storage: Box<dyn zstack::storage::ServesStorage>,
    /// Handler of unknown routes; `None` without a legacy agent.
    pub fallback: Option<fallback::Fallback>,
    pub metrics: metrics::Metrics,
}

impl Native {
    /// Control socket of the target `name`: that of its desired spec, else the default one.
    ///
    /// # Errors
    /// If the settings name an invalid control socket.
    pub fn control_of(&self, name: &TargetName) -> Result<CleanPath, Fault> {
        let defaults = &self.target_defaults;
        match self.wanted(name) {
            Some(wanted) => Ok(wanted.control_sock),
            None => defaults.control_in(&defaults.socket_dir),
        }
    }

    /// Control socket `named` in a call, else that of the target `name`.
    ///
    /// # Errors
    /// If `named` is invalid, or if the settings do not let callers name it.
    pub fn control_at(&self, name: &TargetName, named: Option<&str>) -> Result<CleanPath, Fault> {
        match named {
            Some(path) => Ok(self.target_at(Some(path.parse()?))?.control_sock),
            None => self.control_of(name),
        }
    }

    /// Returns `spec` if the settings let a caller request it.
    ///
    /// # Errors
    /// If `spec` names anything that the settings do not let callers name.
    pub fn allowed(&self, spec: TargetSpec) -> Result<TargetSpec, Fault> {
        let known = self.wanted(&spec.name);
        authorize_target(&spec, known.as_ref(), &self.target_defaults, Paths::AsNamed)?;
        Ok(spec)
    }

    /// Desired spec of the target `name`.
    pub fn wanted(&self, name: &TargetName) -> Option<TargetSpec> {
        self.desired.borrow().targets.get(name).cloned()
    }

    /// Target of a call that names only a control socket, or nothing.
    ///
    /// # Errors
    /// If `control` is invalid, or if the settings do not let callers name it.
    pub fn target_at(&self, control: Option<CleanPath>) -> Result<TargetSpec, Fault> {
        zstack::target::at(control, &self.desired.borrow(), &self.target_defaults)
    }
}

type Shared = Arc<Api>;

/// Prefix of the compatible routes that this agent serves itself and never forwards.
const ZBS: &str = "/zbs/primarystorage/vhost";

/// Router of each listener.
pub struct Routers {
    pub main: NormalizePath<Router>,
    /// Separate address for health probes and metrics.
    pub admin: NormalizePath<Router>,
    /// The node's own Unix socket.
    pub here: NormalizePath<Router>,
}

/// Builds the route tables of the listeners. With `admin_apart`, the main address serves no health probes and no
/// metrics.
pub fn routers(api: Api, admin_apart: bool) -> Routers {
    let [connect, ping, echo] = zstack::passthrough::routes(api.fallback.is_some());
    // The compatible routes, by the role that each requires.
    let read = Router::new()
        .route(&format!("{ZBS}/target/health"), post(zstack::health::health))
        .route(&format!("{ZBS}/check"), post(zstack::health::check))
        .route("/host/echo", echo)
        .route("/v1/status", get(v1::status::get))
        .route_layer(wants(Role::Read));
    let volumes = Router::new()
        .route(&format!("{ZBS}/activate"), post(zstack::volume::activate))
        .route(&format!("{ZBS}/deactivate"), post(zstack::volume::deactivate))
        .route(&format!("{ZBS}/resize"), post(zstack::volume::resize))
        .route(&format!("{ZBS}/bdev/create"), post(zstack::volume::create))
        .route(&format!("{ZBS}/bdev/delete"), post(zstack::volume::delete))
        .route_layer(wants(Role::Volumes));
    let deploy = Router::new()
        .route(&format!("{ZBS}/target/prepareenv"), post(zstack::prepareenv::call))
        .route(&format!("{ZBS}/target/ensure"), post(zstack::target::ensure))
        .route(&format!("{ZBS}/deploy"), post(zstack::target::deploy))
        .route(&format!("{ZBS}/destroy"), post(zstack::target::destroy))
        .route("/host/connect", connect)
        .route("/host/ping", ping)
        .merge(zstack::storage::routes(api.fallback.is_some()))
        .route_layer(wants(Role::Deploy));
    let compatible = read.merge(volumes).merge(deploy);
    let native_and_compatible = compatible.merge(v1::routes(api.native.clone()));
    let api = Arc::new(api);
    let all = || native_and_compatible.clone().merge(probes());
    let main = match admin_apart {
        true => native_and_compatible.clone().merge(nothing_of_probes()),
        false => all(),
    };
    Routers {
        here: finished(all().fallback(any(fallback::unknown)), &api),
        // Only the agent's own state is served there, never the legacy agent's.
        admin: finished(probes().fallback(any(errors::no_such_route)), &api),
        main: finished(main.fallback(any(fallback::unknown)), &api),
    }
}

/// Adds everything common to all routes.
fn finished(router: Router<Shared>, api: &Shared) -> NormalizePath<Router> {
    let router = router
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(CatchPanicLayer::custom(errors::panicked))
        // Outermost, so that a request whose handler panicked is counted with its answer.
        .layer(api.metrics.counting())
        .with_state(api.clone());
    NormalizePath::trim_trailing_slash(router)
}

/// Answers 404 for the health probes and metrics that the admin address serves, instead of forwarding them to the
/// legacy agent.
fn nothing_of_probes() -> Router<Shared> {
    let nothing = || any(errors::no_such_route);
    let names = ["/healthz", "/readyz", "/metrics"];
    names.into_iter().fold(Router::new(), |router, name| router.route(name, nothing()))
}

/// Read-only routes by which machines monitor the agent.
fn probes() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(metrics::get))
}
