//! Inbound HTTP: the route table, that of the native routes in `v1`, and what every route has in common.
//!
//! A request passes the listener's bounds (`serve`), the trailing slash is dropped, the router finds
//! its handler; the handler judges the body, hands a model value to an owner's handle and turns the
//! outcome back into wire form. Nothing here touches the machine.

pub mod access;
pub mod body;
pub mod errors;
pub mod fallback;
pub mod journal;
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
use crate::agent::events::Events;
use crate::agent::node::Node;
use crate::agent::pools::Pools;
use crate::agent::prepare::Prepare;
use crate::agent::progress::ProgressSink;
use crate::agent::status::Reports;
use crate::controller::identity::Identities;
use crate::controller::outbox::Outbox;
use crate::controller::progress::ProgressPosts;
use crate::controller::reach::Reaches;
use crate::model::access::Role;
use crate::model::bounds::{Paths, judge_target};
use crate::model::fault::Fault;
use crate::model::node::Exposure;
use crate::model::path::CleanPath;
use crate::model::policy::{HttpPolicy, PoolPolicy, TargetSettings};
use crate::model::target::{Desired, TargetName, TargetSpec};
use crate::targets::Targets;

/// What the agent is about to do, as readiness tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// What was kept over the last boot is being restored.
    Starting,
    /// Calls are taken.
    Serving,
    /// No new calls are taken; those at work go on for a while.
    Draining,
}

/// What the native routes need: handles of the owners, and limits.
pub struct Native {
    /// Prepares the node.
    pub prepare: Prepare,
    /// Owns the pools.
    pub pools: Pools,
    /// Looks at the node.
    pub node: Node,
    /// Owns the targets.
    pub targets: Targets,
    /// Which targets are wanted.
    pub desired: watch::Receiver<Desired>,
    /// What happens.
    pub events: Events,
    /// What a call for a target means that does not say.
    pub target_defaults: TargetSettings,
    /// What a call for pages means that does not say.
    pub pool_defaults: PoolPolicy,
    /// Tells what happens while a long call runs.
    pub progress: ProgressSink,
    /// Limits of a request.
    pub http: HttpPolicy,
    /// Who may call; nobody from outside, where a command works by itself.
    pub exposure: Option<Exposure>,
    /// Whether calls are taken.
    pub phase: watch::Receiver<Phase>,
}

/// Everything the handlers of an agent that serves need.
pub struct Api {
    /// What the native routes need.
    pub native: Arc<Native>,
    /// Tells the controller what happens while a long call runs, where the call asks for that.
    pub progress_posts: ProgressPosts,
    /// Takes the results of calls that are answered later.
    pub outbox: Outbox,
    /// Who this host is to the controller.
    pub identities: Arc<Identities>,
    /// Whom the agent may call for a caller.
    pub reaches: Reaches,
    /// How the node stands, as the controller is told.
    pub reports: Reports,
    /// Which libvirt and QEMU are installed.
    pub hypervisor: Box<dyn zstack::host::AsksVersions>,
    /// Takes what has no route here; nobody, where no legacy agent is set.
    pub fallback: Option<fallback::Fallback>,
    /// What is counted and measured.
    pub metrics: metrics::Metrics,
}

impl Native {
    /// The control socket of a target: as it is wanted, else the usual one.
    ///
    /// # Errors
    /// When the settings name one that cannot be.
    pub fn control_of(&self, name: &TargetName) -> Result<CleanPath, Fault> {
        let defaults = &self.target_defaults;
        match self.wanted(name) {
            Some(wanted) => Ok(wanted.control_sock),
            None => defaults.control_in(&defaults.socket_dir),
        }
    }

    /// The control socket that a call names, else that of the target.
    ///
    /// # Errors
    /// When that is none, or not the caller's to name.
    pub fn control_at(&self, name: &TargetName, named: Option<&str>) -> Result<CleanPath, Fault> {
        match named {
            Some(path) => Ok(self.target_at(Some(path.parse()?))?.control_sock),
            None => self.control_of(name),
        }
    }

    /// The target that a call asks for, where the call may.
    ///
    /// # Errors
    /// When it names what the settings do not let callers name.
    pub fn allowed(&self, spec: TargetSpec) -> Result<TargetSpec, Fault> {
        let known = self.wanted(&spec.name);
        judge_target(&spec, known.as_ref(), &self.target_defaults, Paths::AsNamed)?;
        Ok(spec)
    }

    /// The target of that name, as it is wanted.
    pub fn wanted(&self, name: &TargetName) -> Option<TargetSpec> {
        self.desired.borrow().targets.get(name).cloned()
    }

    /// The target that a call means which names no more than a control socket.
    ///
    /// # Errors
    /// When there can be no such control socket.
    pub fn target_at(&self, control: Option<CleanPath>) -> Result<TargetSpec, Fault> {
        zstack::target::at(control, &self.desired.borrow(), &self.target_defaults)
    }
}

type Shared = Arc<Api>;

/// What the compatible routes begin with that are the agent's alone.
const ZBS: &str = "/zbs/primarystorage/vhost";

/// What each door serves.
pub struct Routers {
    /// The main address.
    pub main: NormalizePath<Router>,
    /// An address for signs of life and metrics alone.
    pub admin: NormalizePath<Router>,
    /// The node's own socket.
    pub here: NormalizePath<Router>,
}

/// The whole route table; with `admin_apart` the main address has no signs of life and no metrics.
pub fn routers(api: Api, admin_apart: bool) -> Routers {
    let [connect, ping, echo] = zstack::through::routes(api.fallback.is_some());
    // The compatible routes, by the role that each wants.
    let read = Router::new()
        .route(&format!("{ZBS}/target/health"), post(zstack::target::health))
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
        // Only the agent itself is told of there.
        admin: finished(probes().fallback(any(errors::no_such_route)), &api),
        main: finished(main.fallback(any(fallback::unknown)), &api),
    }
}

/// With what every route has in common.
fn finished(router: Router<Shared>, api: &Shared) -> NormalizePath<Router> {
    let router = router
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(CatchPanicLayer::custom(errors::panicked))
        // Outermost, so that a handler that broke is counted as it was answered.
        .layer(api.metrics.counting())
        .with_state(api.clone());
    NormalizePath::trim_trailing_slash(router)
}

/// Nobody is asked in the agent's place for what is elsewhere.
fn nothing_of_probes() -> Router<Shared> {
    let nothing = || any(errors::no_such_route);
    let names = ["/healthz", "/readyz", "/metrics"];
    names.into_iter().fold(Router::new(), |router, name| router.route(name, nothing()))
}

/// The routes that change nothing and tell a machine how the agent does.
fn probes() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(metrics::get))
}
