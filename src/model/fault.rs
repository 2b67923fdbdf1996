//! Published errors and findings: a stable code for machines, a text for the operator.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::code::Code;

/// Failure in the form in which it leaves the agent, in a report, a callback or a log line.
///
/// `code` is stable between versions; `text` names the operation, the path or address, the value,
/// and what the operator can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub code: Code,
    /// Description in one sentence or two.
    pub text: String,
}

impl Fault {
    pub fn new(code: Code, text: impl Into<String>) -> Fault {
        Fault { code, text: text.into() }
    }

    /// Combines `faults` into one error, with the code of the first and the texts of all.
    ///
    /// # Errors
    /// If `faults` is not empty.
    pub fn none_of(faults: Vec<Fault>) -> Result<(), Fault> {
        let Some(code) = faults.first().map(|fault| fault.code) else { return Ok(()) };
        let texts: Vec<String> = faults.into_iter().map(|fault| fault.text).collect();
        Err(Fault::new(code, texts.join("; moreover, ")))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

/// Error and all its sources in one line, as operators and controllers get to see it.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |e| e.source())
        .map(|e| e.to_string())
        .collect::<Vec<_>>()
        .join(": ")
}

/// Advice for a file system that is read-only for the agent, because its systemd unit closes all but a few folders
/// (systemd.exec(5), `ProtectSystem=`).
const CLOSED: &str = " (it is read-only: if only vhost-agent.service closes it, make the folder, add it as \
    ReadWritePaths= with `systemctl edit vhost-agent`, and restart the agent)";

/// Selects the advice for a failed write: `CLOSED` if the file system is read-only and `otherwise` does not mention
/// that, else `otherwise`.
pub fn closed_or<'a>(source: &std::io::Error, otherwise: &'a str) -> &'a str {
    let is_named = otherwise.contains("read-only");
    match source.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem if !is_named => CLOSED,
        _ => otherwise,
    }
}

/// Fact about the node that is no failure of the request but that the operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub code: Code,
    /// Description of the fact, why it matters, and what can be done.
    pub text: String,
}

impl From<Fault> for Finding {
    fn from(Fault { code, text }: Fault) -> Finding {
        Finding { code, text }
    }
}

impl Finding {
    pub fn new(code: Code, text: impl Into<String>) -> Finding {
        Finding { code, text: text.into() }
    }
}
