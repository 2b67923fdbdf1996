//! The requests of one connection: what each has to show, and for how long it keeps the connection at work.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Request, Response};
use axum::response::IntoResponse;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::service::Service;
use tokio::sync::watch;
use tower_http::normalize_path::NormalizePath;

use super::super::access::{is_open_to_all, refusal};
use super::super::fallback::AsSent;
use super::{Guards, Place, lock};
use crate::model::caller::Caller;
use crate::wait;

/// Takes the requests of one connection.
pub(super) struct Desk {
    pub(super) router: NormalizePath<Router>,
    pub(super) guards: watch::Receiver<Guards>,
    pub(super) caller: Caller,
    pub(super) place: Arc<Place>,
}

/// The guards by which a request was judged: an answer without end has to be judged again when they change.
#[derive(Clone)]
pub struct Judged(watch::Receiver<Guards>);

impl Judged {
    fn now(guards: &watch::Receiver<Guards>) -> Judged {
        let mut guards = guards.clone();
        guards.mark_unchanged();
        Judged(guards)
    }

    /// Returns when they have changed.
    pub async fn again(mut self) {
        wait::change(&mut self.0).await;
    }
}

impl Desk {
    /// Why this request is not served; the token of one that is goes no further.
    fn refusal(&self, path: &str, headers: &mut HeaderMap) -> Option<Response<Body>> {
        let guards = self.guards.borrow();
        let tokens = guards.tokens.as_ref()?;
        let refusal = refusal(tokens, headers).filter(|_| !is_open_to_all(path));
        headers.remove(AUTHORIZATION);
        refusal.map(IntoResponse::into_response)
    }
}

impl Service<Request<Incoming>> for Desk {
    type Response = Response<Answer>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        // At work as soon as all of it is there; until then it is one of those that give way.
        let at_work = Arc::new(AtWork(self.place.clone()));
        let judged = Judged::now(&self.guards);
        // The router gets to see a tidied one.
        let sent = AsSent(request.uri().clone());
        if let Some(refusal) = self.refusal(sent.0.path(), request.headers_mut()) {
            let answer = refusal.map(|body| Answer { body, _at_work: at_work });
            return Box::pin(std::future::ready(Ok(answer)));
        }
        request.extensions_mut().insert(judged);
        request.extensions_mut().insert(self.caller);
        request.extensions_mut().insert(sent);
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
            Ok(answer.map(|body| Answer { body, _at_work: at_work }))
        })
    }
}

/// A request; its connection is quiet again when it is dropped.
struct AtWork(Arc<Place>);

impl AtWork {
    /// All of it is there.
    fn begins(&self) {
        lock(&self.0.hall).crowd.works(self.0.id);
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        lock(&self.0.hall).crowd.rests(self.0.id);
    }
}

/// A body whose connection is at work until all of it was handed over.
pub(super) struct Answer {
    body: Body,
    _at_work: Arc<AtWork>,
}

/// The body of a request, which is at work when it has all come, or nobody wants more of it.
struct Arriving {
    body: Incoming,
    /// Its end may be long over while the rest of a body still comes.
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

impl HttpBody for Answer {
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
