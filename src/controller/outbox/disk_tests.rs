//! The outbox's files across restarts and failures of the disk.

use super::*;
use crate::controller::outbox::Keep;
use crate::controller::outbox::entry::load;
use crate::model::caller::Caller;
use crate::watchdog::Watchdog;

fn entry(n: u32) -> OutboxEntry {
    let task = TaskId::try_from(format!("{n:032x}")).unwrap();
    OutboxEntry::new(task, "http://c/x".to_string(), (None, Keep::OnDisk), Caller::Here)
}

fn with_result(n: u32) -> OutboxEntry {
    let mut entry = entry(n);
    entry.end("{}".to_string(), None);
    entry
}

/// A disk, its writer at work.
fn started(store: &Store) -> OutboxDisk {
    let disk = OutboxDisk::default();
    tokio::spawn(run(disk.clone(), store.clone(), |_| {}, Watchdog::default().register()));
    disk
}

async fn idle(disk: &OutboxDisk) {
    while !disk.is_idle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn pending_writes_are_batched_and_the_last_per_file_wins() {
    let disk = OutboxDisk::default();
    let mut first = disk.write(entry(1));
    let _second = disk.write(with_result(1));
    disk.remove(&entry(2).task);
    let _third = disk.write(entry(2));
    disk.remove(&entry(3).task);
    assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    assert!(!disk.is_idle());
    let now = Instant::now();
    let batch = disk.wanted().take(now);
    let tasks: Vec<&TaskId> = batch.writes.iter().map(|write| &write.entry.task).collect();
    assert_eq!(tasks, [&entry(1).task, &entry(2).task]);
    assert!(batch.writes[0].entry.has_result() && batch.removals.is_empty());
    let came = Came { writes: vec![Ok(()); 2], removals: Vec::new() };
    disk.wanted().note(&batch, &came, now);
    assert_eq!(disk.wanted().take(now).removals, [entry(3).task]);
}

#[test]
fn more_than_fit_go_one_batch_after_the_other_and_who_came_first_goes_first() {
    let disk = OutboxDisk::default();
    let tasks: Vec<TaskId> = (0..600).rev().map(|n| entry(n).task).collect();
    let _told: Vec<WriteReceiver> = (0..600).rev().map(|n| disk.write(entry(n))).collect();
    let mut gone = Vec::new();
    for most in [256, 256, 88] {
        let batch = disk.wanted().take(Instant::now());
        assert_eq!(batch.writes.len(), most);
        gone.extend(batch.writes.iter().map(|write| write.entry.task.clone()));
    }
    assert_eq!(gone, tasks);
}

#[test]
fn what_failed_is_wanted_again_with_growing_pauses_unless_something_else_is() {
    let disk = OutboxDisk::default();
    let full = || Err(Fault::new(Code::StateUnwritable, "full"));
    let mut now = Instant::now();
    let _told = [with_result(1), with_result(2), entry(3)].map(|entry| disk.write(entry));
    let mut pauses = Vec::new();
    for round in 0..7 {
        let batch = disk.wanted().take(now);
        assert!(!batch.writes.is_empty());
        if round == 3 {
            disk.remove(&entry(2).task);
        }
        let writes = batch.writes.iter().map(|_| full()).collect();
        let removals = batch.removals.iter().map(|_| full()).collect();
        disk.wanted().note(&batch, &Came { writes, removals }, now);
        let retry = disk.wanted().retry.unwrap();
        pauses.push((retry - now).as_secs());
        now = retry;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    let wanted = disk.wanted();
    let left: Vec<_> = wanted.failed.iter().map(|(t, e)| (t.clone(), e.is_some())).collect();
    assert_eq!(left, [(entry(1).task, true)]);
    assert!(wanted.removals.contains(&entry(2).task), "its removal waits for the writes");
}

#[tokio::test]
async fn many_concurrent_writes_are_all_done_and_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), dir.path()).unwrap();
    let disk = started(&store);
    let told: Vec<WriteReceiver> = (0..200).map(|n| disk.write(entry(n))).collect();
    for told in told {
        assert_eq!(told.await.unwrap(), Ok(()));
    }
    assert_eq!(load(&store).unwrap().len(), 200);
    assert_eq!(disk.write(with_result(7)).await.unwrap(), Ok(()));
    (0..199).for_each(|n| disk.remove(&entry(n).task));
    idle(&disk).await;
    assert_eq!(load(&store).unwrap().len(), 1);
}

#[tokio::test]
async fn one_that_cannot_be_written_takes_no_other_with_it_and_is_written_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), dir.path()).unwrap();
    let in_the_way = dir.path().join(file(&entry(2).task));
    std::fs::create_dir_all(in_the_way.join("x")).unwrap();
    let disk = started(&store);
    let mut told = [1, 2, 3].map(|n| disk.write(with_result(n)));
    for (n, told) in told.iter_mut().enumerate() {
        let came = told.await.unwrap();
        assert_eq!(came.is_err(), n == 1, "{came:?}");
    }
    std::fs::remove_dir_all(&in_the_way).unwrap();
    // Another one that is written says that there is room.
    disk.write(entry(4)).await.unwrap().unwrap();
    while !in_the_way.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    idle(&disk).await;
    assert_eq!(load(&store).unwrap().len(), 4);
}
