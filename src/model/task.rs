//! Request that is answered later: the task id that the controller gave and the address of its result.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::caller::Caller;

/// Task id of a controller: 32 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

impl TryFrom<String> for TaskId {
    type Error = String;

    fn try_from(text: String) -> Result<TaskId, String> {
        if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(TaskId(text))
        } else {
            Err("a task id is 32 hex digits without dashes".to_string())
        }
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> String {
        id.0
    }
}

impl TaskId {
    /// Digits as the controller wrote them.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Result that is sent to the controller when a task is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskResult {
    pub task: TaskId,
    /// `http://…` or `https://…`, validated when the request came in.
    pub callback_url: String,
    /// Caller that supplied `callback_url`; `None` if it was not recorded.
    pub caller: Option<Caller>,
    /// JSON body, ASCII.
    pub body: String,
    /// Text of the callback's `error` header: the handler failed outside its own error handling.
    pub error: Option<String>,
}
