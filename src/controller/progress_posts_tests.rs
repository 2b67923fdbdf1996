//! Progress posts over time, on tokio's paused clock, with a played controller.

use std::sync::Mutex;

use super::*;
use crate::model::caller::Caller;
use crate::model::egress_policy::EgressPolicy;
use crate::model::prepare::{StepOutcome, StepReport, WorkEvent};
use crate::model::progress::Stage;
use crate::model::step::{Area, Step};

const SECOND: Duration = Duration::from_secs(1);
const WITHIN: Duration = Duration::from_secs(5);

/// A post that was begun: when, and how far the work was.
type Post = (Duration, u32);

struct Played {
    began: Instant,
    events: broadcast::Sender<Progress>,
    end: Option<oneshot::Sender<bool>>,
    posts: Arc<Mutex<Vec<Post>>>,
    run: tokio::task::JoinHandle<()>,
}

impl Played {
    /// A controller that takes so long for each post.
    fn start(takes: Duration, verdict: PostOutcome) -> Played {
        let began = Instant::now();
        let posts = Arc::new(Mutex::new(Vec::new()));
        let noted = posts.clone();
        let post = move |course: &ProgressSource| {
            noted.lock().unwrap().push((began.elapsed(), course.percent()));
            async move {
                tokio::time::sleep(takes.min(WITHIN)).await;
                verdict
            }
        };
        let (events, heard) = broadcast::channel(256);
        let (end, ended) = oneshot::channel();
        let course = ProgressSource::new(WorkId::default(), Stage::default());
        let reporter = ProgressReporter { course, events: heard, ended, post, within: WITHIN };
        Played { began, events, end: Some(end), posts, run: tokio::spawn(reporter.run()) }
    }

    fn sends(&self, event: WorkEvent) {
        self.events.send(Progress { work: WorkId::default(), event }).unwrap();
    }

    fn begins(&self) {
        let step = Step::DropPageCache;
        let (area, subject) = (Area::Pools, step.subject());
        self.sends(WorkEvent::Begun { area, step: step.name().into(), subject });
    }

    fn prints(&self) {
        self.sends(WorkEvent::Line { area: Area::Pools, text: "a line".into() });
    }

    fn finishes(&self) {
        let report = StepReport::planned(&Step::DropPageCache);
        let report = StepReport { outcome: StepOutcome::Done, ..report };
        self.sends(WorkEvent::Ended(report));
    }

    /// The call ends; all posts, and how long after its end the posts ended.
    async fn ends(mut self, succeeded: bool) -> (Vec<Post>, Duration) {
        let now = Instant::now();
        self.end.take().unwrap().send(succeeded).unwrap();
        self.run.await.unwrap();
        (self.posts.lock().unwrap().clone(), now.elapsed())
    }
}

fn percents(posts: &[Post]) -> Vec<u32> {
    posts.iter().map(|(_, percent)| *percent).collect()
}

async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[tokio::test(start_paused = true)]
async fn beginning_steps_and_success_are_reported() {
    let played = Played::start(Duration::ZERO, PostOutcome::Goes);
    pause(SECOND).await;
    for _ in 0..2 {
        played.begins();
        pause(SECOND).await;
        played.finishes();
        pause(SECOND).await;
    }
    let (posts, _) = played.ends(true).await;
    assert_eq!(percents(&posts), [0, 0, 50, 50, 66, 100]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_reported_up_to_its_last_step() {
    let played = Played::start(Duration::ZERO, PostOutcome::Goes);
    pause(SECOND).await;
    played.finishes();
    let (posts, _) = played.ends(false).await;
    assert_eq!(percents(&posts), [0, 50]);
    let played = Played::start(Duration::ZERO, PostOutcome::Goes);
    pause(SECOND).await;
    let (posts, _) = played.ends(false).await;
    assert_eq!(percents(&posts), [0], "there is nothing to say");
}

#[tokio::test(start_paused = true)]
async fn lines_are_reported_at_most_once_a_second() {
    let played = Played::start(Duration::ZERO, PostOutcome::Goes);
    played.begins();
    for _ in 0..100 {
        played.prints();
        pause(SECOND / 10).await;
    }
    let count = played.posts.lock().unwrap().len();
    assert!((10..=13).contains(&count), "{count} posts in {:?}", played.began.elapsed());
    played.ends(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_controller_gets_the_newest_one_post_at_a_time() {
    let played = Played::start(3 * SECOND, PostOutcome::Goes);
    for _ in 0..9 {
        pause(SECOND / 10).await;
        played.finishes();
    }
    pause(4 * SECOND).await;
    let (posts, _) = played.ends(true).await;
    assert_eq!(percents(&posts), [0, 90, 100]);
    assert!(posts[1].0 >= 3 * SECOND && posts[2].0 > posts[1].0, "{posts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_hangs_is_let_go_within_the_time_of_one_post() {
    let played = Played::start(3600 * SECOND, PostOutcome::Goes);
    pause(SECOND).await;
    let (posts, took) = played.ends(true).await;
    assert_eq!(percents(&posts), [0, 100], "it is offered the end all the same");
    assert_eq!(took, WITHIN);
}

#[tokio::test(start_paused = true)]
async fn a_404_ends_the_progress_of_that_call() {
    let played = Played::start(Duration::ZERO, PostOutcome::Unknown);
    pause(SECOND).await;
    assert!(played.run.is_finished());
    assert_eq!(percents(&played.posts.lock().unwrap()), [0]);
}

#[tokio::test(start_paused = true)]
async fn work_that_panics_ends_the_progress() {
    let mut played = Played::start(Duration::ZERO, PostOutcome::Goes);
    pause(SECOND).await;
    drop(played.end.take());
    played.run.await.unwrap();
    assert_eq!(percents(&played.posts.lock().unwrap()), [0]);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_calls_with_progress_is_limited() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(dir.path(), dir.path()).unwrap();
    let identities = Arc::new(Identities::open(store).unwrap());
    let reaches = Reaches::new(EgressPolicy::Any, identities.clone());
    let posts = ProgressPosts::new(identities, reaches, WITHIN);
    let (_events, _) = broadcast::channel(1);
    let follow = |url: Option<&str>| {
        let (url, stage) = (url.map(str::to_string), Stage::default());
        let (context, stack, caller) = (json!({}), json!([]), Caller::Here);
        let asked = ProgressRequest { context, stack, url, caller, stage, timeout: None };
        posts.follow(asked, (WorkKind::Prepare, WorkId::default()), _events.subscribe())
    };
    assert!(follow(None).is_none(), "nobody has said where to");
    let followed: Vec<_> =
        (0..MOST).map(|_| follow(Some("http://127.0.0.1:1/")).unwrap()).collect();
    assert!(follow(Some("http://127.0.0.1:1/")).is_none());
    drop(followed);
}
