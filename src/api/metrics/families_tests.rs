//! The text of each family, to the byte.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::*;
use crate::controller::outbox::Counts;
use crate::model::code::Code;
use crate::model::status::VolumeTally;
use crate::model::units::NumaNode;

/// The lines of the page, without those of the agent itself.
fn page(gathered: Gathered) -> Vec<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(gathered));
    let mut page = String::new();
    text::encode(&mut page, &registry).unwrap();
    page.lines().map(str::to_string).collect()
}

/// The lines of these families.
fn lines(gathered: Gathered, families: &[&str]) -> Vec<String> {
    let of = |line: &String| {
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        families.iter().any(|family| name.starts_with(family))
    };
    page(gathered).into_iter().filter(of).collect()
}

#[test]
fn an_agent_without_observations_exports_what_is_always_known() {
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        r#"# HELP vhost_build_info The agent that runs; always 1.
# TYPE vhost_build_info gauge
vhost_build_info{{version="{version}"}} 1
# HELP vhost_ready Whether calls are taken.
# TYPE vhost_ready gauge
vhost_ready 0
# HELP vhost_log_lines_lost Lines of the log that nobody took in time.
# TYPE vhost_log_lines_lost counter
vhost_log_lines_lost_total 0
# HELP vhost_tasks_overdue Tasks that run on after the controller's timeout for them.
# TYPE vhost_tasks_overdue gauge
vhost_tasks_overdue 0
# HELP vhost_tasks_repeated Asynchronous calls that were ignored, for their task was known.
# TYPE vhost_tasks_repeated counter
vhost_tasks_repeated_total 0
# HELP vhost_callbacks_pending Results that are pending delivery to the controller.
# TYPE vhost_callbacks_pending gauge
vhost_callbacks_pending 0
# HELP vhost_callbacks_oldest_age_seconds Age of the oldest pending result; 0 where there is none.
# TYPE vhost_callbacks_oldest_age_seconds gauge
vhost_callbacks_oldest_age_seconds 0.0
# HELP vhost_callback_attempts Attempts to deliver a result to the controller.
# TYPE vhost_callback_attempts counter
vhost_callback_attempts_total{{outcome="delivered"}} 0
vhost_callback_attempts_total{{outcome="not-expected"}} 0
vhost_callback_attempts_total{{outcome="failed"}} 0
# HELP vhost_callbacks_expired Results that expired before they were delivered (callbacks.max_age).
# TYPE vhost_callbacks_expired counter
vhost_callbacks_expired_total 0
# HELP vhost_report_attempts Attempts to send a status report to the controller.
# TYPE vhost_report_attempts counter
vhost_report_attempts_total{{outcome="accepted"}} 0
vhost_report_attempts_total{{outcome="unknown"}} 0
vhost_report_attempts_total{{outcome="failed"}} 0
vhost_report_attempts_total{{outcome="superseded"}} 0
# EOF"#
    );
    assert_eq!(page(Gathered::default()).join("\n"), expected);
}

#[test]
fn process_metrics_have_the_usual_names() {
    let process = Footprint {
        cpu: Duration::from_millis(1500),
        resident_bytes: 4096,
        virtual_bytes: 8192,
        threads: 5,
        open_files: 11,
        most_files: Some(1024),
        started: Duration::from_millis(1_700_000_000_250),
    };
    let page = lines(Gathered { process: Some(process), ..Gathered::default() }, &["process_"]);
    let values: Vec<&str> =
        page.iter().map(String::as_str).filter(|it| !it.starts_with('#')).collect();
    let expected = [
        "process_cpu_seconds_total 1.5",
        "process_resident_memory_bytes 4096",
        "process_virtual_memory_bytes 8192",
        "process_threads 5",
        "process_open_fds 11",
        "process_max_fds 1024",
        "process_start_time_seconds 1700000000.25",
    ];
    assert_eq!(values, expected);
}

#[test]
fn tasks_are_counted_by_call_and_refusals_by_code() {
    let counts = Counts {
        taken_in: BTreeMap::from([("activate", 7), ("ensure", 2)]),
        repeated: 3,
        refused: BTreeMap::from([(Code::OutboxFull, 4)]),
        ..Counts::default()
    };
    let at_work = BTreeMap::from([("ensure", 1)]);
    let census = Census { at_work, going_on: 5, counts, ..Census::default() };
    let expected = [
        "# HELP vhost_tasks_in_progress Asynchronous calls in progress.",
        "# TYPE vhost_tasks_in_progress gauge",
        r#"vhost_tasks_in_progress{call="ensure"} 1"#,
        "# HELP vhost_tasks_overdue Tasks that run on after the controller's timeout for them.",
        "# TYPE vhost_tasks_overdue gauge",
        "vhost_tasks_overdue 5",
        "# HELP vhost_tasks_accepted Asynchronous calls that were accepted.",
        "# TYPE vhost_tasks_accepted counter",
        r#"vhost_tasks_accepted_total{call="activate"} 7"#,
        r#"vhost_tasks_accepted_total{call="ensure"} 2"#,
        "# HELP vhost_tasks_repeated Asynchronous calls that were ignored, for their task was known.",
        "# TYPE vhost_tasks_repeated counter",
        "vhost_tasks_repeated_total 3",
        "# HELP vhost_tasks_refused Asynchronous calls that were refused.",
        "# TYPE vhost_tasks_refused counter",
        r#"vhost_tasks_refused_total{code="outbox-full"} 4"#,
    ];
    assert_eq!(lines(Gathered { census, ..Gathered::default() }, &["vhost_tasks_"]), expected);
}

#[test]
fn callbacks_and_reports_are_counted_by_outcome() {
    let counts =
        Counts { taken: 4, not_waited_for: 3, failed: 2, given_up: 1, ..Counts::default() };
    let oldest = Some(Duration::from_millis(2500));
    let census = Census { waiting: 6, oldest, counts, ..Census::default() };
    let reports = ReportCounts {
        taken: 9,
        unknown: 8,
        failed: 7,
        overtaken: 6,
        last_taken: Some(true),
        taken_at: Some(1_700_000_000),
    };
    let gathered = Gathered { census, reports, ..Gathered::default() };
    let page = lines(gathered, &["vhost_callback", "vhost_report"]);
    let values: Vec<&str> =
        page.iter().map(String::as_str).filter(|it| !it.starts_with('#')).collect();
    let expected = [
        "vhost_callbacks_pending 6",
        "vhost_callbacks_oldest_age_seconds 2.5",
        r#"vhost_callback_attempts_total{outcome="delivered"} 4"#,
        r#"vhost_callback_attempts_total{outcome="not-expected"} 3"#,
        r#"vhost_callback_attempts_total{outcome="failed"} 2"#,
        "vhost_callbacks_expired_total 1",
        r#"vhost_report_attempts_total{outcome="accepted"} 9"#,
        r#"vhost_report_attempts_total{outcome="unknown"} 8"#,
        r#"vhost_report_attempts_total{outcome="failed"} 7"#,
        r#"vhost_report_attempts_total{outcome="superseded"} 6"#,
        "vhost_report_last_accepted 1",
        "vhost_report_last_accepted_timestamp_seconds 1700000000",
    ];
    assert_eq!(values, expected);
}

fn figures(name: &str, state: TargetState) -> TargetFigures {
    let volumes = VolumeTally {
        wanted: 10,
        serving: 5,
        degraded: 2,
        stuck: 1,
        disconnected_sessions: 4,
        ..VolumeTally::default()
    };
    let report = TargetReport {
        name: name.parse().unwrap(),
        state,
        reason: "a reason, which is no label".to_string(),
        since: "then".to_string(),
        last_exit: None,
        restarts: 3,
        volumes,
    };
    let last_answer = (state == TargetState::Serving).then_some(Duration::from_millis(750));
    let buffer_waits =
        (state == TargetState::Serving).then_some(BufferWaits { small: 0, large: 9 });
    TargetFigures { report, wanted: true, exits: 6, sessions: 7, last_answer, buffer_waits }
}

#[test]
fn a_target_has_a_line_for_each_state_and_volumes_are_counted_not_named() {
    let targets = vec![figures("a", TargetState::Serving), figures("b", TargetState::Failed)];
    let page = lines(Gathered { targets, ..Gathered::default() }, &["vhost_target"]);
    let of = |name: &str| -> Vec<&str> {
        let label = format!("target=\"{name}\"");
        page.iter().map(String::as_str).filter(|line| line.contains(&label)).collect()
    };
    let expected = [
        r#"vhost_target_state{target="a",state="absent"} 0"#,
        r#"vhost_target_state{target="a",state="starting"} 0"#,
        r#"vhost_target_state{target="a",state="serving"} 1"#,
        r#"vhost_target_state{target="a",state="degraded"} 0"#,
        r#"vhost_target_state{target="a",state="paused"} 0"#,
        r#"vhost_target_state{target="a",state="failed"} 0"#,
        r#"vhost_target_desired{target="a"} 1"#,
        r#"vhost_target_last_answer_age_seconds{target="a"} 0.75"#,
        r#"vhost_target_exits_total{target="a"} 6"#,
        r#"vhost_target_restarts_total{target="a"} 3"#,
        r#"vhost_target_buffer_waits_total{target="a",pool="small"} 0"#,
        r#"vhost_target_buffer_waits_total{target="a",pool="large"} 9"#,
        r#"vhost_target_volumes{target="a",state="pending"} 2"#,
        r#"vhost_target_volumes{target="a",state="serving"} 5"#,
        r#"vhost_target_volumes{target="a",state="degraded"} 2"#,
        r#"vhost_target_volumes{target="a",state="stuck"} 1"#,
        r#"vhost_target_sessions{target="a"} 7"#,
        r#"vhost_target_disconnected_sessions{target="a"} 4"#,
    ];
    assert_eq!(of("a"), expected);
    assert_eq!(
        of("b").len(),
        expected.len() - 3,
        "who has not answered has no age and counts nothing"
    );
    assert_eq!(of("b")[5], r#"vhost_target_state{target="b",state="failed"} 1"#);
}

#[test]
fn pools_are_exported_by_node_and_size_reservations_by_size() {
    let pool = |node, size| {
        let key = PoolKey { size, node: NumaNode(node) };
        let pool = Pool { key, total: 9, free: 5, surplus: 1 };
        PoolFigures { pool, grown: 3, wanted: 4, promised: 2, arrival: 6 }
    };
    let gathered = Gathered {
        pools: vec![pool(0, PageSize::MIB_2), pool(1, PageSize::GIB_1)],
        reserved: BTreeMap::from([(PageSize::MIB_2, 2)]),
        ..Gathered::default()
    };
    let page = lines(gathered, &["vhost_pool", "vhost_reserved"]);
    let values: Vec<&str> =
        page.iter().map(String::as_str).filter(|it| !it.starts_with('#')).collect();
    let expected = [
        r#"vhost_pool_pages{node="0",page_size="2M"} 9"#,
        r#"vhost_pool_pages{node="1",page_size="1G"} 9"#,
        r#"vhost_pool_free_pages{node="0",page_size="2M"} 5"#,
        r#"vhost_pool_free_pages{node="1",page_size="1G"} 5"#,
        r#"vhost_pool_surplus_pages{node="0",page_size="2M"} 1"#,
        r#"vhost_pool_surplus_pages{node="1",page_size="1G"} 1"#,
        r#"vhost_pool_grown_pages{node="0",page_size="2M"} 3"#,
        r#"vhost_pool_grown_pages{node="1",page_size="1G"} 3"#,
        r#"vhost_pool_desired_pages{node="0",page_size="2M"} 4"#,
        r#"vhost_pool_desired_pages{node="1",page_size="1G"} 4"#,
        r#"vhost_pool_promised_pages{node="0",page_size="2M"} 2"#,
        r#"vhost_pool_promised_pages{node="1",page_size="1G"} 2"#,
        r#"vhost_pool_arrival_reserve_pages{node="0",page_size="2M"} 6"#,
        r#"vhost_pool_arrival_reserve_pages{node="1",page_size="1G"} 6"#,
        r#"vhost_reserved_pages{page_size="2M"} 2"#,
    ];
    assert_eq!(values, expected);
}

#[test]
fn of_two_ages_of_a_target_the_younger_counts() {
    let name = |text: &str| text.parse::<TargetName>().unwrap();
    let ages = [(name("a"), Duration::from_secs(3)), (name("a"), Duration::from_secs(2))];
    assert_eq!(age_of(&ages, &name("a")), Some(Duration::from_secs(2)));
    assert_eq!(age_of(&ages, &name("b")), None);
}
