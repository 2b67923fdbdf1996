//! File of a task: `outbox/<task>.json` in the state folder, as readable JSON.
//!
//! The file is written when the call is admitted and replaced when it has its result. The call's body is not in it, as
//! it can hold secrets.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Keep;
use super::origin::Origin;
use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::fault::{Fault, chain};
use crate::model::task::{TaskId, TaskResult};
use crate::store::{Durability, Store};

const FOLDER: &str = "outbox";

/// Admitted task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OutboxEntry {
    pub(super) task: TaskId,
    callback_url: String,
    /// Client that made the call. Missing in files of older agents, which did not record it: the call then counts as
    /// one from another node. If that is wrong, a result for a loopback address is not delivered; the opposite error
    /// would open loopback.
    caller: Option<Caller>,
    /// Name of the call in the log, if it has one.
    route: Option<String>,
    taken_in: Stamp,
    /// Missing while the work goes on.
    result: Option<TaskOutcome>,
    /// Not stored: always the default (`OnDisk`) when read from a file.
    #[serde(skip)]
    pub(super) keep: Keep,
}

/// Outcome of the work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TaskOutcome {
    since: Stamp,
    body: String,
    error: Option<String>,
}

/// Wall-clock time, which goes on while the agent does not run; RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Stamp(SystemTime);

impl TryFrom<String> for Stamp {
    type Error = humantime::TimestampError;

    fn try_from(text: String) -> Result<Stamp, Self::Error> {
        humantime::parse_rfc3339(&text).map(Stamp)
    }
}

impl From<Stamp> for String {
    fn from(stamp: Stamp) -> String {
        humantime::format_rfc3339_millis(stamp.0).to_string()
    }
}

/// Path of a task's file, in the state folder.
pub(super) fn file(task: &TaskId) -> String {
    format!("{FOLDER}/{task}.json")
}

impl OutboxEntry {
    /// Entry for a task admitted now.
    pub(super) fn new(
        task: TaskId,
        callback_url: String,
        (route, keep): (Option<&str>, Keep),
        caller: Caller,
    ) -> OutboxEntry {
        let taken_in = Stamp(SystemTime::now());
        let route = route.map(str::to_string);
        let caller = Some(caller);
        OutboxEntry { task, callback_url, caller, route, taken_in, result: None, keep }
    }

    /// Origin for the admission limits: a call that has a name in the log can change the node.
    pub(super) fn origin(&self) -> Origin {
        Origin::new(self.route.is_some(), self.caller)
    }

    /// Records the result, dated now.
    pub(super) fn end(&mut self, body: String, error: Option<String>) {
        self.result = Some(TaskOutcome { since: Stamp(SystemTime::now()), body, error });
    }

    /// Records the failure of a task that was running when the agent died, at an unknown point.
    ///
    /// Sets an `error` for the header, which is for work that broke outside its own error handling, as this did: a
    /// controller that looks for `success` only in some answers would otherwise take the failure for a success.
    pub(super) fn break_off(&mut self) {
        let call = self.route.as_ref().map(|route| format!("{route}, ")).unwrap_or_default();
        let taken_in = String::from(self.taken_in);
        let text = format!(
            "the agent was ended while it worked on this call ({call}taken in {taken_in}): call again"
        );
        let body = json!({"success": false, "error": text, "code": Code::AgentEnded});
        self.end(body.to_string(), Some(text));
    }

    /// Result and its age at `now`; `None` while the work goes on.
    pub(super) fn result(&self, now: SystemTime) -> Option<(TaskResult, Duration)> {
        let TaskOutcome { since, body, error } = self.result.as_ref()?;
        let (task, callback_url) = (self.task.clone(), self.callback_url.clone());
        let (caller, body, error) = (self.caller, body.clone(), error.clone());
        let result = TaskResult { task, callback_url, caller, body, error };
        // A clock that was set back does not make anything older.
        Some((result, now.duration_since(since.0).unwrap_or_default()))
    }

    /// `true` if the work has ended.
    pub(super) fn has_result(&self) -> bool {
        self.result.is_some()
    }
}

/// Parses a task's file and serialises it twice: unchanged, and as the next start records it after a crash.
///
/// # Errors
/// When the bytes are not a task's file.
#[cfg(fuzzing)]
pub fn reread(bytes: &[u8]) -> serde_json::Result<[Vec<u8>; 2]> {
    let mut entry: OutboxEntry = serde_json::from_slice(bytes)?;
    let _ = entry.result(SystemTime::now());
    let as_it_is = serde_json::to_vec(&entry)?;
    entry.break_off();
    Ok([as_it_is, serde_json::to_vec(&entry)?])
}

/// Loads the tasks without a delivered result from the last run, the oldest first. A file that cannot be used is set
/// aside with an error in the log and affects no other.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn load(store: &Store) -> Result<Vec<OutboxEntry>, Fault> {
    let mut entries = Vec::new();
    for name in store.list(FOLDER, Durability::Disk)? {
        let path = format!("{FOLDER}/{name}");
        let aside = |why: &str| store.set_aside(&path, Durability::Disk, why);
        match store.read::<OutboxEntry>(&path, Durability::Disk) {
            Ok(None) => {}
            Err(e) => aside(&chain(&e)),
            Ok(Some(entry)) if file(&entry.task) != path => {
                aside("it is of another task than its name");
            }
            Ok(Some(entry)) => entries.push(entry),
        }
    }
    entries.sort_by_key(|entry| entry.result.as_ref().map_or(entry.taken_in, |r| r.since).0);
    Ok(entries)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::model::quota::QuotaClient;

    fn at(address: &str) -> Caller {
        address.parse().unwrap()
    }

    fn entry(n: u32) -> OutboxEntry {
        let task = TaskId::try_from(format!("{n:032x}")).unwrap();
        OutboxEntry::new(
            task,
            "http://c/x".to_string(),
            (Some("connect"), Keep::OnDisk),
            at("10.0.0.9"),
        )
    }

    #[test]
    fn a_file_is_readable_and_says_the_same_when_it_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        let mut written = entry(7);
        written.taken_in = Stamp(SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
        store.write(&file(&written.task), &written, Durability::Disk).unwrap();
        let path = dir.path().join(file(&written.task));
        let value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let task = format!("{:032x}", 7);
        assert_eq!(
            value,
            json!({
                "version": 1, "task": task, "callbackUrl": "http://c/x", "caller": "10.0.0.9",
                "route": "connect",
                "takenIn": "1970-01-01T00:00:01.500Z", "result": null,
            })
        );
        assert_eq!(load(&store).unwrap(), std::slice::from_ref(&written));
        written.result = Some(TaskOutcome {
            since: Stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(2)),
            body: r#"{"success":true,"error":"Gr\u00f6\u00dfe"}"#.to_string(),
            error: None,
        });
        store.write(&file(&written.task), &written, Durability::Disk).unwrap();
        let read = load(&store).unwrap();
        assert_eq!(read, std::slice::from_ref(&written));
        let (result, age) =
            read[0].result(SystemTime::UNIX_EPOCH + Duration::from_secs(9)).unwrap();
        assert_eq!(result.body, r#"{"success":true,"error":"Gr\u00f6\u00dfe"}"#);
        assert_eq!(age, Duration::from_secs(7));
        assert_eq!(read[0].result(SystemTime::UNIX_EPOCH).unwrap().1, Duration::ZERO);
    }

    #[test]
    fn a_file_without_its_caller_is_taken_for_nobody_on_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        store.write(&file(&entry(1).task), &entry(1), Durability::Disk).unwrap();
        let path = dir.path().join(file(&entry(1).task));
        let mut value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        value.as_object_mut().unwrap().remove("caller").unwrap();
        std::fs::write(&path, value.to_string()).unwrap();
        let mut read = load(&store).unwrap().remove(0);
        assert_eq!(read.origin().client, QuotaClient::Unknown);
        read.break_off();
        assert_eq!(read.result(SystemTime::now()).unwrap().0.caller, None);
    }

    #[test]
    fn what_cannot_be_used_is_set_aside_and_takes_no_other_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        for n in 1..=6 {
            store.write(&file(&entry(n).task), &entry(n), Durability::Disk).unwrap();
        }
        let path = |n: u32| dir.path().join(file(&entry(n).task));
        let text = std::fs::read_to_string(path(1)).unwrap();
        std::fs::write(path(1), &text[..text.len() / 2]).unwrap();
        std::fs::write(path(2), text.replacen("\"version\": 1", "\"version\": 2", 1)).unwrap();
        std::fs::write(path(3), "[1, 2]").unwrap();
        std::fs::write(path(4), &text).unwrap();
        std::fs::remove_file(path(5)).unwrap();
        std::fs::create_dir(path(5)).unwrap();
        std::fs::write(dir.path().join("outbox/notes.txt"), "of the operator").unwrap();
        std::fs::write(dir.path().join("outbox/x.json"), "{}").unwrap();
        let left: Vec<TaskId> = load(&store).unwrap().into_iter().map(|e| e.task).collect();
        assert_eq!(left, [entry(6).task]);
        for n in 1..=5 {
            let aside = if n == 2 { "json.version-2" } else { "json.unusable" };
            assert!(path(n).with_extension(aside).exists() && !path(n).exists(), "{n}");
        }
        assert!(dir.path().join("outbox/notes.txt").exists());
        assert_eq!(load(&store).unwrap().len(), 1, "what was set aside stays there");
    }

    #[test]
    fn a_task_that_was_at_work_has_a_result_that_says_so() {
        let mut broken_off = entry(1);
        assert!(broken_off.result(SystemTime::now()).is_none());
        broken_off.break_off();
        let (result, _) = broken_off.result(SystemTime::now()).unwrap();
        let body: serde_json::Value = serde_json::from_str(&result.body).unwrap();
        let text = body["error"].as_str().unwrap();
        assert!(text.starts_with("the agent was ended while it worked on this call (connect, "));
        assert!(text.ends_with(": call again") && text.is_ascii());
        assert_eq!((&body["success"], result.error.as_deref()), (&json!(false), Some(text)));
    }
}
