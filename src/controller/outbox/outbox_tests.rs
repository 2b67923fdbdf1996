//! The handle: on disk before it is said, and known again after a restart.
#![allow(clippy::disallowed_methods)]

use serde_json::Value;

use super::*;
use crate::watchdog::Watchdog;

struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Node {
        Node(tempfile::tempdir().unwrap())
    }

    /// The outbox of an agent that starts.
    fn start(&self) -> Outbox {
        self.start_with(Offering::example())
    }

    fn start_with(&self, offering: Offering) -> Outbox {
        let store = Store::open(self.0.path(), self.0.path()).unwrap();
        Outbox::open(offering, store, Watchdog::default().register()).unwrap()
    }

    /// The file of a task.
    fn file(&self, n: u32) -> Option<Value> {
        let text = std::fs::read(self.0.path().join(entry::file(&id(n)))).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }
}

fn id(n: u32) -> TaskId {
    TaskId::try_from(format!("{n:032x}")).unwrap()
}

const ENSURE: (Option<&str>, Keep) = (Some("ensure"), Keep::OnDisk);
const UNNAMED: (Option<&str>, Keep) = (None, Keep::OnDisk);
const HEALTH: (Option<&str>, Keep) = (None, Keep::InMemory);

async fn slot(outbox: &Outbox, n: u32) -> TaskSlot {
    slot_of(outbox, n, ENSURE).await
}

async fn slot_of(outbox: &Outbox, n: u32, call: (Option<&'static str>, Keep)) -> TaskSlot {
    match outbox.admit(&id(n), "http://c/x", call, Caller::Here).await {
        TaskAdmission::Work(slot) => slot,
        other => panic!("{other:?}"),
    }
}

fn due(outbox: &Outbox) -> Vec<TaskResult> {
    outbox.take_due(Instant::now(), 99).into_iter().map(|(result, _)| result).collect()
}

/// Waits until something is due.
async fn next(outbox: &Outbox) -> Vec<TaskResult> {
    loop {
        let due = due(outbox);
        if !due.is_empty() {
            return due;
        }
        outbox.news().await;
    }
}

#[tokio::test]
async fn a_task_is_on_disk_before_its_work_and_its_result_before_it_is_offered() {
    let (node, url) = (Node::new(), "http://c/x");
    let outbox = node.start();
    let work = slot(&outbox, 1).await;
    let file = node.file(1).unwrap();
    assert_eq!((&file["route"], &file["result"]), (&"ensure".into(), &Value::Null));
    assert!(matches!(outbox.admit(&id(1), url, UNNAMED, Caller::Here).await, TaskAdmission::Known));
    work.finish(r#"{"success":true}"#.into(), None).await;
    assert_eq!(node.file(1).unwrap()["result"]["body"], r#"{"success":true}"#);
    assert_eq!(next(&outbox).await.len(), 1);
    assert!(matches!(outbox.admit(&id(1), url, UNNAMED, Caller::Here).await, TaskAdmission::Known));
    outbox.record_attempt(&id(1), DeliveryOutcome::Taken, Instant::now());
    outbox.empty().await;
    assert_eq!(node.file(1), None);
    slot(&outbox, 1).await.finish("{}".into(), None).await;
}

#[tokio::test]
async fn a_restart_keeps_pending_results_and_reports_interrupted_work() {
    let node = Node::new();
    let (waited, at_work) = {
        let outbox = node.start();
        slot(&outbox, 1).await.finish("{\"n\": 1}".into(), Some("broke".into())).await;
        let waited = next(&outbox).await;
        (waited, slot(&outbox, 2).await)
    };
    let outbox = node.start();
    assert_eq!(outbox.load(), (0, 2));
    for n in [1, 2] {
        assert!(matches!(
            outbox.admit(&id(n), "http://c/x", UNNAMED, Caller::Here).await,
            TaskAdmission::Known
        ));
    }
    let mut again = next(&outbox).await;
    while again.len() < 2 {
        again.extend(next(&outbox).await);
    }
    again.sort_by_key(|result| result.task.clone());
    assert_eq!(again[0], waited[0]);
    assert_eq!((&again[1].task, again[1].callback_url.as_str()), (&id(2), "http://c/x"));
    assert!(again[1].body.contains("was ended while it worked") && again[1].error.is_some());
    assert_eq!(node.file(2).unwrap()["result"]["body"], again[1].body.as_str());
    // Dying again changes nothing: now it has a result.
    let third = node.start();
    let mut results = next(&third).await;
    results.sort_by_key(|result| result.task.clone());
    assert_eq!(results, again);
    std::mem::forget(at_work);
}

#[tokio::test(start_paused = true)]
async fn the_age_counts_over_a_restart() {
    let node = Node::new();
    let outbox = node.start();
    slot(&outbox, 1).await.finish("{}".into(), None).await;
    let path = node.0.path().join(entry::file(&id(1)));
    let mut file = node.file(1).unwrap();
    let since = SystemTime::now() - Duration::from_secs(3000);
    file["result"]["since"] = humantime::format_rfc3339_millis(since).to_string().into();
    std::fs::write(&path, file.to_string()).unwrap();
    let outbox = node.start();
    let began = Instant::now();
    let last = loop {
        tokio::time::sleep_until(outbox.next_due().unwrap()).await;
        assert_eq!(due(&outbox).len(), 1);
        if outbox.record_attempt(&id(1), DeliveryOutcome::Again, Instant::now())
            == AfterAttempt::TooOld
        {
            break began.elapsed();
        }
    };
    assert!(last > Duration::from_secs(500) && last < Duration::from_secs(601), "{last:?}");
    outbox.empty().await;
    assert_eq!(node.file(1), None, "what is given up is gone from the disk");
}

#[tokio::test]
async fn a_call_that_cannot_be_written_is_refused_and_one_like_it_that_came_meanwhile_too() {
    let node = Node::new();
    let outbox = node.start();
    let in_the_way = node.0.path().join("outbox");
    std::fs::write(&in_the_way, "no folder").unwrap();
    let task = id(1);
    let (first, second) = tokio::join!(
        outbox.admit(&task, "http://c/x", UNNAMED, Caller::Here),
        outbox.admit(&task, "http://c/x", UNNAMED, Caller::Here)
    );
    for admission in [first, second] {
        match admission {
            TaskAdmission::Unwritable(fault) => assert_eq!(fault.code, Code::StateUnwritable),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(outbox.load(), (0, 0));
    std::fs::remove_file(&in_the_way).unwrap();
    slot(&outbox, 1).await.finish("{}".into(), None).await;
}

#[tokio::test]
async fn a_result_that_cannot_be_written_is_offered_and_written_when_it_can() {
    let node = Node::new();
    let outbox = node.start();
    let work = slot(&outbox, 1).await;
    let (folder, aside) = (node.0.path().join("outbox"), node.0.path().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "no folder").unwrap();
    work.finish("{}".into(), None).await;
    assert_eq!(next(&outbox).await.len(), 1, "the controller waits for it");
    outbox.record_attempt(&id(1), DeliveryOutcome::Again, Instant::now());
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    while node.file(1).unwrap()["result"].is_null() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(outbox.load(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_holds_up_nobody_for_longer_than_its_time() {
    let outbox = Outbox::new(Offering::example());
    let began = Instant::now();
    match outbox.admit(&id(1), "http://c/x", UNNAMED, Caller::Here).await {
        TaskAdmission::Unwritable(fault) => assert!(fault.text.contains("within 10s"), "{fault}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(began.elapsed(), WRITE_TIMEOUT);
    assert!(outbox.load() == (0, 0) && outbox.disk.is_idle(), "the call was never there");
    let entry = Some(OutboxEntry::new(id(2), "http://c/x".into(), UNNAMED, Caller::Here));
    let work = TaskSlot { outbox: outbox.clone(), entry };
    let finished = tokio::spawn(work.finish("{}".into(), None));
    assert!(timeout(WRITE_TIMEOUT / 2, outbox.news()).await.is_ok());
    assert!(due(&outbox).is_empty());
    finished.await.unwrap();
    assert_eq!(due(&outbox).len(), 1, "the controller waits for it");
}

#[tokio::test]
async fn work_that_goes_on_after_its_result_keeps_its_place() {
    let node = Node::new();
    let outbox = node.start_with(Offering::bounded(1, 8));
    let goes_on = slot(&outbox, 1).await.finish_early("{}".into()).await;
    assert_eq!(next(&outbox).await.len(), 1, "the result is offered");
    outbox.record_attempt(&id(1), DeliveryOutcome::Taken, Instant::now());
    assert_eq!(outbox.load(), (1, 0));
    let refused = outbox.admit(&id(2), "http://c/", ENSURE, Caller::Here).await;
    assert!(matches!(refused, TaskAdmission::Full(f) if f.code == Code::TooManyTasks));
    let empty = timeout(Duration::from_millis(50), outbox.empty());
    assert!(empty.await.is_err(), "a drain waits for it");
    let (empty, ()) = tokio::join!(outbox.empty(), async { drop(goes_on) });
    assert_eq!(empty, ());
    assert!(matches!(
        outbox.admit(&id(2), "http://c/", ENSURE, Caller::Here).await,
        TaskAdmission::Work(_)
    ));
}

#[tokio::test]
async fn work_that_is_dropped_still_ends_in_a_result() {
    let node = Node::new();
    let outbox = node.start();
    drop(slot(&outbox, 1).await);
    let due = next(&outbox).await;
    assert!(due[0].error.is_some() && due[0].body.contains("\"success\":false"));
}

#[tokio::test]
async fn a_task_in_memory_is_known_and_offered_and_never_has_a_file() {
    let (node, url) = (Node::new(), "http://c/x");
    let outbox = node.start();
    let work = slot_of(&outbox, 1, HEALTH).await;
    assert!(matches!(outbox.admit(&id(1), url, HEALTH, Caller::Here).await, TaskAdmission::Known));
    work.finish("{}".into(), None).await;
    assert!(matches!(outbox.admit(&id(1), url, HEALTH, Caller::Here).await, TaskAdmission::Known));
    assert_eq!(due(&outbox).len(), 1, "it is due at once");
    assert!(matches!(
        outbox.record_attempt(&id(1), DeliveryOutcome::Again, Instant::now()),
        AfterAttempt::After(_)
    ));
    assert_eq!(
        outbox.record_attempt(&id(1), DeliveryOutcome::Taken, Instant::now()),
        AfterAttempt::Gone
    );
    outbox.empty().await;
    assert!(!node.0.path().join("outbox").exists(), "the disk was never asked");
    slot_of(&outbox, 1, HEALTH).await.finish("{}".into(), None).await;
}

#[tokio::test]
async fn tasks_in_memory_take_places_of_the_same_bounds() {
    let node = Node::new();
    let outbox = node.start_with(Offering::bounded(8, 2));
    slot_of(&outbox, 1, UNNAMED).await.finish("{}".into(), None).await;
    slot_of(&outbox, 2, HEALTH).await.finish("{}".into(), None).await;
    for call in [UNNAMED, HEALTH] {
        let refused = outbox.admit(&id(3), "http://c/x", call, Caller::Here).await;
        assert!(matches!(refused, TaskAdmission::Full(f) if f.code == Code::OutboxFull));
    }
}

#[tokio::test]
async fn a_restart_forgets_tasks_in_memory_and_no_other() {
    let node = Node::new();
    let outbox = node.start();
    slot(&outbox, 1).await.finish("{}".into(), None).await;
    slot_of(&outbox, 2, HEALTH).await.finish("{}".into(), None).await;
    std::mem::forget(slot_of(&outbox, 3, HEALTH).await);
    assert_eq!(outbox.load(), (1, 2));
    let outbox = node.start();
    assert_eq!(outbox.load(), (0, 1));
    assert_eq!(next(&outbox).await[0].task, id(1));
    slot_of(&outbox, 2, HEALTH).await.finish("{}".into(), None).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_holds_up_no_task_in_memory() {
    let outbox = Outbox::new(Offering::example());
    let began = Instant::now();
    slot_of(&outbox, 1, HEALTH).await.finish("{}".into(), None).await;
    assert_eq!(due(&outbox).len(), 1);
    assert_eq!(
        outbox.record_attempt(&id(1), DeliveryOutcome::Taken, Instant::now()),
        AfterAttempt::Gone
    );
    outbox.empty().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}
