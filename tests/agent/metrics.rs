//! What Prometheus reads of a whole agent: calls, callbacks, a target and pools are there, and the page
//! tells how many.

use std::fs;

use serde_json::json;

use crate::support::absent::Absent;
use crate::support::controller::{Answer, Controller};
use crate::support::gate::Gate;
use crate::support::http::{Reply, call};
use crate::support::played::Played;
use crate::support::{Agent, Place, task, until};

/// A page, and how to find a number on it.
struct Page(String);

impl Page {
    /// The page as a scraper gets it that wants nothing particular.
    async fn of(agent: &Agent) -> Page {
        let reply = agent.get("/metrics").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let kind = reply.header("content-type");
        assert_eq!(kind, Some("text/plain; version=0.0.4; charset=utf-8"));
        Page(reply.text().to_string())
    }

    /// The number behind a name with its labels.
    fn find(&self, series: &str) -> Option<f64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|number| number.parse().unwrap())
    }

    #[track_caller]
    fn must_be(&self, expected: &[(&str, f64)]) {
        for (series, number) in expected {
            assert_eq!(self.find(series), Some(*number), "{series} in\n{}", self.0);
        }
    }
}

/// Looks until a number is that.
async fn until_it_is(agent: &Agent, series: &str, number: f64) -> Page {
    until(&format!("{series} is {number}"), async || {
        Some(Page::of(agent).await).filter(|page| page.find(series) == Some(number))
    })
    .await
}

async fn open_metrics(agent: &Agent) -> Reply {
    let accept =
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    call(agent.address, "GET", "/metrics", &[("Accept", accept)], "").await
}

/// A call of which the controller is told later; returns once it was told, or the attempts have ended.
async fn ask(agent: &Agent, number: u32, controller: &Controller, calls: usize) {
    let reply = agent.post_task("/host/ping", &task(number), &controller.url, "{}").await;
    assert_eq!(reply.status, 200);
    controller.wait(calls).await;
    until_it_is(agent, "vhost_callbacks_pending", 0.0).await;
}

#[tokio::test]
async fn calls_and_callbacks_are_counted_by_what_became_of_them() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let script = vec![Answer::Status(500), Answer::Status(200), Answer::Status(404)];
    let controller = Controller::answering(script).await;
    ask(&agent, 1, &controller, 2).await;
    ask(&agent, 2, &controller, 3).await;
    let paths = ["/nonsense/1", "/nonsense/2", "/v1/targets/a", "/v1/targets/b/"];
    for (path, status) in paths.into_iter().zip([404, 404, 200, 200]) {
        assert_eq!(agent.get(path).await.status, status, "{path}");
    }
    assert_eq!(agent.get("/host/ping").await.status, 405);
    assert_eq!(agent.post("/host/ping/", "{}").await.status, 200);
    let page = Page::of(&agent).await;
    page.must_be(&[
        (r#"vhost_tasks_accepted_total{call="other"}"#, 2.0),
        ("vhost_callbacks_oldest_age_seconds", 0.0),
        (r#"vhost_callback_attempts_total{outcome="failed"}"#, 1.0),
        (r#"vhost_callback_attempts_total{outcome="delivered"}"#, 1.0),
        (r#"vhost_callback_attempts_total{outcome="not-expected"}"#, 1.0),
        ("vhost_callbacks_expired_total", 0.0),
        (r#"vhost_http_requests_total{route="/host/ping",method="POST",code="200"}"#, 3.0),
        (r#"vhost_http_requests_total{route="/host/ping",method="GET",code="405"}"#, 1.0),
        (r#"vhost_http_requests_total{route="unmatched",method="GET",code="404"}"#, 2.0),
        (r#"vhost_http_requests_total{route="/v1/targets/{name}",method="GET",code="200"}"#, 2.0),
        (r#"vhost_http_request_duration_seconds_count{route="/host/ping"}"#, 4.0),
        ("vhost_ready", 1.0),
    ]);
    let version = env!("CARGO_PKG_VERSION");
    page.must_be(&[(&format!("vhost_build_info{{version=\"{version}\"}}"), 1.0)]);
    assert!(!page.0.contains("nonsense") && !page.0.contains("# EOF"), "{}", page.0);
}

#[tokio::test]
async fn a_result_that_nobody_takes_waits_with_its_age_and_further_calls_are_counted_as_refused() {
    let place =
        Place::on("two-node").settings("[http]\nmax_tasks = 8\n[callbacks]\nmax_pending = 1\n");
    let agent = place.ready().await;
    let away = Absent::new();
    let ask =
        async |number| agent.post_task("/host/ping", &task(number), &away.url(), "{}").await.status;
    assert_eq!(ask(1).await, 200);
    until_it_is(&agent, "vhost_callbacks_pending", 1.0).await;
    assert_eq!((ask(1).await, ask(2).await), (200, 503));
    let page = until("an attempt has failed", async || {
        let page = Page::of(&agent).await;
        let failed = page.find(r#"vhost_callback_attempts_total{outcome="failed"}"#);
        failed.is_some_and(|failed| failed > 0.0).then_some(page)
    });
    let page = page.await;
    page.must_be(&[
        ("vhost_tasks_repeated_total", 1.0),
        (r#"vhost_tasks_refused_total{code="outbox-full"}"#, 1.0),
        (r#"vhost_tasks_accepted_total{call="other"}"#, 1.0),
    ]);
    assert!(page.find("vhost_callbacks_oldest_age_seconds").unwrap() > 0.0);
}

#[tokio::test]
async fn target_and_report_metrics_match_the_reports() {
    let played = Played::with("report.interval = \"1d\"\n");
    let agent = played.place.ready().await;
    assert_eq!(Page::of(&agent).await.find("vhost_report_last_accepted"), None);
    assert_eq!(agent.get("/v1/targets/zbs-vhost/health").await.json()["state"], "serving");
    let serving = r#"vhost_target_state{target="zbs-vhost",state="serving"}"#;
    let page = until_it_is(&agent, serving, 1.0).await;
    page.must_be(&[
        (r#"vhost_target_state{target="zbs-vhost",state="failed"}"#, 0.0),
        (r#"vhost_target_desired{target="zbs-vhost"}"#, 0.0),
        (r#"vhost_target_exits_total{target="zbs-vhost"}"#, 0.0),
        (r#"vhost_target_volumes{target="zbs-vhost",state="serving"}"#, 0.0),
    ]);
    let age = page.find(r#"vhost_target_last_answer_age_seconds{target="zbs-vhost"}"#);
    assert!((0.0..60.0).contains(&age.unwrap()), "{age:?}");
    // The first report is not known there, the next one is taken.
    let controller = Controller::answering(vec![Answer::Status(404)]).await;
    let body = json!({"hostUuid": "5f0c", "sendCommandUrl": controller.url}).to_string();
    assert_eq!(agent.post("/host/connect", &body).await.status, 200);
    let unknown = r#"vhost_report_attempts_total{outcome="unknown"}"#;
    until_it_is(&agent, unknown, 1.0).await.must_be(&[("vhost_report_last_accepted", 0.0)]);
    assert_eq!(agent.post("/host/connect", &body).await.status, 200);
    let page = until_it_is(&agent, "vhost_report_last_accepted", 1.0).await;
    assert!(page.find("vhost_report_last_accepted_timestamp_seconds").unwrap() > 1e9);
}

#[tokio::test]
async fn pool_and_process_metrics_match_the_kernel() {
    let place = Place::on("two-node");
    fs::create_dir_all(place.state()).unwrap();
    // Where nobody turns surplus pages into persistent ones.
    let wanted = json!([{"size": "2M", "node": 0, "pages": 20}]);
    fs::write(place.state().join("reservations.json"), wanted.to_string()).unwrap();
    fs::create_dir_all(place.path("proc/self/fd")).unwrap();
    for fd in 0..3 {
        place.write(&format!("proc/self/fd/{fd}"), "");
    }
    let rest = "0 ".repeat(30);
    let stat = "7 (vhost-agent) S 1 7 7 0 -1 0 0 0 0 0 200 50 0 0 20 0 9 0 300 4096000 10 ";
    place.write("proc/self/stat", &format!("{stat}{rest}\n"));
    place.write("proc/stat", "cpu 1 2\nbtime 1700000000\n");
    let agent = place.ready().await;
    let page = Page::of(&agent).await;
    page.must_be(&[
        (r#"vhost_pool_pages{node="0",page_size="2M"}"#, 532.0),
        (r#"vhost_pool_pages{node="1",page_size="2M"}"#, 600.0),
        (r#"vhost_pool_free_pages{node="0",page_size="2M"}"#, 100.0),
        (r#"vhost_pool_surplus_pages{node="1",page_size="2M"}"#, 8.0),
        (r#"vhost_pool_pages{node="0",page_size="1G"}"#, 2.0),
        (r#"vhost_pool_grown_pages{node="0",page_size="2M"}"#, 20.0),
        (r#"vhost_pool_desired_pages{node="0",page_size="2M"}"#, 20.0),
        (r#"vhost_pool_desired_pages{node="1",page_size="2M"}"#, 0.0),
        ("process_cpu_seconds_total", 2.5),
        ("process_threads", 9.0),
        ("process_open_fds", 2.0),
        ("process_start_time_seconds", 1_700_000_003.0),
    ]);
    let reserved: f64 = place
        .read("sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages")
        .trim()
        .parse()
        .unwrap();
    page.must_be(&[(r#"vhost_reserved_pages{page_size="2M"}"#, reserved)]);
}

#[tokio::test]
async fn who_asks_for_open_metrics_gets_it_with_the_same_numbers() {
    let agent = Place::on("two-node").ready().await;
    let reply = open_metrics(&agent).await;
    let kind = reply.header("content-type");
    assert_eq!(kind, Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = reply.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("# TYPE vhost_callbacks_expired counter\n"), "{text}");
    assert!(text.contains("\nvhost_callbacks_expired_total 0\n"), "{text}");
    let plain = Page::of(&agent).await.0;
    assert!(plain.contains("# TYPE vhost_callbacks_expired_total counter\n"), "{plain}");
}

#[tokio::test]
async fn a_starting_agent_exports_all_metrics_but_readiness() {
    let place = Place::on("two-node");
    fs::create_dir_all(place.state()).unwrap();
    let wanted = json!([{"size": "2M", "node": 1, "pages": 20}]);
    fs::write(place.state().join("reservations.json"), wanted.to_string()).unwrap();
    let mut gate = Gate::before_pools(&place);
    let agent = place.start_behind(&mut gate).await;
    Page::of(&agent).await.must_be(&[
        ("vhost_ready", 0.0),
        (r#"vhost_pool_pages{node="1",page_size="2M"}"#, 600.0),
        (r#"vhost_pool_grown_pages{node="1",page_size="2M"}"#, 0.0),
        (r#"vhost_pool_desired_pages{node="1",page_size="2M"}"#, 20.0),
    ]);
}
