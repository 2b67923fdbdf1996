//! Authorization of the requests of one connection, and their effect on the connection limiter: a connection is at work
//! from the end of a request until the end of its reply.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, VIA};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response};
use axum::response::IntoResponse;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::service::Service;
use tokio::sync::watch;
use tokio::time::sleep;
use tower_http::normalize_path::NormalizePath;

use super::super::audit::{self, RefusedCaller};
use super::super::bearer_tokens::{is_open_to_all, presented};
use super::super::errors::RefusedWith;
use super::super::fallback::OriginalUri;
use super::super::refusals::Refusals;
use super::root::RootVerification;
use super::{ConnectionSlot, Guards, lock};
use crate::model::access::{Denied, Peer, PresentedToken, Principal, Role, Rules};
use crate::model::egress_policy::VIA_AGENT;
use crate::wait;

/// Service for the requests of one connection.
#[derive(Clone)]
pub(super) struct RequestHandler {
    pub(super) router: NormalizePath<Router>,
    pub(super) guards: watch::Receiver<Guards>,
    pub(super) rules: Arc<Rules>,
    pub(super) refusals: Refusals,
    pub(super) root: Option<RootVerification>,
    pub(super) peer: Peer,
    pub(super) place: Arc<ConnectionSlot>,
}

/// Guards under which a request was authorized: an endless reply has to be authorized again when they change.
#[derive(Clone)]
pub struct AuthorizedUnder(watch::Receiver<Guards>);

impl AuthorizedUnder {
    fn now(guards: &watch::Receiver<Guards>) -> AuthorizedUnder {
        let mut guards = guards.clone();
        guards.mark_unchanged();
        AuthorizedUnder(guards)
    }

    /// Waits until the guards have changed.
    pub async fn again(mut self) {
        wait::change(&mut self.0).await;
    }
}

impl RequestHandler {
    /// Authorizes the caller of a request by its peer and its headers. Removes the token from the headers.
    fn authorize(&self, path: &str, headers: &mut HeaderMap) -> Result<Principal, Denied> {
        let is_agent = |via: &HeaderValue| {
            via.to_str().is_ok_and(|via| via.split(',').any(|hop| hop.trim() == VIA_AGENT))
        };
        if headers.get_all(VIA).iter().any(is_agent) {
            return Err(Denied::Agent);
        }
        if comes_from_a_page(headers) {
            return Err(Denied::Page);
        }
        let guards = self.guards.borrow();
        let authorized = match &guards.tokens {
            Some(tokens) => self.rules.authorize(&self.peer, presented(tokens, headers)),
            None => self.rules.authorize(&self.peer, PresentedToken::Nothing),
        };
        if guards.tokens.is_some() {
            headers.remove(AUTHORIZATION);
        }
        drop(guards);
        match authorized {
            Err(_) if is_open_to_all(path) => Ok(Principal::of(&self.peer, Role::Read)),
            authorized => authorized,
        }
    }
}

/// `true` if a browser sends the request for a page of another origin (RFC 6454, section 7): the credentials are those
/// of the user who reads the page, but the request is that of its author.
fn comes_from_a_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or(""));
    if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        return true;
    }
    let Some(origin) = text(ORIGIN) else { return false };
    let own = origin.split_once("://").map(|(_, host)| host);
    own.is_none() || own != text(HOST)
}

fn refused(answer: &Response<Body>) -> Option<RefusedWith> {
    answer.extensions().get().copied()
}

/// Logs a refused request, and delays its reply where the same client was refused often.
async fn note(
    refused: Option<RefusedWith>,
    by: (Option<Arc<str>>, Peer),
    at: (Method, OriginalUri),
    refusals: Refusals,
) {
    let Some(RefusedWith(code)) = refused else { return };
    let (name, peer) = by;
    let (by, caller) = (name.unwrap_or_else(|| peer.to_string().into()), peer.caller);
    let what = format!("{} {}", at.0, at.1.0.path());
    let refused = RefusedCaller { by: &by, caller, uid: peer.uid, what: &what };
    let delay = audit::refused(&refusals, refused, code.as_str());
    // A permitted caller that named something forbidden is not delayed, only logged less often.
    if code.refuses_caller() && !delay.is_zero() {
        sleep(delay).await;
    }
}

type Answering =
    Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, std::convert::Infallible>> + Send>>;

impl Service<Request<Incoming>> for RequestHandler {
    type Response = Response<ResponseBody>;
    type Error = std::convert::Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        // The connection stays quiet, and may be closed for another, until the whole request has been received.
        let at_work = Arc::new(AtWork(self.place.clone()));
        let unverified = self.root.as_ref().filter(|root| root.found() != Some(true));
        match unverified {
            Some(root) if !is_open_to_all(request.uri().path()) => {
                let (mut handler, root) = (self.clone(), root.clone());
                Box::pin(async move {
                    // Marked as at work during the verification, so that the connection is not closed in favour of
                    // another.
                    at_work.begins();
                    if !root.holds().await {
                        handler.peer = handler.peer.contained();
                    }
                    at_work.pauses();
                    handler.answer(request, at_work).await
                })
            }
            _ => self.answer(request, at_work),
        }
    }
}

impl RequestHandler {
    /// Authorizes a request and passes it to the router.
    fn answer(&self, mut request: Request<Incoming>, at_work: Arc<AtWork>) -> Answering {
        let authorized = AuthorizedUnder::now(&self.guards);
        // The router sees a normalized URI.
        let sent = OriginalUri(request.uri().clone());
        let refusals = self.refusals.clone();
        let at = (request.method().clone(), sent.clone());
        let principal = match self.authorize(sent.0.path(), request.headers_mut()) {
            Ok(principal) => principal,
            Err(denied) => {
                let (answer, by) = (denied.into_response(), (None, self.peer.clone()));
                return Box::pin(async move {
                    note(refused(&answer), by, at, refusals).await;
                    Ok(answer.map(|body| ResponseBody { body, _at_work: at_work }))
                });
            }
        };
        request.extensions_mut().insert(authorized);
        request.extensions_mut().insert(self.peer.caller);
        request.extensions_mut().insert(principal.clone());
        request.extensions_mut().insert(sent);
        let by = (Some(principal.name), self.peer.clone());
        let mut router = self.router.clone();
        let of = Arc::downgrade(&at_work);
        let request = request.map(|body| match body.is_end_stream() {
            true => {
                at_work.begins();
                Body::empty()
            }
            false => Body::new(Arriving { body, of }),
        });
        Box::pin(async move {
            let answer = tower::Service::call(&mut router, request).await?;
            note(refused(&answer), by, at, refusals).await;
            Ok(answer.map(|body| ResponseBody { body, _at_work: at_work }))
        })
    }
}

/// Request in progress; marks its connection as quiet on drop.
struct AtWork(Arc<ConnectionSlot>);

impl AtWork {
    /// Marks the connection as at work: the whole request has been received.
    fn begins(&self) {
        lock(&self.0.connections).limiter.works(self.0.id);
    }
}

impl AtWork {
    /// Marks the connection as quiet: more of the request has to be received.
    fn pauses(&self) {
        lock(&self.0.connections).limiter.rests(self.0.id);
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.pauses();
    }
}

/// Body of a reply; its connection is at work until it is dropped.
pub(super) struct ResponseBody {
    body: Body,
    _at_work: Arc<AtWork>,
}

/// Body of a request; marks the connection as at work once it is received completely, or dropped.
struct Arriving {
    body: Incoming,
    /// Weak: the request may have ended before its body is received.
    of: Weak<AtWork>,
}

impl Arriving {
    fn has_come(&self) {
        if let Some(at_work) = self.of.upgrade() {
            at_work.begins();
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.has_come();
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || frame.is_ready() && self.body.is_end_stream() {
            self.has_come();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
