//! What went wrong, as it is published: a stable code for machines, a text for the operator.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::code::Code;

/// A failure in the form in which it leaves the agent, in a report, a callback or a log line.
///
/// `code` is stable between versions; `text` names the operation, the path or address, the value,
/// and what the operator can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable code.
    pub code: Code,
    /// The whole story in one sentence or two.
    pub text: String,
}

impl Fault {
    /// A fault with its code and text.
    pub fn new(code: Code, text: impl Into<String>) -> Fault {
        Fault { code, text: text.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

/// An error and all its sources in one line, which is what an operator and a controller get to see.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |e| e.source())
        .map(|e| e.to_string())
        .collect::<Vec<_>>()
        .join(": ")
}

/// What to do where nothing may be written, for the agent's unit closes all but a few folders
/// (systemd.exec(5), `ProtectSystem=`).
const CLOSED: &str = " (it is read-only: if only vhost-agent.service closes it, make the folder, add it as \
    ReadWritePaths= with `systemctl edit vhost-agent`, and restart the agent)";

/// What to do about an error of a write: that, where it is the reason; `otherwise` where it is not, or more is
/// known.
pub fn closed_or<'a>(source: &std::io::Error, otherwise: &'a str) -> &'a str {
    let is_told = otherwise.contains("read-only");
    match source.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem if !is_told => CLOSED,
        _ => otherwise,
    }
}

/// Something true about the node that is no failure of the call but that the operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable code.
    pub code: Code,
    /// What was found, why it matters, what can be done.
    pub text: String,
}

impl Finding {
    /// A finding with its code and text.
    pub fn new(code: Code, text: impl Into<String>) -> Finding {
        Finding { code, text: text.into() }
    }
}
