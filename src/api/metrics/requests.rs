//! Request counters, by the route that matched. The path that a caller wrote never becomes a label.
//!
//! Counting a request costs a lookup in a small table under a read lock. Only the first request of its kind takes the
//! write lock, to add a line.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tower::{Layer, Service};

/// Value of the label `route` for requests that no route matches.
const UNMATCHED: &str = "unmatched";
/// Status of a request whose caller went away before it was answered.
const UNANSWERED: u16 = 0;
/// Upper bounds of the histogram, in seconds: health answers take less than a millisecond, a first
/// deployment minutes.
const BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

/// Counters of requests; clones share them.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct Requests(Arc<RwLock<BTreeMap<Box<str>, Arc<Route>>>>);

/// Counters of one route.
#[derive(Debug)]
struct Route {
    /// Counts by method and status.
    answers: RwLock<BTreeMap<(&'static str, u16), Counter>>,
    took: Histogram,
}

impl Requests {
    fn route(&self, path: &str) -> Arc<Route> {
        if let Some(route) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(path) {
            return route.clone();
        }
        let new = || Arc::new(Route { answers: RwLock::default(), took: Histogram::new(BUCKETS) });
        let mut routes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        routes.entry(path.into()).or_insert_with(new).clone()
    }

    fn begins(&self, request: &Request) -> RequestInProgress {
        let path = request.extensions().get::<MatchedPath>().map_or(UNMATCHED, MatchedPath::as_str);
        let route = self.route(path);
        RequestInProgress { route, method: method_label(request.method()), at: Instant::now() }
    }
}

#[derive(Debug)]
struct RequestInProgress {
    route: Arc<Route>,
    method: &'static str,
    at: Instant,
}

impl RequestInProgress {
    fn ends(self, status: u16) {
        self.route.took.observe(self.at.elapsed().as_secs_f64());
        let key = (self.method, status);
        let known = self.route.answers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = known.get(&key) {
            counter.inc();
            return;
        }
        drop(known);
        let mut answers = self.route.answers.write().unwrap_or_else(PoisonError::into_inner);
        answers.entry(key).or_default().inc();
    }
}

/// Label of a method. Uncommon methods share one label, because a caller may write any word as a method.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let routes = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        if routes.is_empty() {
            return Ok(());
        }
        let (name, help) = ("vhost_http_requests", "Requests that were answered.");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (path, route) in &routes {
            let answers = route.answers.read().unwrap_or_else(PoisonError::into_inner);
            for ((method, status), counter) in answers.iter() {
                let code = match *status {
                    UNANSWERED => "none".to_string(),
                    status => status.to_string(),
                };
                let labels = [("route", path.as_ref()), ("method", method), ("code", &code)];
                counter.encode(family.encode_family(&labels)?)?;
            }
        }
        let name = "vhost_http_request_duration_seconds";
        let help = "Time until a request was answered.";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (path, route) in &routes {
            let labels = [("route", path.as_ref())];
            route.took.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl<S> Layer<S> for Requests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, requests: self.clone() }
    }
}

/// Service whose requests are counted.
#[derive(Debug, Clone)]
pub(in crate::api) struct Counted<S> {
    inner: S,
    requests: Requests,
}

impl<S> Service<Request> for Counted<S>
where
    S: Service<Request, Response = Response>,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Counting<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Counting<S::Future> {
        let begun = Some(self.requests.begins(&request));
        Counting { inner: self.inner.call(request), begun }
    }
}

/// Future of an answer. Counts the request when the answer is there, or as unanswered when the future is dropped
/// before.
#[derive(Debug)]
pub(in crate::api) struct Counting<F> {
    inner: F,
    begun: Option<RequestInProgress>,
}

impl<F, E> Future for Counting<F>
where
    F: Future<Output = Result<Response, E>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let answered = ready!(Pin::new(&mut self.inner).poll(context));
        if let (Some(begun), Ok(response)) = (self.begun.take(), &answered) {
            begun.ends(response.status().as_u16());
        }
        Poll::Ready(answered)
    }
}

impl<F> Drop for Counting<F> {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            begun.ends(UNANSWERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;
    use tower::ServiceExt;

    use super::*;

    fn counted(requests: &Requests) -> Vec<String> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(requests.clone()));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        let lines = page.lines().filter(|line| !line.contains("_bucket") && !line.contains("_sum"));
        lines.filter(|line| !line.starts_with('#')).map(str::to_string).collect()
    }

    fn router(requests: &Requests) -> Router {
        Router::new()
            .route("/v1/targets/{name}", get(async || "there"))
            .route("/slow", get(std::future::pending::<()>))
            .fallback(async || axum::http::StatusCode::NOT_FOUND)
            .layer(requests.clone())
    }

    async fn call(router: &Router, method: &str, path: &str) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap();
    }

    #[tokio::test]
    async fn requests_are_counted_by_the_route_that_they_match_whatever_their_caller_wrote() {
        let requests = Requests::default();
        let router = router(&requests);
        for name in ["a", "b", "%22%0A"] {
            call(&router, "GET", &format!("/v1/targets/{name}")).await;
        }
        call(&router, "BREW", "/v1/targets/a").await;
        for n in 0..100 {
            call(&router, "GET", &format!("/nonsense/{n}")).await;
        }
        let expected = [
            r#"vhost_http_requests_total{route="/v1/targets/{name}",method="GET",code="200"} 3"#,
            r#"vhost_http_requests_total{route="/v1/targets/{name}",method="other",code="405"} 1"#,
            r#"vhost_http_requests_total{route="unmatched",method="GET",code="404"} 100"#,
            r#"vhost_http_request_duration_seconds_count{route="/v1/targets/{name}"} 4"#,
            r#"vhost_http_request_duration_seconds_count{route="unmatched"} 100"#,
        ];
        assert_eq!(counted(&requests), expected);
    }

    #[tokio::test]
    async fn a_request_whose_caller_goes_away_is_counted_as_unanswered() {
        let requests = Requests::default();
        let router = router(&requests);
        let slow = tokio::time::timeout(std::time::Duration::ZERO, call(&router, "GET", "/slow"));
        assert!(slow.await.is_err());
        let expected = r#"vhost_http_requests_total{route="/slow",method="GET",code="none"} 1"#;
        assert_eq!(counted(&requests)[0], expected);
    }
}
