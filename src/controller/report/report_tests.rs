//! How reporting goes in time, on tokio's paused clock, with a played controller.

use std::sync::Mutex;

use super::*;
use crate::watchdog::Watchdog;

const SECOND: Duration = Duration::from_secs(1);

/// How the played controller answers: after so long, like this.
type Manner = (Duration, ReportOutcome);

/// An attempt that was begun: when, where, with which generation.
type Attempt = (Duration, String, u64);

struct Played {
    began: Instant,
    manner: Arc<Mutex<Manner>>,
    attempts: Arc<Mutex<Vec<Attempt>>>,
    reports: watch::Sender<Arc<NodeReport>>,
    identity: watch::Sender<HostIdentity>,
}

impl Played {
    fn start(set: Option<&str>) -> Played {
        let began = Instant::now();
        let manner = Arc::new(Mutex::new((Duration::ZERO, ReportOutcome::Taken)));
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let (reports, identity) = (watch::Sender::default(), watch::Sender::default());
        let (answers, seen) = (manner.clone(), attempts.clone());
        let attempt = move |url: String, report: Arc<NodeReport>| {
            seen.lock().unwrap().push((began.elapsed(), url, report.generation));
            let (takes, verdict) = answers.lock().unwrap().clone();
            async move {
                tokio::time::sleep(takes).await;
                verdict
            }
        };
        let reporter = Reporter {
            policy: ReportPolicy {
                url: set.unwrap_or_default().to_string(),
                ..ReportPolicy::default()
            },
            reports: reports.subscribe(),
            identity: identity.subscribe(),
            tally: Arc::default(),
            heartbeat: Watchdog::default().register(),
            attempt,
        };
        tokio::spawn(reporter.run());
        Played { began, manner, attempts, reports, identity }
    }

    fn answers(&self, takes: Duration, verdict: ReportOutcome) {
        *self.manner.lock().unwrap() = (takes, verdict);
    }

    fn connects(&self, url: &str) {
        self.identity.send_modify(|identity| identity.send_command_url = url.to_string());
    }

    fn becomes(&self, generation: u64) {
        self.reports.send_replace(Arc::new(NodeReport { generation, ..NodeReport::default() }));
    }

    /// The attempts of the next so much time: seconds since the beginning, and generations.
    async fn within(&self, time: Duration) -> Vec<(f64, u64)> {
        tokio::time::sleep(time).await;
        let attempts = std::mem::take(&mut *self.attempts.lock().unwrap());
        attempts.into_iter().map(|(at, _, generation)| (at.as_secs_f64(), generation)).collect()
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}

fn generations(attempts: &[(f64, u64)]) -> Vec<u64> {
    attempts.iter().map(|(_, generation)| *generation).collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_until_an_address_is_known_and_then_at_once() {
    let played = Played::start(None);
    played.becomes(1);
    assert_eq!(played.within(1000 * SECOND).await, []);
    played.connects("http://a/");
    let attempts = played.within(SECOND).await;
    assert_eq!(generations(&attempts), [1]);
    played.connects("http://b/");
    played.within(Duration::ZERO).await;
    played.connects("http://c/");
    tokio::time::sleep(SECOND).await;
    let urls: Vec<String> =
        played.attempts.lock().unwrap().iter().map(|(_, url, _)| url.clone()).collect();
    assert_eq!(urls.last().map(String::as_str), Some("http://c/"));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_set_is_the_one() {
    let played = Played::start(Some("http://set/"));
    played.connects("http://learnt/");
    tokio::time::sleep(SECOND).await;
    let attempts = played.attempts.lock().unwrap().clone();
    assert!(!attempts.is_empty() && attempts.iter().all(|(_, url, _)| url == "http://set/"));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_sent_at_once_and_without_one_there_is_the_heartbeat() {
    let played = Played::start(Some("http://a/"));
    played.within(SECOND).await;
    played.becomes(2);
    let changed = played.now();
    let attempts = played.within(601 * SECOND).await;
    assert_eq!(attempts[0], (changed, 2));
    assert!((10..=12).contains(&attempts.len()), "{attempts:?}");
    assert!(attempts.windows(2).all(|pair| (54.0..=66.0).contains(&(pair[1].0 - pair[0].0))));
    assert!(attempts.iter().all(|(_, generation)| *generation == 2));
}

#[tokio::test(start_paused = true)]
async fn what_changed_while_the_controller_was_away_is_sent_once_in_its_newest_form() {
    let played = Played::start(Some("http://a/"));
    played.within(SECOND).await;
    played.answers(Duration::ZERO, ReportOutcome::Failed("refused".to_string()));
    for generation in 2..=1001 {
        played.becomes(generation);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let attempts = played.within(Duration::ZERO).await;
    assert!((9..=11).contains(&attempts.len()), "one each 100 ms: {attempts:?}");
    played.within(500 * SECOND).await;
    played.answers(Duration::ZERO, ReportOutcome::Taken);
    assert_eq!(generations(&played.within(65 * SECOND).await)[0], 1001);
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_to_their_most_while_it_fails() {
    let played = Played::start(Some("http://a/"));
    played.answers(Duration::ZERO, ReportOutcome::Failed("refused".to_string()));
    let attempts = played.within(3600 * SECOND).await;
    let pauses: Vec<f64> = attempts.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(
        (0.799..=1.01).contains(&pauses[0]) && (1.599..=2.01).contains(&pauses[1]),
        "{pauses:?}"
    );
    assert!(pauses[7..].iter().all(|pause| (47.99..=60.01).contains(pause)), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_controller_without_the_path_is_asked_rarely_and_when_it_connects() {
    let played = Played::start(Some("http://a/"));
    played.answers(Duration::ZERO, ReportOutcome::Unknown);
    played.becomes(2);
    assert_eq!(generations(&played.within(SECOND).await), [2]);
    played.becomes(3);
    assert_eq!(played.within(598 * SECOND).await, []);
    assert_eq!(generations(&played.within(2 * SECOND).await), [3]);
    played.connects("http://a/");
    assert_eq!(generations(&played.within(SECOND).await), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_reconnects_gets_a_report_again() {
    let played = Played::start(None);
    played.connects("http://a/");
    assert_eq!(played.within(SECOND).await.len(), 1);
    played.connects("http://a/");
    assert_eq!(played.within(SECOND).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_newer_state_waits_a_second_for_an_attempt_that_hangs_and_then_overtakes_it() {
    let played = Played::start(Some("http://a/"));
    played.within(SECOND).await;
    played.answers(5 * SECOND, ReportOutcome::Failed("no answer".to_string()));
    played.becomes(2);
    let hung = played.now();
    assert_eq!(played.within(SECOND / 2).await, [(hung, 2)]);
    played.answers(Duration::ZERO, ReportOutcome::Taken);
    played.becomes(3);
    let attempts = played.within(SECOND).await;
    assert_eq!(generations(&attempts), [3]);
    assert!((attempts[0].0 - hung - 1.0).abs() < 0.01, "{attempts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_controller_takes_every_other_state_to_its_end_and_always_the_newest() {
    let played = Played::start(Some("http://a/"));
    played.within(SECOND).await;
    played.answers(3 * SECOND, ReportOutcome::Taken);
    for generation in 2..=200 {
        played.becomes(generation);
        tokio::time::sleep(SECOND / 10).await;
    }
    let attempts = played.within(10 * SECOND).await;
    // Each four seconds one is overtaken, and one gets its time.
    assert!((9..=13).contains(&attempts.len()), "{attempts:?}");
    assert_eq!(attempts.last().unwrap().1, 200);
    assert!(attempts.windows(2).all(|pair| pair[0].1 < pair[1].1), "{attempts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connect_during_a_report_causes_one_more() {
    let played = Played::start(None);
    played.answers(SECOND / 2, ReportOutcome::Taken);
    played.connects("http://a/");
    played.within(SECOND / 10).await;
    for _ in 0..10 {
        played.connects("http://a/");
        played.within(SECOND / 100).await;
    }
    assert_eq!(played.within(2 * SECOND).await.len(), 1, "however often it connected");
    played.becomes(2);
    assert_eq!(played.within(SECOND / 10).await.len(), 1);
    played.connects("http://b/");
    tokio::time::sleep(SECOND / 10).await;
    assert_eq!(played.attempts.lock().unwrap().last().unwrap().1, "http://b/");
}

#[tokio::test(start_paused = true)]
async fn connecting_again_and_again_is_no_reason_to_hammer_a_controller_that_fails() {
    let played = Played::start(Some("http://a/"));
    played.answers(Duration::ZERO, ReportOutcome::Failed("refused".to_string()));
    for _ in 0..1000 {
        played.connects("http://a/");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let attempts = played.within(Duration::ZERO).await;
    assert!((9..=12).contains(&attempts.len()), "{attempts:?}");
}
