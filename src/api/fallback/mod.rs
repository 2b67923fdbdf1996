//! Forwarding to the legacy agent (`fallback_url`) of the requests that this agent does not serve. Requests and answers
//! pass unchanged.
//!
//! Each request takes a slot (`slots`). There are half as many slots as connections, so that a slow legacy agent never
//! blocks this agent's own routes. Each request gets a connection of its own (`stream`) to an address of the legacy
//! agent (`name`), and its body is streamed (`relay`).
//!
//! A request may take an hour to arrive, and its body may stall for `http.body_timeout`. The legacy agent may take a
//! quarter of an hour to answer once it has the whole request. Nothing is sent twice.

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
use super::zstack::task;
use super::{AgentPhase, Shared, roles};
use crate::agent::pools::Pools;
use crate::model::access::{Principal, Role};
use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::fallback::FallbackAddress;
use crate::model::fault::chain;
use crate::model::policy::HttpPolicy;

pub use self::head::OriginalUri;

/// Limit of the time for connecting to the legacy agent.
const CONNECT: Duration = Duration::from_secs(5);

/// Limit of the time for an answer once the legacy agent has the whole request; the controller itself waits for five
/// minutes. Without a limit, calls to a legacy agent that hangs would hold their slots for ever.
const THINKS: Duration = Duration::from_secs(15 * 60);

/// Limit of the time for a request to arrive as a whole. Without a limit, a request that arrives byte by byte would
/// hold its slot for ever.
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
    /// Set if the last attempt to connect succeeded. Only a change is logged.
    reachable: AtomicBool,
}

impl Fallback {
    /// Creates a forwarder to `address`. Nothing has to listen there yet.
    pub fn new(address: FallbackAddress, own: SocketAddr, limits: &HttpPolicy) -> Fallback {
        // The other half of the connections is left to the agent's own routes.
        let requests = (limits.max_connections / 2).max(1);
        let idle = limits.body_timeout;
        let places = Arc::new(Places::new(requests));
        let name = Name::new(address.host(), address.port());
        Fallback { address, name, own, idle, requests, places, reachable: AtomicBool::new(true) }
    }

    /// Forwards a request and returns the legacy agent's answer, whatever its status.
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
        tracing::debug!(
            %method, path, status, ms,
            "{method} {path} was forwarded to {}: {status} in {ms} ms", self.address
        );
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
            tracing::info!("{} (fallback_url) accepts connections again", self.address);
        }
        let (head, body) = request.into_parts();
        let (body, watch) = self.sent(body);
        let answer = tokio::select! {
            // A broken body is the cause of a broken connection, so the body is polled first and its problem reported.
            // The other future is dropped, and with it the connection: the request is aborted.
            biased;
            problem = self.given_up(watch) => return Err(problem),
            answer = line.ask(head::forwarded(head, body)) => answer,
        };
        let (response, held) = answer.map_err(|error| self.lost(&error))?;
        let (head, body) = response.into_parts();
        let (body, _) = relay(body, self.idle, (held, place));
        Ok(head::answered(head, Body::new(body)))
    }

    /// Returns a problem when the answer is no longer to be waited for: the body broke off, the body took longer than
    /// `COMES`, or the answer took longer than `THINKS` after the body.
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

    /// Body to forward, and the end of its relay. An empty body is not relayed, so that it is not sent as a body of
    /// unknown length.
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

    /// Problem of a connection that broke after the sending of the request had begun.
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

    /// Problem of a request whose body did not reach the legacy agent as a whole.
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

/// Handles requests that no route matches: forwards them to the legacy agent, if there is one.
///
/// The legacy agent runs commands as root for its callers, so a caller needs the role `admin`. The legacy agent serves
/// some paths to its own node only, but behind this agent all callers look like its own node. So this agent accepts
/// those paths from root on this node only.
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
        // Audited with any method, because the legacy agent considers the path only.
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

/// Forwards a request to the legacy agent. Answers 404 if there is none, or if the path is another spelling of one that
/// is never forwarded, and refuses it while this agent stops.
pub async fn forward(State(api): State<Shared>, request: Request) -> Response {
    let Some(fallback) = &api.fallback else {
        let (head, _) = request.into_parts();
        return errors::no_such_route(head.method, head.uri).await.into_response();
    };
    if head::is_own_in_disguise(request.uri().path()) {
        // A legacy agent that normalizes paths would run its own vhost part.
        let (head, _) = request.into_parts();
        return errors::no_such_route(head.method, head.uri).await.into_response();
    }
    if *api.native.phase.borrow() == AgentPhase::Draining {
        // The agent would break off the answer at its end, and the legacy agent go on.
        return task::refused_while_stopping(request.headers());
    }
    let _looks = head::changes_pools(request.uri().path()).then(|| Looks(api.native.pools.clone()));
    fallback.pass(request).await.unwrap_or_else(IntoResponse::into_response)
}

/// Guard of a call that changes the pools: has them observed when the call ends. Works on drop, so it covers a call
/// whose caller has gone.
struct Looks(Pools);

impl Drop for Looks {
    fn drop(&mut self) {
        self.0.note_others();
    }
}
