//! Forwarding to the legacy agent (`fallback_url`) of everything that the agent does not serve, unchanged, as are the
//! answers.
//!
//! A request gets a slot, of which there are fewer than connections, so that a slow legacy agent never takes the
//! agent's own routes down; a connection of its own (`stream`), to an address of its `name`; and passes with its body
//! streamed (`relay`). The legacy agent may take a quarter of an hour to answer once it has all of a request, which may
//! take an hour to come, and a body may stall for `http.body_timeout`. Nothing is sent twice.

mod head;
mod name;
mod relay;
mod slots;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use tokio::time::{sleep, timeout};

use self::name::Name;
use self::relay::{BrokenBody, RelayEnd, relay};
use self::slots::{FallbackSlot, Places};
use self::stream::{LegacyConnection, OpenError};
use super::audit::{AuditedCall, AuditedChange, Subject, principal};
use super::errors::{self, Problem};
use super::{Shared, roles};
use crate::agent::pools::Pools;
use crate::model::access::{Principal, Role};
use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::fallback::FallbackAddress;
use crate::model::fault::chain;
use crate::model::policy::HttpPolicy;

pub use self::head::OriginalUri;

/// Limit for establishing a connection to it.
const CONNECT: Duration = Duration::from_secs(5);

/// Limit for its answer once it has all of the request: the controller itself waits for five minutes. Without a bound,
/// calls to one that hangs would hold their slots for ever.
const THINKS: Duration = Duration::from_secs(15 * 60);

/// Limit for a request to come as a whole: one that comes by the byte would hold its slot for ever.
const COMES: Duration = Duration::from_secs(60 * 60);

/// Forwards requests to the legacy agent.
#[derive(Debug)]
pub struct Fallback {
    address: FallbackAddress,
    name: Name,
    /// Address at which this agent listens.
    own: SocketAddr,
    /// Longest stall of a body, in either direction.
    idle: Duration,
    /// Limit of concurrent requests.
    requests: usize,
    places: Arc<Places>,
    /// Set if the last attempt to connect succeeded: only changes are logged.
    reachable: AtomicBool,
}

impl Fallback {
    /// Forwards to `address`; nobody has to be there yet.
    pub fn new(address: FallbackAddress, own: SocketAddr, limits: &HttpPolicy) -> Fallback {
        // The other connections are left to the agent's own routes.
        let requests = (limits.max_connections / 2).max(1);
        let idle = limits.body_timeout;
        let places = Arc::new(Places::new(requests));
        let name = Name::new(address.host(), address.port());
        Fallback { address, name, own, idle, requests, places, reachable: AtomicBool::new(true) }
    }

    /// Forwards a request and returns the legacy agent's answer, whatever that is.
    ///
    /// # Errors
    /// The reason why the legacy agent gave no answer.
    pub async fn pass(&self, request: Request) -> Result<Response, Problem> {
        let place = self.place(&request)?;
        if request.method() == Method::CONNECT {
            let text = "a tunnel is neither made by this agent nor handed on (CONNECT)";
            return Err(Problem::new(Code::NoTunnels, text));
        }
        let began = Instant::now();
        let (method, path) = (request.method().clone(), request.uri().path().to_string());
        let answered = self.ask(request, place).await;
        let status = answered.as_ref().map_or_else(Problem::status, Response::status).as_u16();
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(%method, path, status, ms, "handed on to {}", self.address);
        answered
    }

    fn place(&self, request: &Request) -> Result<FallbackSlot, Problem> {
        let caller = request.extensions().get().copied().unwrap_or(Caller::Here);
        self.places.take(caller.into()).ok_or_else(|| {
            let text = format!(
                "{} requests, or your share of them, are at work at {} already (half of http.max_connections): call later",
                self.requests, self.address
            );
            Problem::new(Code::FallbackBusy, text)
        })
    }

    async fn ask(&self, request: Request, place: FallbackSlot) -> Result<Response, Problem> {
        let opened = LegacyConnection::open(&self.name, self.own, CONNECT).await;
        let line: LegacyConnection<Body> = opened.map_err(|error| self.unreachable(&error))?;
        if !self.reachable.swap(true, Ordering::Relaxed) {
            tracing::info!("{} (fallback_url) takes connections again", self.address);
        }
        let (head, body) = request.into_parts();
        let (body, watch) = self.sent(body);
        let answer = tokio::select! {
            // What broke the body is the cause of what follows from it. The other future is dropped, and with it the
            // connection: the request is given up.
            biased;
            problem = self.given_up(watch) => return Err(problem),
            answer = line.ask(head::forwarded(head, body)) => answer,
        };
        let (response, held) = answer.map_err(|error| self.lost(&error))?;
        let (head, body) = response.into_parts();
        let (body, _) = relay(body, self.idle, (held, place));
        Ok(head::answered(head, Body::new(body)))
    }

    /// Returns when waiting for an answer makes no sense any more.
    async fn given_up(&self, watch: Option<RelayEnd>) -> Problem {
        if let Some(watch) = watch {
            match timeout(COMES, watch.over()).await {
                Ok(None) => {}
                Ok(Some(broken)) => return self.gave_up(broken),
                Err(_) => return self.gave_up(BrokenBody::Endless(COMES)),
            }
        }
        sleep(THINKS).await;
        self.thinks_too_long()
    }

    /// Body to forward; an empty one must not look as if something came.
    fn sent(&self, body: Body) -> (Body, Option<RelayEnd>) {
        if body.is_end_stream() {
            return (Body::empty(), None);
        }
        let (body, watch) = relay(body, self.idle, ());
        (Body::new(body), Some(watch))
    }

    fn unreachable(&self, error: &OpenError) -> Problem {
        let why = chain(error);
        if self.reachable.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                "{} (fallback_url) cannot be reached, and what the agent does not serve is answered 502: {why}",
                self.address
            );
        }
        let text = format!(
            "the agent does not serve this itself, and {} (fallback_url) cannot be reached: {why}; nothing was sent",
            self.address
        );
        Problem::new(Code::FallbackUnreachable, text)
    }

    /// Problem of a connection that broke after the request had begun to go out.
    fn lost(&self, error: &hyper::Error) -> Problem {
        let text = format!(
            "{} (fallback_url) gave no answer: {}; it may have done what was asked, and is not asked again",
            self.address,
            chain(error)
        );
        Problem::new(Code::FallbackBroken, text)
    }

    fn thinks_too_long(&self) -> Problem {
        let text = format!(
            "{} (fallback_url) gave no answer within {THINKS:?}; it may still do what was asked",
            self.address
        );
        Problem::new(Code::FallbackSilent, text)
    }

    /// Problem of a request whose body never got there as a whole.
    fn gave_up(&self, broken: BrokenBody) -> Problem {
        let code = match broken {
            BrokenBody::Silent(_) | BrokenBody::Endless(_) => Code::BodyTimeout,
            BrokenBody::Stuck(_) => Code::FallbackStalled,
            BrokenBody::Source(_) => Code::BodyBroken,
        };
        let setting = match broken {
            BrokenBody::Silent(_) | BrokenBody::Stuck(_) => " (http.body_timeout)",
            BrokenBody::Endless(_) | BrokenBody::Source(_) => "",
        };
        let text = format!(
            "the request to {} (fallback_url) was given up half-way: {broken}{setting}",
            self.address
        );
        Problem::new(code, text)
    }
}

/// Handles unknown routes: the legacy agent's, where there is one. It runs commands as root for its callers, and takes
/// those of its own operation from the node alone; behind this agent, all callers look to it like the node.
pub async fn unknown(State(api): State<Shared>, request: Request) -> Response {
    if api.fallback.is_some() {
        if let Err(fault) = roles::authorize(&request, Role::Admin) {
            return Problem::of(fault).into_response();
        }
        let is_root = request.extensions().get().is_some_and(|it: &Principal| it.is_root);
        if !is_root && head::is_for_the_node(request.uri().path()) {
            let text = "the legacy agent takes this from its own node alone, and so does this agent: call as root there";
            return Problem::new(Code::NodeRootOnly, text).into_response();
        }
        // Whatever the method: the legacy agent considers the path alone.
        let of = Subject::request(request.method(), request.uri().path());
        let change =
            AuditedChange { of, ..AuditedChange::of("handed on", principal(request.extensions())) };
        return noted(api, request, change).await;
    }
    forward(State(api), request).await
}

/// Forwards a request that may change the node to the legacy agent, with a line in the audit log.
pub async fn noted(api: Shared, request: Request, change: AuditedChange) -> Response {
    let call = AuditedCall::begins(change, None);
    let answer = forward(State(api), request).await;
    call.passes(answer.status());
    answer
}

/// Forwards a request to the legacy agent, where there is one.
pub async fn forward(State(api): State<Shared>, request: Request) -> Response {
    let Some(fallback) = &api.fallback else {
        let (head, _) = request.into_parts();
        return errors::no_such_route(head.method, head.uri).await.into_response();
    };
    if head::is_own_in_disguise(request.uri().path()) {
        // A legacy agent that reads paths more freely would run its own vhost part.
        let (head, _) = request.into_parts();
        return errors::no_such_route(head.method, head.uri).await.into_response();
    }
    let _looks = head::changes_pools(request.uri().path()).then(|| Looks(api.native.pools.clone()));
    fallback.pass(request).await.unwrap_or_else(IntoResponse::into_response)
}

/// Has the pools observed when a call that changes them ends, however it does: also where its caller has gone.
struct Looks(Pools);

impl Drop for Looks {
    fn drop(&mut self) {
        self.0.note_others();
    }
}
