//! Deliberate faults, to test clients of a target: `--debug-faults FILE`.
//!
//! The file is read at each call, so that it can be changed while the target runs. Each line has one fault:
//!
//! ```text
//! METHOD[:NAME] spin SECONDS        the control socket's thread uses the CPU for that time, then answers
//! METHOD[:NAME] sleep SECONDS       that thread sleeps, as in a blocking open; `forever` never answers
//! METHOD[:NAME] exit CODE           the process exits instead of answering
//! sessions sleep SECONDS            virtual machines are accepted, but not served before the target has that age
//! ```
//! `NAME` is the `name` or `ctrlr` of the request. During a fault no other request is answered, as SPDK has one RPC
//! thread, and I/O continues.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Fault to inject before an answer, or in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InjectedFault {
    Spin(Duration),
    Sleep(Duration),
    Exit(i32),
}

impl fmt::Display for InjectedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InjectedFault::Spin(time) => write!(f, "spin for {time:?}"),
            InjectedFault::Sleep(time) => write!(f, "sleep for {time:?}"),
            InjectedFault::Exit(code) => write!(f, "exit with code {code}"),
        }
    }
}

/// Fault file of a target.
#[derive(Debug, Clone)]
pub(super) struct Faults(pub(super) PathBuf);

impl Faults {
    /// Injects the fault that the file sets for `method` and the `name` or `ctrlr` in `params`, if it sets one.
    pub(super) fn commit(&self, method: &str, params: Option<&Value>) {
        let member = |key| params.and_then(|params| params.get(key)).and_then(Value::as_str);
        let name = member("name").or_else(|| member("ctrlr")).unwrap_or_default();
        let Some(fault) = self.find(method, name) else { return };
        tracing::warn!(
            method,
            name,
            "fault injected into {method} of '{name}' (--debug-faults): {fault}"
        );
        match fault {
            InjectedFault::Sleep(time) => std::thread::sleep(time),
            InjectedFault::Spin(time) => {
                let end = Instant::now() + time;
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
            }
            InjectedFault::Exit(code) => std::process::exit(code),
        }
    }

    /// Age of the target before which it accepts virtual machines without serving them.
    pub(super) fn sessions_after(&self) -> Duration {
        match self.find("sessions", "") {
            Some(InjectedFault::Sleep(time) | InjectedFault::Spin(time)) => time,
            Some(InjectedFault::Exit(_)) | None => Duration::ZERO,
        }
    }

    fn find(&self, method: &str, name: &str) -> Option<InjectedFault> {
        // A missing file means no fault.
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().find_map(|line| {
            let (of, fault) = parse(line)?;
            let (of_method, of_name) = of.split_once(':').unwrap_or((of, name));
            ((of_method, of_name) == (method, name)).then_some(fault)
        })
    }
}

fn parse(line: &str) -> Option<(&str, InjectedFault)> {
    /// Time that is longer than any caller's timeout.
    const FOREVER: Duration = Duration::from_secs(1 << 30);
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [of, kind, argument] = words.as_slice() else { return None };
    let time = || match *argument {
        "forever" => Some(FOREVER),
        seconds => Duration::try_from_secs_f64(seconds.parse().ok()?).ok(),
    };
    let fault = match *kind {
        "spin" => InjectedFault::Spin(time()?),
        "sleep" => InjectedFault::Sleep(time()?),
        "exit" => InjectedFault::Exit(argument.parse().ok()?),
        _ => return None,
    };
    Some((of, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found_by_method_and_name() {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults(folder.path().join("faults"));
        assert_eq!(faults.find("a", ""), None, "there is no file");
        std::fs::write(&faults.0, "a:b exit 3\nc sleep 0.5\nsessions sleep 2\nd jump 3\n").unwrap();
        assert_eq!(faults.find("a", "b"), Some(InjectedFault::Exit(3)));
        assert_eq!(faults.find("a", "x"), None);
        assert_eq!(faults.find("c", "x"), Some(InjectedFault::Sleep(Duration::from_millis(500))));
        assert_eq!(faults.find("d", "x"), None);
        assert_eq!(faults.sessions_after(), Duration::from_secs(2));
    }
}
